"""The figure: arrows end where a plain computation says, and the words tell the truth."""

from __future__ import annotations

import numpy as np
import pytest

from nonlocal_nn.explain.capture.affinity import Capture
from nonlocal_nn.explain.capture.block import BlockAffinity
from nonlocal_nn.explain.capture.geometry import GridGeometry
from nonlocal_nn.explain.draw.captions import weight_text
from nonlocal_nn.explain.draw.figure import draw, save
from nonlocal_nn.explain.draw.overlay import NEGATIVE, POSITIVE
from nonlocal_nn.explain.view import View
from nonlocal_nn.pairwise import get_pairwise
from tests.explain.captures import KEYS, QUERIES, block_of, captured_of, rows_of, words

pytest.importorskip("matplotlib")


def arrows_of(axes) -> list:
    from matplotlib.patches import FancyArrowPatch

    return [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]


def test_arrows_end_at_the_largest_weights_and_are_as_thick_as_they():
    matrix = rows_of("embedded_gaussian")
    figure = draw(captured_of(block_of(matrix)), View(query=(2, 9, 13), arrows=7, frames=[0, 2, 4, 6]))
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
    figure = draw(captured_of(block_of(matrix, pairwise)), View(query=(0, 0, 0)))
    colours = {to_hex(arrow.get_edgecolor()).upper() for arrow in arrows_of(figure.axes[0])}
    text = words(figure)
    if pairwise == "dot_product":
        assert colours == {POSITIVE, NEGATIVE}
        assert "unnormalised, and negative ones (blue) exist" in text
        calm = draw(captured_of(block_of(np.abs(matrix), pairwise)), View(query=(0, 0, 0)))
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
    files = [save(draw(captured, View(show="both")), tmp_path / f"{n}{suffix}").read_bytes() for n in (1, 2)]
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
        figure = draw(captured, View(**options))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        boxes = [text.get_window_extent() for text in figure.texts if text.get_text()]
        for number, box in enumerate(boxes):
            assert min(box.x0, box.y0) >= 0, figure.texts[number].get_text()
            assert box.x1 <= figure.bbox.width
            assert box.y1 <= figure.bbox.height
            assert not [other for other in boxes[number + 1 :] if box.overlaps(other)]


def test_blocks_and_queries_each_get_a_row():
    blocks = [block_of(rows_of("gaussian")), block_of(rows_of("dot_product"), "dot_product")]
    assert len(draw(captured_of(*blocks), View("all")).axes) == 2
    assert len(draw(captured_of(*blocks), View(query="grid:2x3")).axes) == 6
    assert "res3.nonlocal1: dot product" in words(draw(captured_of(*blocks), View()))  # the last one
    assert "the position that responds most (frame 0, row 1.5, column 1.5)" in words(
        draw(captured_of(*blocks), View())
    )
    unchanged = block_of(rows_of("gaussian"), responses=np.zeros(96, np.float32))
    assert "the centre (frame 4, row 9.5, column 13.5)" in words(draw(captured_of(unchanged), View()))


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
        draw(captured_of(block_of(rows_of("gaussian"))), View(**options))


def test_a_query_without_any_weight_is_said_to_have_none():
    figure = draw(captured_of(block_of(np.zeros((96, 24), np.float32), "concatenation")), View(show="both"))
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
        get_pairwise("gaussian"),
        "spacetime",
        1,
        grid,
        grid,
        lambda p: np.eye(10, dtype="f4")[p][:, ::-1],
        np.ones(10, "f4"),
    )
    frames = np.zeros((1, 1, 80, 3), np.uint8)
    figure = draw(Capture(frames, None, {"b": block}, (), ""), View(query=(0, 0)))
    (arrow,) = arrows_of(figure.axes[0])
    assert [tuple(point) for point in arrow._posA_posB] == [(4, 0), (76, 0)]
    assert "10 positions look at 10 keys" in words(figure)
