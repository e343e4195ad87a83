"""A run from shards is the run from the plain files."""

from __future__ import annotations

from pathlib import Path

from nonlocal_nn.cli import main
from nonlocal_nn.training.run import train

from .conftest import ConfigMaker


def test_files_and_shards_give_one_hash(tiny_config: ConfigMaker, videos: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        assert main(["shard", str(videos / split), str(tmp_path / split), "--size", "10kB"]) == 0
    assert len(list((tmp_path / "train").glob("*.tar"))) > 1
    plain = train(tiny_config(out="plain", data={"val": str(videos / "test")}))
    data = {"train": str(tmp_path / "train"), "val": str(tmp_path / "test"), "workers": 1}
    packed = train(tiny_config(out="packed", data=data))
    for results in (plain, packed):
        results.pop("train_seconds")
        results.pop("clips_per_second")
        results.pop("waiting")
    assert packed == plain
    # a list moved into shards is the same list: the run goes on
    config = tiny_config(out="plain", data={**data, "val": None})
    config.resume = True
    assert train(config)["weights_sha256"] == plain["weights_sha256"]
