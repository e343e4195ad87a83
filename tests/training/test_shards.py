"""A run from shards, or with an index, is the run from the plain files."""

from __future__ import annotations

from pathlib import Path

import pytest

from nonlocal_nn.cli import main
from nonlocal_nn.training.run import train

from .conftest import ConfigMaker


def test_files_and_shards_give_one_hash(
    tiny_config: ConfigMaker, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        assert main(["shard", str(videos / split), str(tmp_path / split), "--size", "10kB"]) == 0
    assert len(list((tmp_path / "train").glob("*.tar"))) > 1
    plain = train(tiny_config(out="plain", data={"val": str(videos / "test")}))
    data = {"train": str(tmp_path / "train"), "val": str(tmp_path / "test"), "workers": 1}
    packed = train(tiny_config(out="packed", data=data))
    index = tmp_path / "index.npz"
    assert main(["scan", str(videos), "--index", str(index), "--progress", "false"]) == 0
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nonlocal_nn.data.decode.read_frame_table", None)  # nobody goes through a file
        indexed = train(tiny_config(out="indexed", data={"val": str(videos / "test"), "index": str(index)}))
    assert "index" not in capsys.readouterr().err  # there is nothing to say of it
    for results in (plain, packed, indexed):
        results.pop("train_seconds")
        results.pop("clips_per_second")
        results.pop("waiting")
    assert packed == plain == indexed
    # a list moved into shards is the same list: the run goes on
    config = tiny_config(out="plain", data={**data, "val": None})
    config.resume = True
    assert train(config)["weights_sha256"] == plain["weights_sha256"]
