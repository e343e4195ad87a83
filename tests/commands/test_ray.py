"""scan and predict on a Ray cluster: every video once, whoever dies on the way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from nonlocal_nn._ray import RETRIES, on_ray
from nonlocal_nn.cli import main
from nonlocal_nn.data.scan import scan
from tests.ray_work import Sleepy, Square, no_work

QUICK = ["--clips", "2", "--crops", "1", "--device", "cpu", "--progress", "false"]
_MARK = "NONLOCAL_TEST_CLUSTER"  # in the environment of all processes of a cluster
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of two CPUs on this machine; gives its address, which --ray auto finds in RAY_ADDRESS."""
    log = tmp_path_factory.mktemp("ray") / "log"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", "0"]
    command += ["--num-cpus", "2", "--include-dashboard", "false", "--object-store-memory", "100000000"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["RAY_AUTH_MODE"] = "disabled"  # a token would be kept in the home folder
    environment[_MARK] = str(log)
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        found = None
        deadline = time.monotonic() + 120
        while found is None:
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
            found = re.search(r"--address='([^']+)'", log.read_text())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", found[1])
            patch.setenv("RAY_AUTH_MODE", "disabled")
            patch.setenv(_MARK, str(log))
            yield found[1]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _workers() -> list[int]:
    """The processes of this test's cluster that work."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = os.environ[_MARK].encode() in (folder / "environ").read_bytes()
            works = (folder / "cmdline").read_bytes().startswith(b"ray::_Worker")
        except OSError:  # it has ended
            continue
        if ours and works:
            found.append(int(folder.name))
    return found


def _squares(folder: Path, numbers: list[int], make: Callable[[], Square] | None = None) -> list[int]:
    make = make or partial(Square, folder)
    work = on_ray("auto", make, numbers, died=lambda number: -number, called=str, workers=2)
    return sorted(work)


def test_each_number_counts_once_and_one_that_kills_is_given_up(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = [n for n in range(12) if n != 5]
    assert _squares(tmp_path, numbers) == sorted([-7, *(n * n for n in numbers if n != 7)])
    calls = (tmp_path / "calls").read_text().split()
    assert calls.count("7") == 1 + RETRIES
    assert calls.count("3") == 2
    assert len(calls) == len(numbers) + RETRIES + 1
    said = capsys.readouterr().err
    assert said.count("had 7 in hand") == RETRIES
    assert said.count("had 3 in hand") == 1


def test_what_the_work_raises_is_raised_here(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^no square of 100$"):
        _squares(tmp_path, [1, 2, 100, 4])
    with pytest.raises(RuntimeError, match="in a row died before they did anything"):
        _squares(tmp_path, [1, 2], no_work)
    with pytest.raises(ValueError, match="workers = 0"):
        list(on_ray("auto", Sleepy, [1], died=lambda n: (n, 0), called=str, workers=0))
    assert _squares(tmp_path, []) == []


def test_a_process_killed_from_outside_costs_one_call(cluster: str) -> None:
    results, killed = [], None
    for result in on_ray("auto", Sleepy, range(12), died=lambda n: (n, 0), called=str, workers=2):
        results.append(result)
        if killed is None and len(results) == 4:
            killed = result[1]
            os.kill(killed, signal.SIGKILL)
    assert sorted(number for number, _ in results) == list(range(12))
    assert len({process for _, process in results}) == 3


def test_predict_killed_and_then_one_of_its_processes_gives_the_lines_of_one(
    cluster: str, run: Path, make_video: Callable[..., Path], tmp_path: Path
) -> None:
    places = []
    for number in range(24):
        places.append(str(make_video(tmp_path / f"{number}.mp4", seed=number, frames=8, width=32, height=24)))
    (tmp_path / "broken.mp4").write_text("no video")
    places.insert(5, str(tmp_path / "broken.mp4"))
    words = ["predict", *places, "--checkpoint", str(run), *QUICK]
    assert main([*words, "--workers", "0", "--out", str(tmp_path / "plain.jsonl")]) == 1
    out = tmp_path / "ray" / "found.jsonl"
    words += ["--workers", "2", "--out", str(out), "--ray", "auto"]
    slow = Path(__file__).with_name("slow_parts.py")  # a part for each video
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, str(slow), *words], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(out.parent.rglob("*.npz"))) < 6 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    scored = len(list(out.parent.rglob("*.npz")))
    process = subprocess.Popen([sys.executable, str(slow), *words], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(out.parent.rglob("*.npz"))) < scored + 2 or not _workers():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(_workers()[0], signal.SIGKILL)
    said = process.communicate(timeout=240)[1].decode()
    assert process.returncode == 1, said
    assert "of 25 videos are scored already" in said
    assert out.read_bytes() == (tmp_path / "plain.jsonl").read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["found.jsonl"]


def test_scan_on_a_cluster_of_its_own(make_video: Callable[..., Path], tmp_path: Path) -> None:
    for number in range(6):
        make_video(tmp_path / "videos" / f"{number}.mp4", seed=number)
    (tmp_path / "videos" / "broken.mp4").write_text("no video")
    words = [sys.executable, "-m", "nonlocal_nn", "scan", "videos", "--workers", "2", "--index", "index.npz"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [*words, "--ray", "local"], env=environment, cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 1, done.stderr.decode()
    plain = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert done.stdout.replace(b"7 looked at now, 0 known", b"0 looked at now, 7 known") == plain.stdout
    assert len(scan(tmp_path / "videos", workers=1, index=tmp_path / "index.npz").findings) == 7
    assert len(done.stderr.decode().splitlines()) < 20


def test_what_does_not_go_with_ray_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "a.mp4", "--checkpoint", str(run), *QUICK, "--ray", "local"]
    assert main(words) == 2
    assert "--ray needs --out FILE" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*words, "--out", str(tmp_path / "out.jsonl")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'nonlocal-nn[ray]'" in line
