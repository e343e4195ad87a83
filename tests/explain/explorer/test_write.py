"""The explorer's file: what it holds, how exact it is, how large it gets, and what cannot get out of it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nonlocal_nn.explain.explorer import write_explorer
from nonlocal_nn.explain.explorer.pack import pack_blocks
from nonlocal_nn.explain.explorer.write import encode_frames
from tests.explain.explorer.page_reader import PageReader, policy
from tests.explain.scene import (
    HOSTILE,
    FakeBlock,
    FakeCapture,
    all_rows,
    capture_of_film,
    noise_capture,
    noisy_block,
)

# --- how exact it is ---


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "dot_product", "concatenation"])
def test_the_page_holds_every_row_to_within_what_it_states(tmp_path: Path, pairwise: str) -> None:
    block = noisy_block(2, 48, 8, pairwise)
    page = PageReader(write_explorer(noise_capture([block], 2, 48), tmp_path / "page.html"))
    stored = page.block(block.name)
    rows = all_rows(block)
    assert "to within 0.4 %" in stored.about["stored"] or pairwise == "dot_product"
    assert "to within 0.8 %" in stored.about["stored"] or pairwise != "dot_product"
    reach = np.abs(rows).max(axis=1) if pairwise == "dot_product" else np.ptp(rows, axis=1)
    bound = (1 / 127 if pairwise == "dot_product" else 1 / 255) * reach * 1.0001
    assert (np.abs(stored.rows - rows).max(axis=1) <= bound).all()


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "dot_product"])
def test_the_leaders_are_those_of_the_row(tmp_path: Path, pairwise: str) -> None:
    """Even where all weights are alike to a hundredth, so that plain codes could not tell them apart."""
    block = noisy_block(2, 96, 8, pairwise, sharpness=0.01)
    page = PageReader(write_explorer(noise_capture([block], 2, 96), tmp_path / "page.html"))
    size, stored = np.abs(all_rows(block)), page.block(block.name)
    least = np.sort(size, axis=1)[:, -20]
    assert np.array_equal(np.take_along_axis(size, stored.leaders, axis=1).min(axis=1), least)
    assert stored.leaders.shape == (len(size), 20)
    kept = np.abs(stored.rows)
    led = np.take_along_axis(kept, stored.leaders, axis=1)
    assert (kept.max(axis=1) == led.max(axis=1)).all()
    # and their order is told by a scale of their own
    leaders = np.take_along_axis(all_rows(block), stored.leaders, axis=1)
    off = np.abs(np.take_along_axis(stored.rows, stored.leaders, axis=1) - leaders).max(axis=1)
    assert (off <= np.ptp(leaders, axis=1) / 255 * 1.001 + 1e-9).all()


# --- how large it gets ---


def test_a_limit_that_nothing_fits_is_refused(tmp_path: Path) -> None:
    captured = noise_capture([noisy_block(4, 160, 8)], 4, 160)
    with pytest.raises(ValueError, match="max_bytes=2000: the page takes"):
        write_explorer(captured, tmp_path / "page.html", max_bytes=2000)
    with pytest.raises(ValueError, match="max_bytes leaves 100 "):
        pack_blocks(captured.blocks, (160, 160), 100)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_frames_that_would_fill_the_page_are_made_smaller() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 400, 600, 3), dtype=np.uint8)
    uris = encode_frames(noise, 200_000)
    assert sum(map(len, uris)) <= 200_000
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in uris)


def test_small_frames_are_kept_as_they_are() -> None:
    from PIL import Image

    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    for frame, uri in zip(frames, encode_frames(frames, 100_000), strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
        assert np.array_equal(np.asarray(picture), frame)


# --- what is in the file, and what cannot get out of it ---


@pytest.fixture(scope="module")
def small() -> FakeCapture:
    return noise_capture([noisy_block(2, 48, 8)], 2, 48)


def test_names_from_outside_stay_text(tmp_path: Path, small: FakeCapture) -> None:
    block = dataclasses.replace(small.blocks["res0"], name=HOSTILE)
    captured = dataclasses.replace(small, blocks={HOSTILE: block}, classes=((HOSTILE, 0.5),), title=HOSTILE)
    page = PageReader(write_explorer(captured, tmp_path / "page.html"))
    plain = PageReader(write_explorer(small, tmp_path / "plain.html"))
    assert [tag for tag, _, _ in page.elements] == [tag for tag, _, _ in plain.elements]
    assert page.data["title"] == page.data["classes"][0][0] == page.data["blocks"][0]["name"] == HOSTILE
    assert page.texts("title") == page.texts("h1") == [HOSTILE]


@pytest.mark.parametrize("title", ["", "\udcff.mp4", "@@SCRIPT@@", "ä 日本 🎈"])
def test_any_file_name_can_be_the_title(tmp_path: Path, small: FakeCapture, title: str) -> None:
    page = PageReader(write_explorer(small, tmp_path / "page.html", title=title))
    assert page.data["title"] == title
    assert page.texts("h1") == [title.replace("\udcff", "?")]


def test_the_policy_allows_this_script_and_this_style_and_nothing_else(
    tmp_path: Path, small: FakeCapture
) -> None:
    page = PageReader(write_explorer(small, tmp_path / "page.html"))
    rules = policy(page)
    (script,) = [
        text
        for tag, attributes, text in page.elements
        if tag == "script" and attributes.get("type") == "module"
    ]
    (style,) = page.texts("style")
    for name, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(name) == [f"'sha256-{digest}'"]
    assert rules.pop("img-src") == ["data:"]
    assert rules.pop("require-trusted-types-for") == ["'script'"]
    assert rules == {"default-src": ["'none'"], "base-uri": ["'none'"], "form-action": ["'none'"]}


def test_the_page_points_at_nothing_outside(tmp_path: Path, small: FakeCapture) -> None:
    page = PageReader(write_explorer(small, tmp_path / "page.html"))
    for tag, attributes, _ in page.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "action", "data", "srcset"):
                assert value is not None
                assert value.startswith("#"), (tag, name, value)
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)


def test_what_is_known_of_the_clip_is_on_the_page(tmp_path: Path) -> None:
    page = PageReader(write_explorer(capture_of_film(4, 64), tmp_path / "sub" / "page.html"))
    data = page.data
    assert data["frames"]["seconds"] == [0, 0.27, 0.54, 0.81]
    assert data["classes"][0] == ["throwing", 0.871]
    assert [block["signed"] for block in data["blocks"]] == [False, False, False, False, True]
    assert [block["sumsToOne"] for block in data["blocks"]] == [True, True, True, False, False]
    block = capture_of_film(4, 64).blocks["res3.nonlocal1"]
    assert data["blocks"][0]["strongest"] == int(block.response().argmax())


def test_a_block_that_changes_nothing_has_no_strongest_place(tmp_path: Path, small: FakeCapture) -> None:
    class Still(FakeBlock):
        def response(self) -> NDArray[np.float32]:
            return np.zeros(self.queries.positions, np.float32)

    block = Still(
        **{field.name: getattr(small.blocks["res0"], field.name) for field in dataclasses.fields(FakeBlock)}
    )
    captured = dataclasses.replace(small, blocks={"res0": block})
    assert PageReader(write_explorer(captured, tmp_path / "page.html")).data["blocks"][0]["strongest"] is None


# --- whole or not at all, and what is refused ---


def test_what_fails_half_way_leaves_the_old_page(tmp_path: Path, small: FakeCapture) -> None:
    class Broken(FakeBlock):
        def rows(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
            if len(self.asked) >= 1:
                raise KeyboardInterrupt
            return super().rows(positions)

    block = Broken(
        **{field.name: getattr(small.blocks["res0"], field.name) for field in dataclasses.fields(FakeBlock)}
    )
    block.asked.clear()
    path = tmp_path / "page.html"
    path.write_text("the old page")
    with pytest.raises(KeyboardInterrupt):
        write_explorer(dataclasses.replace(small, blocks={"res0": block}), path)
    assert path.read_text() == "the old page"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_a_full_disk_leaves_the_old_page(
    tmp_path: Path, small: FakeCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    path.write_text("the old page")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_explorer(small, path)
    assert path.read_text() == "the old page"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_bad_input_is_refused_in_one_line(tmp_path: Path, small: FakeCapture) -> None:
    path = tmp_path / "page.html"
    with pytest.raises(ValueError, match="no block to show"):
        write_explorer(dataclasses.replace(small, blocks={}), path)
    with pytest.raises(ValueError, match=r"uint8 \(frames, height, width, 3\), got float64"):
        write_explorer(dataclasses.replace(small, frames=small.frames / 255), path)
    with pytest.raises(ValueError, match="the score of class 'jump' is nan"):
        write_explorer(dataclasses.replace(small, classes=(("jump", float("nan")),)), path)
    with pytest.raises(ValueError, match="max_bytes=0"):
        write_explorer(small, path, max_bytes=0)
    block = small.blocks["res0"]
    broken = dataclasses.replace(
        block, theta=np.where(np.arange(len(block.theta))[:, None] == 7, np.nan, block.theta)
    )
    with pytest.raises(ValueError, match=r"block 'embedded_gaussian8' has weights that are not finite"):
        write_explorer(dataclasses.replace(small, blocks={"res0": broken}), path)
    assert not path.exists()
