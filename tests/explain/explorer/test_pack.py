"""Blocks within so many bytes: the limit holds, what there is is used, and what is left out is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from nonlocal_nn.explain.explorer import write_explorer
from nonlocal_nn.explain.explorer.encode import encode
from nonlocal_nn.explain.explorer.pack import LADDER
from tests.explain.explorer.page_reader import PageReader
from tests.explain.scene import FakeCapture, all_rows, film, noise_capture, noisy_block


def test_a_long_clip_with_five_blocks_stays_under_ten_megabytes(tmp_path: Path) -> None:
    """32 frames of 224 x 224, the maps of i3d_r50_nl5, and weights that cannot be compressed."""
    blocks = [noisy_block(32, 224, step) for step in (32, 32, 32)]
    blocks = [
        dataclasses.replace(noisy_block(32, 224, 16), name="res3.1"),
        dataclasses.replace(noisy_block(32, 224, 16), name="res3.3"),
        *(dataclasses.replace(block, name=f"res4.{n}") for n, block in enumerate(blocks)),
    ]
    captured = FakeCapture(film(32), {block.name: block for block in blocks})
    path = write_explorer(captured, tmp_path / "page.html")
    assert 4_000_000 < path.stat().st_size <= 10_000_000  # what there is is used
    page = PageReader(path)
    assert page.data["frames"] == {"count": 32, "height": 224, "width": 224, "seconds": None}
    assert [block["name"] for block in page.data["blocks"]] == [block.name for block in blocks]
    assert (
        max(max(block.asked) * block.keys.positions for block in blocks) <= 2_000_000
    )  # rows held at a time


@pytest.mark.parametrize("max_bytes", [300_000, 150_000, 100_000])
def test_a_smaller_page_names_what_it_left_out(tmp_path: Path, max_bytes: int) -> None:
    block = noisy_block(4, 160, 8, sharpness=3.0)
    path = write_explorer(noise_capture([block], 4, 160), tmp_path / "page.html", max_bytes=max_bytes)
    assert path.stat().st_size <= max_bytes
    stored = PageReader(path).block(block.name)
    top = stored.about["top"]
    assert top is not None
    assert f"The {top} largest weights of each row" in stored.about["stored"]
    frames, height, width = stored.about["queries"]["shape"]
    stride = round(stored.about["queries"]["step"][1] / block.queries.step[1])
    assert (stride > 1) == ("apart" in stored.about["stored"])
    rows = (
        all_rows(block)
        .reshape(*block.queries.shape, -1)[:, ::stride, ::stride]
        .reshape(frames * height * width, -1)
    )
    large = np.argsort(-rows, axis=1)[:, :top]
    kept = np.take_along_axis(stored.rows, large, axis=1)
    reach = rows.max(axis=1, keepdims=True)
    assert (
        np.abs(kept - np.take_along_axis(rows, large, axis=1)) <= reach / stored.about["steps"] * 1.0001
    ).all()
    assert np.allclose(stored.rows.sum(axis=1), 1, atol=0.05)


def test_plans_get_smaller_one_after_the_other() -> None:
    block = noisy_block(8, 224, 8)
    sizes = []
    for plan in LADDER:
        rows = block.rows(np.arange(0, 200))
        sizes.append(
            sum(array.nbytes for array in encode(rows, block.keys.shape, plan).values()) / plan.stride**2
        )
    full = [size for size, plan in zip(sizes, LADDER, strict=True) if plan.top is None]
    cut = [size for size, plan in zip(sizes, LADDER, strict=True) if plan.top is not None]
    assert len(set(full)) == 1  # fewer levels show only once deflated
    assert cut == sorted(cut, reverse=True)
    assert cut[0] < full[0]
