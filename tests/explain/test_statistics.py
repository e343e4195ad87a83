"""How far blocks look, against sums over every pair written out."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
from torch import nn

from nonlocal_nn import NonLocalBlock
from nonlocal_nn.explain.capture.affinity import capture
from nonlocal_nn.explain.capture.geometry import GridGeometry
from nonlocal_nn.explain.statistics import (
    BlockMeasures,
    Measures,
    average,
    measure,
    measure_blocks,
    plot,
    seen_keys,
    write_csv,
)
from tests.blocks.plain_block import plain_affinity_and_g, randomise


def plain_measures(rows, positions, queries, keys) -> list[float]:
    sums = np.zeros(4)
    for row, position in zip(rows, positions, strict=True):
        total = sum(abs(float(weight)) for weight in row)
        frame, y, x = queries.centres()[position]
        for key, weight in enumerate(row):
            share = abs(float(weight)) / total
            key_frame, key_y, key_x = keys.centres()[key]
            sums += (
                share * math.dist((y, x), (key_y, key_x)),
                share * abs(frame - key_frame),
                -share * math.log2(share) if share > 0 else 0,
                share * (key_frame != frame),
            )
    return (sums / len(rows)).tolist()


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "dot_product"])
def test_measures_are_the_sums_written_out(pairwise):
    block = randomise(NonLocalBlock(4, pairwise=pairwise)).eval()
    model = nn.Sequential(nn.Conv3d(3, 4, 3, stride=(1, 2, 3), padding=1), block)
    clip = torch.randn(1, 3, 3, 12, 18)
    (found,) = measure_blocks(capture(model, clip), queries=1000, video="a.mp4")
    matrix = plain_affinity_and_g(block, model[0](clip))[0][0].detach().numpy()
    queries = GridGeometry((3, 6, 6), (0, 0, 0), (1, 2, 3))
    keys = GridGeometry((3, 3, 3), (0, 1, 1.5), (1, 4, 6))
    assert (found.video, found.block, found.queries) == ("a.mp4", "1", 108)
    np.testing.assert_allclose(
        list(vars(found.measured).values()), plain_measures(matrix, range(108), queries, keys), rtol=1e-4
    )
    even = plain_measures(np.ones((108, 27)), range(108), queries, keys)
    np.testing.assert_allclose(list(vars(found.even).values()), even, rtol=1e-9)
    assert found.even.entropy_bits == pytest.approx(math.log2(27))
    assert found.even.outside_frame == pytest.approx(2 / 3)


@pytest.mark.parametrize(("span", "groups"), [("spacetime", 2), ("space", 1), ("time", 2), ("time", 1)])
def test_keys_that_are_seen_are_those_with_weight(span, groups):
    block = randomise(NonLocalBlock(4, span=span, temporal_groups=groups)).eval()
    (found,) = capture(nn.Sequential(block), torch.randn(1, 4, 4, 4, 6)).blocks.values()
    everything = np.arange(96)
    np.testing.assert_array_equal(seen_keys(found, everything) > 0, found.rows(everything) > 0)
    (measures,) = measure_blocks(capture(nn.Sequential(block), torch.randn(1, 4, 4, 4, 6)), 500)
    if span == "space":
        assert measures.measured.outside_frame == measures.measured.time_frames == 0
    if span == "time":
        assert measures.measured.space_pixels == 0


def test_some_positions_stand_for_all():
    model = nn.Sequential(randomise(NonLocalBlock(3)).eval())
    captured = capture(model, torch.randn(1, 3, 4, 8, 8))
    (few,) = measure_blocks(captured, queries=10)
    assert few.queries == 10
    (block,) = captured.blocks.values()
    positions = np.linspace(0, 255, 10).round().astype(int)
    by_hand = measure(block.rows(positions), positions, block.queries, block.keys)
    np.testing.assert_allclose(list(vars(few.measured).values()), list(vars(by_hand).values()))
    with pytest.raises(ValueError, match="queries = 0"):
        measure_blocks(captured, queries=0)


def test_a_row_without_weight_counts_nothing():
    grid = GridGeometry((1, 1, 3))
    assert measure(np.zeros((1, 3)), np.array([1]), grid, grid) == Measures(0, 0, 0, 0)


def test_means_table_and_plot(tmp_path):
    one, two, even = Measures(1, 2, 3, 0.5), Measures(3, 4, 5, 1.0), Measures(5, 5, 5, 0.75)
    measures = [
        BlockMeasures("a, b.mp4", "res3", 10, one, even),
        BlockMeasures("a, b.mp4", "res4", 10, two, even),
        BlockMeasures("c.mp4", "res3", 30, two, even),
    ]
    means = average(measures)
    assert [(mean.block, mean.queries, mean.measured) for mean in means] == [
        ("res3", 40, Measures(2, 3, 4, 0.75)),
        ("res4", 10, two),
    ]
    write_csv(measures, tmp_path / "deep" / "s.csv")
    with (tmp_path / "deep" / "s.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["video"], row["block"], row["queries"]) for row in rows][1:] == [
        ("a, b.mp4", "res4", "10"),
        ("c.mp4", "res3", "30"),
    ]
    assert [float(rows[0][name]) for name in ("space_pixels", "time_frames", "entropy_bits")] == [1, 2, 3]
    assert [float(rows[2][name]) for name in ("outside_frame", "even_outside_frame")] == [1, 0.75]
    figure = plot(measures, "title")
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    assert heights == [[2, 3], [3, 4], [4, 5], [75, 100]]
    assert "mean over 2 videos" in figure.texts[1].get_text()
    with pytest.raises(ValueError, match="no video was measured"):
        plot([])
