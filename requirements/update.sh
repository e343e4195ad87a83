#!/usr/bin/env bash
# Resolves pyproject.toml again and writes the three hashed files beside this one. They hold for Python 3.11 and newer on
# every system (markers choose), name no index (so that yours is used), and are what run.py installs.
#   bash requirements/update.sh              keep the versions that still fit
#   bash requirements/update.sh --upgrade    take the newest
# Needs uv: `python3 run.py lint` leaves one in .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(command -v .venv/bin/uv || command -v uv)
resolve() {
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --fork-strategy fewest \
        --custom-compile-command "bash requirements/update.sh" "$@"
}
resolve requirements/uv.in --output-file requirements/uv.txt
resolve pyproject.toml --extra demo --group build --output-file requirements/demo.txt
resolve pyproject.toml --extra demo --group dev --constraints requirements/demo.txt --output-file requirements/dev.txt
if grep --extended-regexp --line-number '://|--(extra-)?index|--find-links|--trusted-host' requirements/*.txt; then
    echo "update.sh: the lines above name a host; remove them" >&2
    exit 1
fi
