"""`nonlocal` with one more table: python -m tests.experiments.tiny_ablate WORDS."""

from __future__ import annotations

import sys

from nonlocal_nn.cli import main
from nonlocal_nn.experiments.tables import TABLES
from tests.experiments.conftest import TINY

if __name__ == "__main__":
    TABLES["tiny"] = TINY
    sys.exit(main(["ablate", *sys.argv[1:]]))
