"""`nonlocal demo`: the whole way, made small; what it keeps, goes on with and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nonlocal_nn as nl
from nonlocal_nn.cli import main
from nonlocal_nn.commands.demo import BASELINE, NONLOCAL, recipe
from nonlocal_nn.data.decode import VideoReader
from nonlocal_nn.data.transforms import normalize

pytest.importorskip("sklearn")

SMALL = ["--epochs", "1", "--train_videos", "32", "--test_videos", "8", "--progress", "false"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "--out", str(out), *SMALL]) == 0
    return out


def test_the_results_have_the_promised_form(demo: Path) -> None:
    results = json.loads((demo / "results.json").read_text())
    assert results.keys() == {"chance", "runs"}
    assert results["chance"] == 50.0
    assert [(run["model"], run["seed"]) for run in results["runs"]] == [(BASELINE, 0), (NONLOCAL, 0)]
    for run in results["runs"]:
        assert run.keys() == {
            *("model", "seed", "parameters", "clip_top1", "video_top1"),
            *("quartets_right", "quartets_tied", "train_seconds"),
        }
        assert 0 <= run["clip_top1"] <= 100
        assert run["video_top1"] in [12.5 * n for n in range(9)]  # percent of 8 videos
        assert run["train_seconds"] > 0
    # The baseline cannot relate the corners: the sums of its quartets are equal, whatever its weights.
    assert (results["runs"][0]["quartets_right"], results["runs"][0]["quartets_tied"]) == (50.0, 100.0)
    assert results["runs"][0]["parameters"] < results["runs"][1]["parameters"]


def test_called_again_it_goes_on_with_more_seeds_and_tells_what_it_found(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((demo / "results.json").read_text())["runs"]
    weights = (demo / f"{NONLOCAL}_seed0" / "model.safetensors").read_bytes()
    assert main(["demo", "--out", str(demo), "--seeds", "2", *SMALL]) == 0
    printed = capsys.readouterr()
    assert "is finished; nothing to do" in printed.err
    assert "over 2 seeds" in printed.out
    assert "nonlocal predict" in printed.out  # the video it asks about, and how to ask again
    assert "nonlocal explain" in printed.out
    for name, start in (("explain.png", b"\x89PNG"), ("explain.html", b"<!")):
        assert (demo / name).read_bytes().startswith(start)
        assert str(demo / name) in printed.out
    after = json.loads((demo / "results.json").read_text())["runs"]
    assert after[:2] == before
    assert len(after) == 4
    assert (demo / f"{NONLOCAL}_seed0" / "model.safetensors").read_bytes() == weights


def test_other_settings_need_another_folder_or_a_fresh_start(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = (demo / "results.json").read_text()
    assert main(["demo", "--out", str(demo), *SMALL, "--train_videos", "36"]) == 2
    assert "train_videos: 32 -> 36" in capsys.readouterr().err
    assert (demo / "results.json").read_text() == results


def test_it_touches_no_folder_of_somebody_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["demo", "--out", str(tmp_path), "--fresh", *SMALL]) == 2
    assert "files that are not of a demo" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    assert main(["demo", "--seeds", "0"]) == 2
    assert "seeds = 0" in capsys.readouterr().err


def test_both_networks_get_the_same_budget() -> None:
    one, two = (recipe(name, 3, Path("videos"), Path("run"), 6, False) for name in (BASELINE, NONLOCAL))
    two.model.name = one.model.name
    assert one == two


def _quartet(folder: Path) -> Tensor:
    """The first quartet, AA' AB' BA' BB', as clips (4, 3, 8, 48, 48)."""
    clips = []
    for path in sorted(folder.rglob("quartet00000_*.mp4"), key=lambda path: path.name):
        with VideoReader(path) as reader:
            clips.append(torch.from_numpy(reader.read(range(0, 16, 2)).frames).permute(3, 0, 1, 2))
    return normalize(torch.stack(clips)).double()


def test_the_proof_holds_for_the_baseline_and_not_for_the_nonlocal_network(demo: Path) -> None:
    """`rendered.py`: pooled local features give l(AA') + l(BB') = l(AB') + l(BA'), whatever the weights."""
    quartet = _quartet(demo / "videos" / "test")
    model = nl.load_model(demo / f"{BASELINE}_seed0").double()
    with torch.no_grad():
        a, b, c, d = model(quartet)
    torch.testing.assert_close(a + d, b + c, rtol=0, atol=1e-9)

    related = nl.load_model(demo / f"{NONLOCAL}_seed0").double()
    with torch.no_grad():
        for name, parameter in related.named_parameters():
            if "nonlocal" in name and name.endswith("norm.weight"):
                parameter.fill_(1.0)  # one epoch leaves gamma near zero
        a, b, c, d = related(quartet)
    assert (a + d - b - c).abs().max() > 1e-4
