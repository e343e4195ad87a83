"""Limits of containers, as Docker and SLURM make them: folders of files, made here."""

from __future__ import annotations

from pathlib import Path

import pytest

from nonlocal_nn.ops.cpu.workspace import container_limits

GB = 2**30


def _group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def _own(tmp_path: Path, text: str) -> Path:
    (tmp_path / "own").write_text(text)
    return tmp_path / "own"


def test_version_2_in_a_container_of_its_own(tmp_path: Path) -> None:
    _group(
        tmp_path / "cg", memory__max=GB, memory__current=GB // 2, memory__stat="inactive_file 1024\nanon 5"
    )
    assert container_limits(tmp_path / "cg", _own(tmp_path, "0::/\n")) == [(GB, GB // 2 - 1024)]


def test_version_2_nested_as_slurm_does(tmp_path: Path) -> None:
    top = tmp_path / "cg"
    _group(top, cgroup__controllers="memory")
    _group(top / "slurm", memory__max="max", memory__current=9 * GB)
    _group(top / "slurm" / "job_7", memory__max=2 * GB, memory__high=GB, memory__current=300)
    _group(top / "slurm" / "job_7" / "step_0", memory__max="max", memory__current=200)
    own = _own(tmp_path, "0::/slurm/job_7/step_0\n")
    assert container_limits(top, own) == [(GB, 300)]  # memory.high is the lower one


def test_version_1(tmp_path: Path) -> None:
    top = tmp_path / "cg"
    none = 9223372036854771712  # what version 1 writes for "no limit"
    _group(top / "memory", memory__limit_in_bytes=none, memory__usage_in_bytes=8 * GB)
    _group(
        top / "memory" / "docker" / "abc",
        **{
            "memory__limit_in_bytes": GB,
            "memory__usage_in_bytes": 500,
            "memory__stat": "total_inactive_file 100",
        },
    )
    own = _own(tmp_path, "12:cpu,cpuacct:/x\n9:memory:/docker/abc\n0::/y\n")
    assert container_limits(top, own) == [(GB, 400)]
    # in the container its own group is mounted at the top, while the path stays the host's
    _group(tmp_path / "inner" / "memory", memory__limit_in_bytes=GB, memory__usage_in_bytes=7)
    assert container_limits(tmp_path / "inner", own) == [(GB, 7)]


@pytest.mark.parametrize("text", ["", "0::/gone/away\n", "nonsense\n", "0::/../../x\n"])
def test_without_limits_there_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "cg").mkdir()
    assert container_limits(tmp_path / "cg", _own(tmp_path, text)) == []
    assert container_limits(tmp_path / "nowhere", tmp_path / "nothing") == []
