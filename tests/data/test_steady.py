"""Loaders whose processes die give the batches of loaders whose processes live."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.utils.data import get_worker_info

from nonlocal_nn.data.errors import Problem
from nonlocal_nn.data.steady import AtWork, FixedBatches, SteadyLoader


class Numbers:
    """Squares of the keys; `fatal` says of a key whether its process dies now."""

    def __init__(self, fatal: Callable[[int], bool]) -> None:
        self.fatal = fatal
        self.at_work: AtWork | None = None
        self.left_out: dict[int, Problem] = {}

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> int:
        if index in self.left_out:
            return -1
        if self.at_work is not None:
            self.at_work.note(0, index, index)
        if self.fatal(index):
            os.kill(os.getpid(), signal.SIGKILL)
        return index * index

    def read_again(self, epoch: int, index: int) -> int:
        return self[index]

    def path_of(self, video: int) -> str:
        return f"{video}.mp4"

    def leave_out(self, video: int, problem: Problem) -> None:
        self.left_out[video] = problem


class Plain:
    """A data set that does not say what it reads."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __getitem__(self, index: int) -> int:
        if index == 5 and not self.flag.exists():
            self.flag.touch()
            os._exit(7)
        return index * index


def _loader(dataset: object, workers: int = 2) -> SteadyLoader[list[int]]:
    return SteadyLoader(dataset, FixedBatches(range(12), 3), list, batch_bytes=100, workers=workers)


KILLED = "SIGKILL, as the system does where memory runs out"
WHOLE = [[n * n for n in range(first, first + 3)] for first in (0, 3, 6, 9)]


@pytest.mark.parametrize("at", [0, 5, 11])
def test_a_process_that_dies_once_costs_a_line(
    at: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flag = tmp_path / "died"

    def fatal(index: int) -> bool:
        if index != at or flag.exists():
            return False
        flag.touch()
        return True

    dataset = Numbers(fatal)
    loader = _loader(dataset)
    found = []
    for batch in loader:
        # torch's would raise here, in the middle of a step
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
        found.append(batch)
    assert found == WHOLE
    assert loader.deaths == 1
    assert not dataset.left_out
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert (
        f"a loader process died (SIGKILL, as the system does where memory runs out) while it read {at}.mp4"
        in said
    )


def test_a_file_that_kills_twice_is_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    dataset = Numbers(lambda index: index in (4, 5))  # two in one batch
    loader = _loader(dataset, workers=1)
    assert list(loader) == [[0, 1, 4], [9, -1, -1], *WHOLE[2:]]
    assert loader.deaths == 2
    assert capfd.readouterr().err == ""  # whoever gets the batches reports what was left out
    assert dataset.left_out[4].reason == f"the process that read it died ({KILLED}), and another one, too"


def test_a_data_set_that_does_not_say_what_it_reads(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert list(_loader(Plain(tmp_path / "died"))) == WHOLE
    assert "a loader process died (exit code 7); a new one" in capfd.readouterr().err


def test_deaths_without_a_batch_end_it(capfd: pytest.CaptureFixture[str]) -> None:
    dataset = Numbers(lambda index: get_worker_info() is not None)  # never alone
    with pytest.raises(RuntimeError, match=r"6 loader processes in a row died .*fewer of them"):
        list(_loader(dataset, workers=1))
    assert not dataset.left_out
    assert capfd.readouterr().err.count("\n") == 5


def test_what_a_process_raises_is_raised() -> None:
    class Wrong(Numbers):
        def __getitem__(self, index: int) -> int:
            raise RuntimeError("DataLoader worker of mine")

    with pytest.raises(RuntimeError, match="of mine"):
        list(_loader(Wrong(lambda index: False)))


def test_without_processes() -> None:
    assert list(_loader(Numbers(lambda index: False), workers=0)) == WHOLE
    assert len(_loader(Numbers(lambda index: False), workers=0)) == 4
