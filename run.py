#!/usr/bin/env python3
"""Set up and run everything in this project: python3 run.py demo | test | test-browser | bench | lint | docs.

Needs Python 3.11 or newer and nothing else. The first call makes `.venv` beside this file and installs the
exact packages that requirements/ lists, checked by hash; later calls start at once.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (this file still parses on old Pythons, so that they can say this)
    sys.exit(
        "run.py needs Python 3.11 or newer; this is Python %d.%d (%s).\n"  # noqa: UP031
        "Install a newer Python, or name it if you have one: python3.11 run.py ..."
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NoReturn

Say = Callable[[str], None]
Install = Callable[[Path, str, Say], None]

ROOT = Path(__file__).resolve().parent
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
# Not sys.executable, which may be the one in .venv: that one goes when .venv is made anew.
BASE_PYTHON = getattr(sys, "_base_executable", None) or sys.executable
LEVELS = ("demo", "dev")  # each level holds all packages of the one before it

HELP = """\
The first call sets up .venv (a few GB, mostly torch); nothing is installed outside of it.

commands:
  demo    train a plain and a non-local network on rendered video, and compare them on held-out video
  test    run the tests                  python3 run.py test                    all of them
                                         python3 run.py test tests/ops -k gauss a few (any pytest options)
  test-browser  run the explorer's tests in a browser (Chromium, which is installed where there is none)
                                         python3 run.py test-browser -k drag    a few
  bench   run the measurements           python3 run.py bench                   all of benchmarks/
                                         python3 run.py bench NAME [options]    benchmarks/NAME.py
  lint    check style, types and which part may import which
  docs    build docs/_build/html, where a warning is an error, and run the examples in docs/ and README.md

What follows a command is handed on to it: `python3 run.py demo --help` lists the demo's own options.
Everything runs in this project's folder, wherever you call from; the demo writes to runs/demo there.
The tool itself is .venv/bin/nonlocal (try: .venv/bin/nonlocal --help)."""


class SetupError(Exception):
    """One or two lines for the person at the terminal: what is wrong, and the way out."""


# --- the environment ---


def fingerprint(root: Path) -> dict[str, str]:
    """What `.venv` is made from. Where any of it has changed, `.venv` is out of date."""
    digest = hashlib.sha256()
    for path in [root / "pyproject.toml", *sorted((root / "requirements").glob("*.txt"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return {
        "python": f"{sys.implementation.name} {VERSION}",
        "files": digest.hexdigest(),
        "place": str(root),  # scripts in .venv hold absolute paths: a moved project needs a new .venv
    }


def venv_program(root: Path, name: str) -> Path:
    windows = sys.platform == "win32"
    return root / ".venv" / ("Scripts" if windows else "bin") / (name + ".exe" if windows else name)


def read_stamp(root: Path) -> dict[str, str]:
    """The stamp in `.venv`: {} without a readable one; its `state` is "installing" after a cut-off call."""
    try:
        stamp = json.loads((root / ".venv" / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(root: Path, stamp: dict[str, str]) -> None:
    """Whole or not at all: a reader never sees half a stamp."""
    target = root / ".venv" / "run.json"
    target.parent.mkdir(exist_ok=True)
    draft = target.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    draft.replace(target)


def is_ready(root: Path, level: str) -> bool:
    stamp = read_stamp(root)
    return (
        stamp.get("state") == "ready"
        and all(stamp.get(key) == value for key, value in fingerprint(root).items())
        and stamp.get("level") in LEVELS[LEVELS.index(level) :]
        and venv_program(root, "python").exists()  # false where the Python it links to has been removed
    )


@contextlib.contextmanager
def lock(root: Path, say: Say = print) -> Iterator[None]:
    """One set-up at a time. The system frees the lock when its holder ends, however it ends.

    Programs that the holder starts share the lock: where run.py alone is killed, the pip or uv that it left
    behind keeps the next call waiting until it has ended too.
    """
    with (root / ".venv.lock").open("a+b") as handle:
        os.set_inheritable(handle.fileno(), True)
        if not _try_lock(handle):
            say("run.py: another run.py is setting up .venv; waiting for it ...")
            while not _try_lock(handle):
                time.sleep(0.2)
        try:
            yield
        finally:
            _unlock(handle)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: IO[bytes]) -> bool:
        handle.seek(0)
        try:
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(handle: IO[bytes]) -> None:
        handle.seek(0)
        msvcrt.locking(handle.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(handle: IO[bytes]) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(handle: IO[bytes]) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


def ensure(root: Path, level: str, install: Install | None = None, say: Say = print) -> bool:
    """Make `.venv` hold the packages of `level`; True where it had to do something.

    The stamp says "installing" before the first change and "ready" after the last, so a call that was cut off
    is known by its stamp: what it left is thrown away, as no one can tell which files are whole.
    """
    install = install or install_packages
    if is_ready(root, level):
        return False
    with lock(root, say):
        if is_ready(root, level):  # made by the one that we waited for
            return True
        start = time.monotonic()
        stamp, target, venv = read_stamp(root), fingerprint(root), root / ".venv"
        if venv.is_symlink() or venv.is_file():
            venv.unlink()
        elif venv.exists():
            reason = reason_to_rebuild(root, stamp, target)
            if reason:
                say(f"run.py: {reason}; making .venv anew")
                shutil.rmtree(venv)
        if stamp.get("level") in LEVELS[LEVELS.index(level) :]:
            level = stamp["level"]  # never take away what an earlier call installed
        write_stamp(root, {"state": "installing", "level": level})
        install(root, level, say)
        write_stamp(root, {"state": "ready", "level": level, **target})
        say(f"run.py: .venv is ready ({time.monotonic() - start:.0f} s)")
    return True


def reason_to_rebuild(root: Path, stamp: dict[str, str], target: dict[str, str]) -> str:
    """Why the `.venv` that is there cannot be brought up to date in place; "" where it can."""
    if stamp.get("state") == "installing":
        return "an earlier set-up was cut off"
    if stamp and stamp.get("place") != target["place"]:
        return f"the project has moved from {stamp.get('place')}"
    if stamp and stamp.get("python") != target["python"]:
        return f".venv was made with {stamp.get('python')}, this is {target['python']}"
    python = venv_program(root, "python")
    if not python.exists():
        return ".venv has no working Python"
    if not stamp:  # made by hand or by another tool: welcome, if its Python is this one
        ask = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"
        answer = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False)
        if answer.stdout.strip() != target["python"]:
            other = answer.stdout.strip() or "a broken Python"
            return f".venv was made with {other}, this is {target['python']}"
    return ""


def install_packages(root: Path, level: str, say: Say = print) -> None:
    """A virtual environment; in it uv, the packages of `requirements/<level>.txt` and this project."""
    python, uv = venv_program(root, "python"), venv_program(root, "uv")
    listed = root / "requirements" / f"{level}.txt"
    count = sum(line[:1].isalnum() for line in listed.read_text(encoding="utf-8").splitlines())
    say(f"run.py: setting up {root / '.venv'} (torch makes it a few GB)")
    say("run.py: 1/3 a virtual environment with uv")
    if not python.exists():
        make_venv(root / ".venv")
    options = ["--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
    uv_file = str(root / "requirements" / "uv.txt")
    call([*pip_command(python), "install", *options, "-r", uv_file], "installing uv")

    options = ["--python", str(python)]
    if not uv_cache_is_writable():
        options.append("--no-cache")
    if not sys.stderr.isatty():
        options.append("--quiet")  # at a terminal uv shows how far it is
    say(f"run.py: 2/3 the packages of requirements/{level}.txt (up to {count}, checked by hash)")
    sync = [str(uv), "pip", "sync", "--require-hashes", *options, str(listed)]
    call(sync, "installing the packages")
    say("run.py: 3/3 this project")
    # No build isolation: setuptools is among the packages above, so that nothing is fetched without a hash.
    editable = [
        str(uv),
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        *options,
        "--editable",
        str(root),
    ]
    call(editable, "installing this project")


def make_venv(folder: Path) -> None:
    """Like `python -m venv`; without pip inside where this Python has none to put there (Debian's way)."""
    command = [BASE_PYTHON, "-m", "venv", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode and outer_pip_works():
        made = subprocess.run([*command, "--without-pip"], capture_output=True, text=True, check=False)
    if made.returncode:
        raise SetupError(
            f"This Python ({BASE_PYTHON}) cannot make a virtual environment.\n"
            f"On Debian or Ubuntu: sudo apt-get install python{VERSION}-venv; elsewhere: a whole Python.\n"
            f"What it said: {(made.stdout + made.stderr).strip()[-600:]}"
        )


def outer_pip_works() -> bool:
    """True where the Python that runs this file has a pip that can install elsewhere (22.3 or newer)."""
    ask = [BASE_PYTHON, "-m", "pip", "--python", BASE_PYTHON, "--version"]
    return subprocess.run(ask, capture_output=True, check=False).returncode == 0


def pip_command(python: Path) -> list[str]:
    inner = [str(python), "-m", "pip"]
    if subprocess.run([*inner, "--version"], capture_output=True, check=False).returncode == 0:
        return inner
    return [BASE_PYTHON, "-m", "pip", "--python", str(python)]


def uv_cache_is_writable() -> bool:
    """Where the home folder is read-only, uv has to do without its cache."""
    default = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    folder = Path(os.environ.get("UV_CACHE_DIR") or Path(default or Path("~/.cache").expanduser()) / "uv")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".run-py-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def child_environment() -> dict[str, str]:
    """This process's environment, less what would make the child another Python or slow its every start."""
    drop = {"PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "__PYVENV_LAUNCHER__", "UV_SYSTEM_PYTHON"}
    return {key: value for key, value in os.environ.items() if key not in drop}


def call(command: list[str], doing: str) -> None:
    try:
        # close_fds=False lets it share the lock, see there
        code = subprocess.run(command, env=child_environment(), close_fds=False, check=False).returncode
    except OSError as error:
        raise SetupError(f"{doing} failed: {error}") from error
    if code:
        raise SetupError(
            f"{doing} failed (exit status {code}): {shlex.join(command)}\n"
            "The lines above say why; then call run.py again."
        )


# --- the browser that the explorer is tested in ---

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser(root: Path) -> str | None:
    """A Chromium that starts: the one that NONLOCAL_CHROMIUM names, one on the PATH, or Playwright's own."""
    if named := os.environ.get("NONLOCAL_CHROMIUM"):
        if not starts(named):
            raise SetupError(f"NONLOCAL_CHROMIUM={named} is no browser that starts")
        return named
    for name in BROWSERS:
        if (path := shutil.which(name)) and starts(path):
            return path
    ask = "import playwright.sync_api as a\nwith a.sync_playwright() as p: print(p.chromium.executable_path)"
    command = [str(venv_program(root, "python")), "-c", ask]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    path = answer.stdout.strip()
    return path if path and starts(path) else None


def starts(browser: str) -> bool:
    """False for a missing file, and for one that lacks a library or only stands in for a package."""
    try:
        answer = subprocess.run([browser, "--version"], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0


def browser_installers(root: Path) -> dict[str, list[list[str]]]:
    """The ways to get a Chromium here, the one that changes least first, each as commands to run in order."""
    ways = {
        "installing Playwright's": [
            [str(venv_program(root, "python")), "-m", "playwright", "install", "chromium"]
        ]
    }
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        install = ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]
        ways["installing Debian's"] = [["apt-get", "update"], install]
    return ways


def ensure_browser(root: Path, say: Say = print) -> str:
    """The path of a Chromium that starts, installed where there was none.

    Raises SetupError where none can be had.
    """
    with lock(root, say):
        if found := find_browser(root):
            return found
        for way, commands in browser_installers(root).items():
            say(f"run.py: no Chromium found; {way}")
            environment = {**child_environment(), "DEBIAN_FRONTEND": "noninteractive"}
            for command in commands:
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    said = (done.stdout + done.stderr).strip().splitlines() or [
                        f"exit status {done.returncode}"
                    ]
                    say(f"run.py: {shlex.join(command)} failed: {said[-1].strip()}")
                    break
            if found := find_browser(root):
                return found
    raise SetupError(
        "no Chromium to run the tests in. Install one (Debian: apt-get install chromium), or name one: "
        "NONLOCAL_CHROMIUM=/path/to/chromium python3 run.py test-browser"
    )


# --- the commands ---


def demo(root: Path, rest: list[str]) -> int:
    become([str(venv_program(root, "nonlocal")), "demo", *rest], root, child_environment())


def test(root: Path, rest: list[str]) -> int:
    environment, workers = child_environment(), []
    if not rest:
        # All of them, side by side: one thread each, since torch's own would fight over the same cores.
        workers = ["-n", str(max(1, min(4, os.cpu_count() or 1)))]
        environment.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    become([str(venv_program(root, "python")), "-m", "pytest", *workers, *rest], root, environment)


def test_browser(root: Path, rest: list[str]) -> int:
    try:
        environment = {**child_environment(), "NONLOCAL_CHROMIUM": ensure_browser(root)}
    except SetupError as error:
        sys.exit(f"run.py test-browser: {error}")
    become([str(venv_program(root, "python")), "-m", "pytest", "tests/browser", *rest], root, environment)


def bench(root: Path, rest: list[str]) -> int:
    files = sorted((root / "benchmarks").glob("*.py"))
    scripts = {file.stem: file for file in files if not file.stem.startswith("_")}
    if rest and rest[0] in ("-h", "--help"):
        print("python3 run.py bench                  every measurement, one after the other")
        print("python3 run.py bench NAME [options]   one of them; NAME --help lists its options")
        print(f"NAME: {', '.join(scripts)}")
        return 0
    if rest and rest[0] not in scripts:
        print(f"run.py bench: no benchmarks/{rest[0]}.py; there is: {', '.join(scripts)}", file=sys.stderr)
        return 2
    chosen = [(scripts[rest[0]], rest[1:])] if rest else [(path, []) for path in scripts.values()]
    python = str(venv_program(root, "python"))
    return max([run_step([python, str(path), *options], root) for path, options in chosen], default=0)


def lint(root: Path, rest: list[str]) -> int:
    python = str(venv_program(root, "python"))
    steps = {
        "ruff check": [python, "-m", "ruff", "check", "."],
        "ruff format": [python, "-m", "ruff", "format", "--check", "."],
        "mypy": [python, "-m", "mypy"],
        "import contract": [str(venv_program(root, "lint-imports"))],
    }
    return run_steps(root, "lint", steps, rest)


def docs(root: Path, rest: list[str]) -> int:
    python = str(venv_program(root, "python"))
    builder = ["-m", "sphinx", "-W", "--keep-going", "--quiet", "-b", "html", "docs", "docs/_build/html"]
    steps = {
        "pages": [python, *builder],
        "examples": [python, "-m", "pytest", "tests/project/test_docs.py"],
    }
    return run_steps(root, "docs", steps, rest)


def run_steps(root: Path, command: str, steps: dict[str, list[str]], rest: list[str]) -> int:
    """Run all of the steps, the later ones too where one fails, and say at the end which did."""
    if rest:
        print(f"run.py {command}: takes no options, got: {shlex.join(rest)}", file=sys.stderr)
        return 2
    failed = []
    for name, step in steps.items():
        print(f"run.py {command}: {name}", flush=True)
        if run_step(step, root):
            failed.append(name)
    print(f"run.py {command}: " + (f"FAILED: {', '.join(failed)}" if failed else "all good"), flush=True)
    return 1 if failed else 0


def run_step(step: list[str], root: Path) -> int:
    """Run in the project's folder and wait. Ctrl-C reaches the program too, which ends in its own way."""
    process = subprocess.Popen(step, cwd=root, env=child_environment())
    while True:
        try:
            code = process.wait()
            return code if code >= 0 else 128 - code
        except KeyboardInterrupt:
            continue


def become(program: list[str], root: Path, environment: dict[str, str]) -> NoReturn:
    """The last thing run.py does: it turns into the program, so that every signal reaches that."""
    sys.stdout.flush()
    os.chdir(root)
    if sys.platform == "win32":  # where exec gives the terminal back before the program ends
        sys.exit(subprocess.run(program, env=environment, check=False).returncode)
    os.execve(program[0], program, environment)


COMMANDS = {
    "demo": (demo, "demo"),
    "test": (test, "dev"),
    "test-browser": (test_browser, "dev"),
    "bench": (bench, "demo"),
    "lint": (lint, "dev"),
    "docs": (docs, "dev"),
}


def main(arguments: list[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py",
        usage="python3 run.py {demo,test,test-browser,bench,lint,docs} [options of that command]",
        description="Set up this project and run it. Needs Python 3.11 or newer and nothing else.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="one of: " + ", ".join(COMMANDS))
    if not arguments:
        parser.print_help()
        return 2
    command = parser.parse_args(arguments[:1]).command
    action, level = COMMANDS[command]

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        ensure(root, level, say=say)
    except SetupError as error:
        say(f"run.py: {error}")
        return 1
    except KeyboardInterrupt:
        say("run.py: stopped; the next call starts the set-up again")
        return 130
    return action(root, arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
