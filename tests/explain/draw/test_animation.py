"""The film: a picture for each frame, in both formats, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from nonlocal_nn.data.decode import VideoReader
from nonlocal_nn.explain.draw.animation import save_animation
from nonlocal_nn.explain.view import View
from tests.explain.captures import block_of, captured_of, rows_of

pytest.importorskip("matplotlib")


def test_a_film_has_a_picture_for_each_frame_and_shows_the_clip(tmp_path):
    captured = captured_of(block_of(rows_of("dot_product"), "dot_product"))
    seen = []
    view = View(query="centre", show="both")
    film = save_animation(captured, tmp_path / "a.mp4", view, progress=lambda *at: seen.append(at))
    assert seen == [(n, 8) for n in range(1, 9)]
    with VideoReader(film) as reader:
        assert reader.num_frames == 8
        assert reader.fps == pytest.approx(10)
        clip = reader.read(range(8))
    assert np.abs(clip.frames[0].astype(int) - clip.frames[5]).mean() > 1

    from PIL import Image

    with Image.open(save_animation(captured, tmp_path / "a.gif", view)) as gif:
        assert (gif.n_frames, gif.size) == (8, clip.frames.shape[2:0:-1])
        assert gif.info["duration"] == 100
        first = np.asarray(gif.convert("RGB")).astype(int)
    assert np.abs(first - clip.frames[0]).mean() < 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "a.mp4"]


def test_a_film_that_cannot_be(tmp_path):
    captured = captured_of(block_of(rows_of("gaussian")))
    with pytest.raises(ValueError, match=r"written as \.mp4, \.gif, not '\.avi'"):
        save_animation(captured, tmp_path / "a.avi", View())
    with pytest.raises(ValueError, match="one frame does not play"):
        save_animation(captured_of(block_of(rows_of("gaussian")), frames=1), tmp_path / "a.gif", View())
    with pytest.raises(ValueError, match="shows one block"):
        save_animation(captured, tmp_path / "a.gif", View(block="all"))
    assert not list(tmp_path.iterdir())
