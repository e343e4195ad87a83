"""run.py sets up, once, whatever happens in between. A fake installer stands in for the network."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# A child process that loads run.py with the installer below in the place of the real one and calls its main.
DRIVER = """
import importlib.util, os, sys, time
from pathlib import Path

spec = importlib.util.spec_from_file_location("run", sys.argv[1])
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)

def install(root, level, say):
    with (root / "installed.log").open("a") as log:
        log.write(level + "\\n")
    (root / ".venv" / "half").touch()
    time.sleep(float(os.environ.get("INSTALL_SECONDS", "0")))
    bin = run.venv_program(root, "python").parent
    bin.mkdir(exist_ok=True)
    (bin / "python").symlink_to(sys.executable)
    (bin / "nonlocal").write_text('#!/bin/sh\\necho nonlocal "$@" in "$(pwd)"')
    (bin / "nonlocal").chmod(0o755)

run.install_packages = install
sys.exit(run.main(sys.argv[2:]))
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the fake programs are shell scripts")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what run.py needs, in a folder with a space in its name."""
    root = tmp_path / "a project"
    (root / "requirements").mkdir(parents=True)
    (root / "run.py").write_bytes((REPOSITORY / "run.py").read_bytes())
    (root / "pyproject.toml").write_text("[project]\n")
    for name in ("uv", "demo", "dev"):
        (root / "requirements" / f"{name}.txt").write_text(f"{name}==1\n")
    return root


def start(
    project: Path, *arguments: str, cwd: Path | None = None, seconds: float = 0.0
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(project / "run.py"), *arguments],
        cwd=cwd or project,
        env={**os.environ, "INSTALL_SECONDS": str(seconds)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def demo(project: Path, *arguments: str, cwd: Path | None = None) -> tuple[str, str]:
    process = start(project, "demo", *arguments, cwd=cwd)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    return out, err


def installs(project: Path) -> list[str]:
    log = project / "installed.log"
    return log.read_text().split() if log.exists() else []


def wait_for(condition, seconds: float = 20.0) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_the_second_call_installs_nothing_and_hands_the_arguments_on(project: Path) -> None:
    demo(project)
    out, err = demo(project, "--seeds", "3", "a b")
    assert out.strip() == f"nonlocal demo --seeds 3 a b in {project}"
    assert err == ""
    assert installs(project) == ["demo"]


def test_from_another_folder_it_still_works_in_its_own(project: Path, tmp_path: Path) -> None:
    out, _ = demo(project, cwd=tmp_path)
    assert out.strip().endswith(f"in {project}")
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements/demo.txt", "requirements/uv.txt"])
def test_a_changed_file_brings_the_environment_up_to_date(project: Path, changed: str) -> None:
    demo(project)
    with (project / changed).open("a") as file:
        file.write("# more\n")
    run = load_run(project)
    assert not run.is_ready(project, "demo")
    run.ensure(project, "demo", install=lambda root, level, say: None, say=lambda text: None)
    assert (project / ".venv" / "half").exists()  # in place, not from nothing
    assert run.is_ready(project, "demo")


def test_killed_half_way_the_next_call_starts_anew(project: Path) -> None:
    process = start(project, "demo", seconds=60)
    wait_for(lambda: (project / ".venv" / "half").exists())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left_behind = project / ".venv" / "torch_without_its_last_file"
    left_behind.touch()

    out, err = demo(project)
    assert out.startswith("nonlocal demo")
    assert "cut off" in err
    assert not left_behind.exists()
    assert installs(project) == ["demo", "demo"]


def test_a_failed_installation_is_not_taken_for_a_whole_one(project: Path) -> None:
    run = load_run(project)

    def no_network(root: Path, level: str, say: object) -> None:
        raise run.SetupError("installing the packages failed")

    with pytest.raises(run.SetupError, match="installing the packages failed"):
        run.ensure(project, "demo", install=no_network, say=lambda text: None)
    assert not run.is_ready(project, "demo")
    demo(project)
    assert installs(project) == ["demo"]


def test_two_at_once_install_once_and_the_second_says_why_it_waits(project: Path) -> None:
    first = start(project, "demo", "first", seconds=1.0)
    wait_for(lambda: (project / ".venv" / "half").exists())
    second = start(project, "demo", "second", seconds=1.0)
    errors = [process.communicate(timeout=30) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], errors
    assert installs(project) == ["demo"]
    assert "waiting" in errors[1][1]
    assert "waiting" not in errors[0][1]


def test_a_program_left_behind_by_a_killed_set_up_keeps_the_next_one_waiting(project: Path) -> None:
    """Otherwise an orphaned uv would go on writing into the environment that the next call has just made."""
    holder = textwrap.dedent(
        f"""
        import importlib.util, sys
        from pathlib import Path
        spec = importlib.util.spec_from_file_location("run", {str(project / "run.py")!r})
        run = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(run)
        root = Path({str(project)!r})
        with run.lock(root):
            script = "import time; print('up', flush=True); time.sleep(60)"
            run.call([sys.executable, "-c", script], "sleeping")
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "up\n"
        process.kill()  # run.py alone, not the program that it started
        process.wait()
        waiter = start(project, "demo")
        with pytest.raises(subprocess.TimeoutExpired):
            waiter.communicate(timeout=1.0)
        assert installs(project) == []
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
    out, _ = waiter.communicate(timeout=30)
    assert out.startswith("nonlocal demo")


def test_more_packages_stay_once_there(project: Path) -> None:
    """`test` after `demo` adds the developers' packages; another `demo` leaves them."""
    run = load_run(project)
    asked = []

    def install(root: Path, level: str, say: object) -> None:
        asked.append(level)
        python = run.venv_program(root, "python")
        python.parent.mkdir(exist_ok=True)
        if not python.exists():
            python.symlink_to(sys.executable)

    def ensure(level: str) -> bool:
        return run.ensure(project, level, install=install, say=lambda text: None)

    assert [ensure("demo"), ensure("dev"), ensure("demo")] == [True, True, False]
    (project / "pyproject.toml").write_text("[project] # changed\n")
    assert ensure("demo")
    assert asked == ["demo", "dev", "dev"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda stamp: stamp | {"python": "cpython 3.9"}, "made with cpython 3.9"),
        (lambda stamp: stamp | {"place": "/elsewhere"}, "moved from /elsewhere"),
        (lambda stamp: stamp | {"state": "installing"}, "cut off"),
    ],
)
def test_an_environment_of_another_python_or_place_is_made_anew(project: Path, damage, said: str) -> None:  # type: ignore[no-untyped-def]
    demo(project)
    stamp_file = project / ".venv" / "run.json"
    stamp_file.write_text(json.dumps(damage(json.loads(stamp_file.read_text()))))
    (project / ".venv" / "old").touch()
    _, err = demo(project)
    assert said in err
    assert not (project / ".venv" / "old").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(project: Path) -> None:
    demo(project)
    python = project / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(project / "removed")
    _, err = demo(project)
    assert "no working Python" in err


def test_an_environment_made_by_hand_is_used_and_not_deleted(project: Path) -> None:
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (project / ".venv" / "mine").touch()
    run = load_run(project)
    assert run.ensure(project, "demo", install=lambda root, level, say: None, say=lambda text: None)
    assert (project / ".venv" / "mine").exists()
    assert run.is_ready(project, "demo")


def test_a_second_call_is_ready_in_well_under_a_second(project: Path) -> None:
    demo(project)
    times = []
    for _ in range(3):  # the best of three: this machine may be busy with other tests
        start_time = time.monotonic()
        demo(project)
        times.append(time.monotonic() - start_time)
    assert min(times) < 0.5


# --- the browser ---


def fake_browser(folder: Path, name: str, status: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho Chromium 1.0\nexit {status}\n")
    path.chmod(0o755)
    return path


def captured_become(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[list[str], dict[str, str]]]:
    became: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(
        run, "become", lambda program, root, environment: became.append((program, environment))
    )
    return became


def test_the_browser_tests_get_the_browser_that_is_there(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(project)
    became = captured_become(run, monkeypatch)
    fake_browser(tmp_path / "bin", "chromium", status=1)  # as the stand-in of a package that is not installed
    there = fake_browser(tmp_path / "bin", "google-chrome")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("NONLOCAL_CHROMIUM", raising=False)
    run.test_browser(project, ["-k", "drag"])
    named = fake_browser(tmp_path / "other", "browser")
    monkeypatch.setenv("NONLOCAL_CHROMIUM", str(named))
    run.test_browser(project, [])
    python = str(run.venv_program(project, "python"))
    assert [program for program, _ in became] == [
        [python, "-m", "pytest", "tests/browser", "-k", "drag"],
        [python, "-m", "pytest", "tests/browser"],
    ]
    assert [environment["NONLOCAL_CHROMIUM"] for _, environment in became] == [str(there), str(named)]


def test_a_missing_browser_is_installed_one_way_after_the_other(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(project)
    became, said = captured_become(run, monkeypatch), []
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("NONLOCAL_CHROMIUM", raising=False)
    write = f"import os; os.chmod(open({str(tmp_path / 'bin' / 'chromium')!r}, 'w').name, 0o755)"
    fake = f"{write}; open({str(tmp_path / 'bin' / 'chromium')!r}, 'w').write('#!/bin/sh\\nexit 0\\n')"
    (tmp_path / "bin").mkdir()
    ways = {
        "installing one way": [
            [sys.executable, "-c", "import sys; sys.exit('no network')"],
            ["never-called"],
        ],
        "installing another way": [[sys.executable, "-c", fake]],
        "installing needlessly": [["never-called"]],
    }
    python = run.venv_program(project, "python")
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    monkeypatch.setattr(run, "browser_installers", lambda root: ways)
    assert run.ensure_browser(project, said.append) == str(tmp_path / "bin" / "chromium")
    assert [line.split("; ")[-1] for line in said[:1] + said[2:]] == list(ways)[:2]
    assert said[1].endswith("failed: no network")
    assert became == []


def test_where_no_browser_can_be_had_one_line_says_what_to_do(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(project)
    became = captured_become(run, monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("NONLOCAL_CHROMIUM", raising=False)
    monkeypatch.setattr(run, "browser_installers", lambda root: {})
    monkeypatch.setattr(run, "find_browser", lambda root: None)
    with pytest.raises(SystemExit, match=r"apt-get install chromium.*NONLOCAL_CHROMIUM=") as stopped:
        run.test_browser(project, [])
    assert "\n" not in str(stopped.value)
    monkeypatch.undo()
    monkeypatch.setenv("NONLOCAL_CHROMIUM", str(tmp_path / "missing"))
    with pytest.raises(SystemExit, match=r"missing is no browser that starts"):
        load_run(project).test_browser(project, [])
    assert became == []


def test_installing_a_browser_changes_as_little_as_it_can(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(project)
    monkeypatch.setattr(run.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(run.os, "geteuid", lambda: 0)
    playwright, debian = run.browser_installers(project).values()
    assert [command[1:] for command in playwright] == [["-m", "playwright", "install", "chromium"]]
    assert [command[:2] for command in debian] == [["apt-get", "update"], ["apt-get", "install"]]
    monkeypatch.setattr(run.os, "geteuid", lambda: 1000)  # no one's system is changed without being asked
    assert len(run.browser_installers(project)) == 1


def test_plain_tests_need_no_browser() -> None:
    """`run.py test` does not collect tests/browser; naming the folder does."""
    ask = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    plain, named = (
        subprocess.run([*ask, *folder], cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout
        for folder in (["tests"], ["tests/browser"])
    )
    assert "tests/project/test_run.py" in plain
    assert "tests/browser" not in plain
    assert "tests/browser/test_looking.py" in named


def test_help_teaches_and_installs_nothing(project: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(project / "run.py"), "--help"], capture_output=True, text=True, check=True
    )
    for word in (
        "demo",
        "test",
        "test-browser",
        "bench",
        "lint",
        "docs",
        "runs/demo",
        "python3 run.py test tests/ops",
    ):
        assert word in result.stdout
    assert not (project / ".venv").exists()


def test_a_mistyped_command_lists_the_right_ones(project: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(project / "run.py"), "dmeo"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "dmeo" in result.stderr
    assert "demo" in result.stderr
    assert not (project / ".venv").exists()


def test_a_python_that_cannot_make_environments_says_what_to_install(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Debian without python3-venv and pip: a Python whose `-m venv` and `-m pip` fail."""
    run = load_run(project)
    crippled = project / "python3"
    crippled.write_text("#!/bin/sh\necho 'ensurepip is not available' >&2\nexit 1\n")
    crippled.chmod(0o755)
    monkeypatch.setattr(run, "BASE_PYTHON", str(crippled))
    with pytest.raises(
        run.SetupError, match=r"apt-get install python3\.\d+-venv(.|\n)*ensurepip is not available"
    ):
        run.make_venv(project / ".venv")


def test_a_home_that_cannot_be_written_does_without_the_cache(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(project)
    blocked = project / "a file, not a folder"
    blocked.touch()
    monkeypatch.setenv("UV_CACHE_DIR", str(blocked / "uv"))
    assert not run.uv_cache_is_writable()
    monkeypatch.setenv("UV_CACHE_DIR", str(project / "cache"))
    assert run.uv_cache_is_writable()


def test_children_write_bytecode_and_see_no_foreign_modules(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    environment = load_run(project).child_environment()
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert "PYTHONPATH" not in environment


def test_an_old_python_is_told_so_in_one_line() -> None:
    """The check stands before anything that an old Python lacks, in syntax that Python 3.8 reads."""
    import ast

    source = (REPOSITORY / "run.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    _docstring, imported, check = tree.body[:3]
    assert ast.unparse(imported) == "import sys"
    assert ast.unparse(check).startswith("if sys.version_info < (3, 11):")
    old = source.replace("import sys\n", "import sys\nsys.version_info = (3, 8, 18)\n", 1)
    result = subprocess.run([sys.executable, "-c", old], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "needs Python 3.11 or newer; this is Python 3.8" in result.stderr
    assert "Traceback" not in result.stderr


def load_run(project: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_py_under_test", project / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
