"""The figure and the film: arrows end where a plain computation says, and the words tell the truth."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from nonlocal_nn.data.decode import VideoReader
from nonlocal_nn.explain.capture.affinity import BlockAffinity, Capture
from nonlocal_nn.explain.capture.geometry import GridGeometry
from nonlocal_nn.explain.draw.animation import save_animation
from nonlocal_nn.explain.draw.captions import weight_text
from nonlocal_nn.explain.draw.figure import chosen_frames, draw, save
from nonlocal_nn.explain.draw.overlay import NEGATIVE, POSITIVE
from nonlocal_nn.explain.explanation import Explanation
from nonlocal_nn.explain.links import heat, largest, weight_by_frame

pytest.importorskip("matplotlib")

QUERIES = GridGeometry((4, 4, 6), (0, 1.5, 1.5), (2, 4, 4), (1, 4, 4))
KEYS = QUERIES.pooled((4, 2, 3))


def block_of(matrix: np.ndarray, pairwise: str = "embedded_gaussian", **options) -> BlockAffinity:
    responses = options.pop("responses", np.arange(96, dtype=np.float32)[::-1].copy())
    return BlockAffinity(
        "res3.nonlocal1",
        pairwise,
        "spacetime",
        1,
        QUERIES,
        KEYS,
        "gaussian" in pairwise,
        lambda positions: matrix[positions],
        responses,
    )


def captured_of(*blocks: BlockAffinity, frames: int = 8, title: str = "a.mp4") -> Capture:
    t, y, x, c = np.ogrid[:frames, :16, :24, :3]
    pictures = (127 + 120 * np.sin(0.2 * y + 0.15 * x + 0.9 * c + 0.4 * t)).astype(np.uint8)
    named = {f"{block.name}{'' if number == 0 else number}": block for number, block in enumerate(blocks)}
    return Capture(pictures, tuple(n / 10 for n in range(frames)), named, (("wave", 0.75),), title)


def rows_of(pairwise: str) -> np.ndarray:
    weights = np.random.default_rng(0).normal(size=(96, 24)).astype(np.float32)
    if pairwise == "dot_product":
        return weights / 24
    weights = np.maximum(weights, 0) if pairwise == "concatenation" else np.exp(weights)
    return weights / (24 if pairwise == "concatenation" else weights.sum(axis=1, keepdims=True))


def words(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


def arrows_of(axes) -> list:
    from matplotlib.patches import FancyArrowPatch

    return [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]


def test_arrows_end_at_the_largest_weights_and_are_as_thick_as_they():
    matrix = rows_of("embedded_gaussian")
    figure = draw(captured_of(block_of(matrix)), query=(2, 9, 13), arrows=7, frames=[0, 2, 4, 6])
    query = QUERIES.nearest(2, 9, 13)
    assert query == 1 * 24 + 2 * 6 + 3
    (axes,) = figure.axes
    arrows = arrows_of(axes)
    row = matrix[query]
    best = np.argsort(-row)[:7]
    centres = KEYS.centres()[best]
    pitch = (axes.get_xlim()[1] - axes.get_xlim()[0] - 24) / 3
    wanted = {(round(frame / 2 * pitch + column, 6), round(y, 6)) for frame, y, column in centres}
    assert len(arrows) == 7
    assert {tuple(np.round(arrow._posA_posB[1], 6)) for arrow in arrows} == wanted
    assert {tuple(np.round(arrow._posA_posB[0], 6)) for arrow in arrows} == {(round(pitch + 13.5, 6), 9.5)}
    assert pitch > 24  # frames do not overlap
    widths = sorted((arrow.get_linewidth() for arrow in arrows), reverse=True)
    np.testing.assert_allclose(widths, 0.7 + 2.5 * row[best] / row.max(), rtol=1e-6)


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "dot_product", "concatenation"])
def test_the_picture_says_what_its_weights_are(pairwise):
    from matplotlib.colors import to_hex

    matrix = rows_of(pairwise)
    figure = draw(captured_of(block_of(matrix, pairwise)), query=(0, 0, 0))
    colours = {to_hex(arrow.get_edgecolor()).upper() for arrow in arrows_of(figure.axes[0])}
    text = words(figure)
    if pairwise == "dot_product":
        assert colours == {POSITIVE, NEGATIVE}
        assert "unnormalised, and negative ones (blue) exist" in text
        calm = draw(captured_of(block_of(np.abs(matrix), pairwise)), query=(0, 0, 0))
        assert "can be negative, here none is" in words(calm)
    elif pairwise == "concatenation":
        assert colours == {POSITIVE}
        assert "unnormalised, a row does not sum to 1; none is negative" in text
        assert len(arrows_of(figure.axes[0])) == min(20, int((matrix[0] > 0).sum()))  # no arrow for a zero
    else:
        held = 100 * np.sort(matrix[0])[::-1][:20].sum()
        assert f"the 20 largest of 24 weights; they hold {held:.0f} % of the row" in text
        assert "a softmax" in text
    assert "a.mp4 — wave (75 %)" in text
    assert "frame 0, row 1.5, column 1.5" in text


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_capture_gives_the_same_bytes(suffix, tmp_path):
    captured = captured_of(block_of(rows_of("gaussian"), "gaussian"), title="$x_1$ & <b>")
    files = [save(draw(captured, show="both"), tmp_path / f"{n}{suffix}").read_bytes() for n in (1, 2)]
    assert files[0] == files[1]
    assert files[0].startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"1{suffix}", f"2{suffix}"]


def test_no_text_lies_on_another_or_outside_the_page():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    one = block_of(rows_of("dot_product"), "dot_product")
    long = "a very long name of a video, " * 12
    for captured, options in (
        (captured_of(one), {}),
        (captured_of(one, one, frames=32, title=long), {"block": "all", "show": "both", "frames": 8}),
        (captured_of(one, frames=1), {"query": (3, 4)}),
        (captured_of(one, frames=32), {"frames": 16, "query": "grid:3x1"}),
        (captured_of(one, frames=2), {"frames": 2, "show": "heat"}),
    ):
        figure = draw(captured, **options)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        boxes = [text.get_window_extent() for text in figure.texts if text.get_text()]
        for number, box in enumerate(boxes):
            assert min(box.x0, box.y0) >= 0, figure.texts[number].get_text()
            assert box.x1 <= figure.bbox.width
            assert box.y1 <= figure.bbox.height
            assert not [other for other in boxes[number + 1 :] if box.overlaps(other)]


def test_heat_is_the_weight_at_a_keys_centre_and_linear_between():
    row = np.random.default_rng(0).random(24)
    shown = heat(row, KEYS, frame=3, size=(16, 24))
    nearest = row.reshape(4, 2, 3)[2]  # of key frames 0, 2, 4, 6 the one at 4 takes frame 3
    rows, columns = KEYS.axis_centres()[1:]
    assert rows.tolist() == [3.5, 11.5]
    np.testing.assert_allclose(shown[3:5, 3:5].mean(), nearest[0, 0], atol=0.1)
    np.testing.assert_allclose(shown[0, 0], nearest[0, 0])
    np.testing.assert_allclose(shown[15, 23], nearest[1, 2])
    np.testing.assert_allclose(np.interp(columns, np.arange(24), shown[0]), nearest[0], atol=0.1)
    quarter = shown[0, 6]  # 2.5 of 8 pixels from the first column of keys to the second
    np.testing.assert_allclose(quarter, nearest[0, 0] + (nearest[0, 1] - nearest[0, 0]) * 2.5 / 8)


def test_shares_by_frame_and_the_largest_links():
    row = np.array([0, 0, -3, 0, 0, 0, 1, 0, 0, 0, 0, 1] + [0] * 12, dtype=np.float32)
    np.testing.assert_allclose(weight_by_frame(row, KEYS), [0.6, 0.4, 0, 0])
    assert weight_by_frame(row * 0, KEYS).tolist() == [0, 0, 0, 0]
    assert [(link.key, link.weight) for link in largest(row, KEYS, 5)] == [(2, -3), (6, 1), (11, 1)]


def test_frames_are_spread_evenly_and_hold_the_query():
    captured = captured_of(block_of(rows_of("gaussian")), frames=32)
    assert chosen_frames(captured, None, [0]) == [0, 6, 12, 19, 25, 31]
    assert chosen_frames(captured, None, [14.4]) == [0, 6, 14, 19, 25, 31]
    assert chosen_frames(captured, 1, [9]) == [9]
    assert chosen_frames(captured, None, [14, 2, 16]) == [2, 6, 14, 16, 25, 31]
    assert chosen_frames(captured, 2, [3, 5, 9]) == [3, 5]
    assert chosen_frames(captured, [31, 0, 4], [9]) == [0, 4, 31]
    assert chosen_frames(captured_of(block_of(rows_of("gaussian"))), None, [3]) == list(range(8))
    for wrong, message in ((0, "frames = 0"), (33, "frames = 33: the clip has 32"), ([0, 32], "0 .. 31")):
        with pytest.raises(ValueError, match=re.escape(message)):
            chosen_frames(captured, wrong, [0])


def test_blocks_and_queries_each_get_a_row():
    blocks = [block_of(rows_of("gaussian")), block_of(rows_of("dot_product"), "dot_product")]
    assert len(draw(captured_of(*blocks), "all").axes) == 2
    assert len(draw(captured_of(*blocks), query="grid:2x3").axes) == 6
    assert "res3.nonlocal1: dot product" in words(draw(captured_of(*blocks)))  # the last one
    assert "the position that responds most (frame 0, row 1.5, column 1.5)" in words(
        draw(captured_of(*blocks))
    )
    unchanged = block_of(rows_of("gaussian"), responses=np.zeros(96, np.float32))
    assert "the centre (frame 4, row 9.5, column 13.5)" in words(draw(captured_of(unchanged)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"query": (8, 0, 0)},
            r"query 8,0,0 .* lies outside the clip .* frames 0 \.\. 7, rows 0 \.\. 15, col",
        ),
        ({"query": (0, -1, 0)}, "query 0,-1,0 "),
        ({"query": (1, 2)}, "query 1,2 needs a frame"),
        ({"query": "middle"}, "query 'middle' is none of the ways to ask"),
        ({"query": "grid:0x2"}, "query 'grid:0x2' is none"),
        ({"query": (0, float("nan"), 0)}, "is not"),
        ({"block": "res3.nonlocal2"}, r"no non-local block 'res3\.nonlocal2' .* nearest are res3\.nonlocal1"),
        ({"arrows": 0}, "arrows = 0"),
        ({"show": "all"}, "show='all' does not exist"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw(captured_of(block_of(rows_of("gaussian"))), **options)


def test_a_query_without_any_weight_is_said_to_have_none():
    figure = draw(captured_of(block_of(np.zeros((96, 24), np.float32), "concatenation")), show="both")
    assert "All 24 weights of this query are zero." in words(figure)
    assert not arrows_of(figure.axes[0])


def test_a_weight_has_its_unit():
    soft, dot = block_of(rows_of("gaussian")), block_of(rows_of("dot_product"), "dot_product")
    assert [weight_text(w, soft) for w in (0.1234, 1.0, 1e-6, 0)] == ["12 %", "100 %", "<0.01 %", "0 %"]
    assert [weight_text(w, dot) for w in (0.1234, -2)] == ["0.12", "-2"]


def test_a_sequence_has_a_figure():
    grid = GridGeometry((1, 1, 10), (0, 0, 4), (1, 1, 8))
    block = BlockAffinity(
        "b",
        "gaussian",
        "spacetime",
        1,
        grid,
        grid,
        True,
        lambda p: np.eye(10, dtype="f4")[p][:, ::-1],
        np.ones(10, "f4"),
    )
    frames = np.zeros((1, 1, 80, 3), np.uint8)
    figure = draw(Capture(frames, None, {"b": block}, (), ""), query=(0, 0))
    (arrow,) = arrows_of(figure.axes[0])
    assert [tuple(point) for point in arrow._posA_posB] == [(4, 0), (76, 0)]
    assert "10 positions look at 10 keys" in words(figure)


def test_a_film_has_a_picture_for_each_frame_and_shows_the_clip(tmp_path):
    captured = captured_of(block_of(rows_of("dot_product"), "dot_product"))
    seen = []
    film = save_animation(captured, tmp_path / "a.mp4", query="centre", progress=lambda *at: seen.append(at))
    assert seen == [(n, 8) for n in range(1, 9)]
    with VideoReader(film) as reader:
        assert reader.num_frames == 8
        assert reader.fps == pytest.approx(10)
        clip = reader.read(range(8))
    assert np.abs(clip.frames[0].astype(int) - clip.frames[5]).mean() > 1

    from PIL import Image

    with Image.open(save_animation(captured, tmp_path / "a.gif", query="centre")) as gif:
        assert (gif.n_frames, gif.size) == (8, clip.frames.shape[2:0:-1])
        assert gif.info["duration"] == 100
        first = np.asarray(gif.convert("RGB")).astype(int)
    assert np.abs(first - clip.frames[0]).mean() < 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "a.mp4"]


def test_a_film_that_cannot_be(tmp_path):
    captured = captured_of(block_of(rows_of("gaussian")))
    with pytest.raises(ValueError, match=r"written as \.mp4, \.gif, not '\.avi'"):
        save_animation(captured, tmp_path / "a.avi")
    with pytest.raises(ValueError, match="one frame does not play"):
        save_animation(captured_of(block_of(rows_of("gaussian")), frames=1), tmp_path / "a.gif")
    with pytest.raises(ValueError, match="shows one block"):
        save_animation(captured, tmp_path / "a.gif", block="all")
    assert not list(tmp_path.iterdir())


def test_an_explanation_shows_itself_and_saves_by_the_ending(tmp_path: Path):
    explanation = Explanation(captured_of(block_of(rows_of("gaussian"))), query=(1, 2, 3), show="both")
    assert explanation._repr_png_().startswith(b"\x89PNG")
    for name in ("a.png", "a.svg", "a.pdf", "a.gif", "a.mp4", "a.html"):
        assert explanation.save(tmp_path / name).stat().st_size > 1000
    with pytest.raises(ValueError, match=r"a\.jpg: cannot write '\.jpg'; the endings are \.png, "):
        explanation.save(tmp_path / "a.jpg")
    assert "grid" in words(explanation.figure(query="grid"))
    assert "row 1.5, column 1.5" in words(explanation.figure())
