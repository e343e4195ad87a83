"""Pointer, touch and keys move the query, and what is then drawn is what the rows say."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open
from tests.browser.explored import Explored

BLOCKS = ["res3.nonlocal1", "res3.nonlocal3", "res4.nonlocal1", "res4.nonlocal3", "res4.nonlocal5"]


# --- what is drawn is what the rows say ---


@pytest.mark.parametrize("name", BLOCKS)
def test_arrows_end_where_the_highest_weights_are(explored: Explored, name: str) -> None:
    explored.choose_block(name)
    for frame, row, column in ((0, 12, 150), (3, 60, 75), (7, 110, 20)):
        explored.click(frame, row, column)
        assert explored.position == explored.block.queries.nearest(frame, row, column)
        explored.assert_arrows_are_right()


@pytest.mark.parametrize("name", BLOCKS)
def test_heat_is_the_row_in_every_frame(explored: Explored, name: str) -> None:
    explored.choose_block(name)
    explored.click(2, 70, 60)
    row, block = explored.row(), explored.block
    part = np.abs(row).reshape(block.keys.shape) / np.abs(row).max()
    # what the page states, and the 210 steps of the heat's alpha
    (stated,) = [
        float(words.split("to within ")[1].split(" %")[0]) / 100
        for words in [explored.page.locator("#about").inner_text()]
    ]
    steps = 1.01 / 210
    for area in [explored.tile(frame) for frame in range(8)] + [explored.page.locator("#stage")]:
        frame = (
            explored.frame
            if area.get_attribute("id") == "stage"
            else int(area.get_attribute("data-frame") or 0)
        )
        seen = explored.heat(area)
        bound = stated + steps * 2 * np.sqrt(np.maximum(seen, part[frame])) + 1e-6
        assert (np.abs(seen - part[frame]) <= bound).all(), frame


def test_heat_lies_over_the_places_that_it_is_about(explored: Explored) -> None:
    """The box of a key on the screen is its cell in the clip: key 0's is one step wide, around its centre."""
    box = explored.tile(1).locator("canvas.heat").bounding_box()
    assert box is not None
    keys = explored.block.keys
    left, top = explored.spot(
        explored.tile(1), keys.first[1] - 1.5 * keys.step[1], keys.first[2] - 1.5 * keys.step[2]
    )
    right, bottom = explored.spot(
        explored.tile(1),
        keys.first[1] + (keys.shape[1] + 0.5) * keys.step[1],
        keys.first[2] + (keys.shape[2] + 0.5) * keys.step[2],
    )
    seen = (box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"])
    assert np.allclose(seen, (left, top, right, bottom), atol=0.1)


def test_the_list_names_the_highest_weights(explored: Explored) -> None:
    explored.click(4, 40, 90)
    row, centres = explored.row(), explored.block.keys.centres()
    listed = explored.listed()
    keys = [
        int(line.get_attribute("data-key") or -1) for line in explored.page.locator("#weights tbody tr").all()
    ]
    assert set(keys) == set(explored.best())
    off = np.ptp(row[keys]) / 255  # leaders nearer than this may change places
    assert (np.diff(row[keys]) <= off).all()
    for rank, (line, key) in enumerate(zip(listed, keys, strict=True), start=1):
        assert line[0] == str(rank)
        assert float(line[1].rstrip(" %")) == pytest.approx(100 * row[key], rel=0.02, abs=0.006)
        assert [float(text) for text in line[2:]] == pytest.approx(list(centres[key]), abs=0.51)


def test_charts_are_the_shares_of_the_row(explored: Explored) -> None:
    explored.click(5, 90, 100)
    block, size = explored.block, np.abs(explored.row())
    size = size / size.sum()
    centres = block.keys.centres()
    read = "(bars) => bars.map((bar) => Number(bar.dataset.share))"
    frames = explored.page.locator("#frame-chart [data-share]").evaluate_all(read)
    assert len(frames) == 8
    assert frames == pytest.approx(
        [size[centres[:, 0] == frame].sum() for frame in range(8)], abs=0.5001 / 255
    )
    outside = 1 - size[centres[:, 0] == 5].sum()
    text = explored.page.locator("#frame-chart-text").inner_text()
    assert abs(float(text.split(". ")[1].split(" %")[0]) / 100 - outside) < 0.02
    expect(explored.page.locator("#frame-chart .label.lit")).to_have_text("0")
    place = block.queries.centres()[explored.position, 1:]
    distance = np.hypot(*(centres[:, 1:] - place).T)
    spaces = explored.page.locator("#space-chart [data-share]").evaluate_all(read)
    inside = [size[(distance >= 20 * n) & (distance < 20 * (n + 1))].sum() for n in range(len(spaces))]
    assert spaces == pytest.approx(inside, abs=0.5001 / 255)
    marks = explored.page.locator("#frame-chart .mean")
    assert marks.count() == 8


def test_negative_weights_are_told_apart(explored: Explored) -> None:
    expect(explored.page.locator("#note")).to_be_hidden()
    explored.choose_block("res4.nonlocal5")
    expect(explored.page.locator("#note")).to_contain_text("do not add up to one")
    expect(explored.page.locator("#note")).to_contain_text("Negative ones are blue and dashed")
    rows = explored.block.rows(np.arange(explored.block.queries.positions))
    leading = np.take_along_axis(rows, np.argsort(-np.abs(rows), axis=1)[:, :20], axis=1)
    mixed = int(np.abs((leading < 0).sum(axis=1) - 10).argmin())  # about as many negative as positive
    frame, place_row, column = explored.block.queries.centres()[mixed]
    explored.click(int(frame), place_row, column)
    row = explored.row()
    marked = explored.page.locator("#wall-marks .arrow.negative").evaluate_all(
        "(marks) => marks.map((mark) => Number(mark.dataset.key)).sort((a, b) => a - b)"
    )
    assert marked == sorted(key for key in explored.best() if row[key] < 0)
    assert 0 < len(marked) < 20
    read_colours = """(canvas) => {
      const context = canvas.getContext("2d");
      return Array.from(context.getImageData(1, 1, canvas.width - 2, canvas.height - 2).data);
    }"""
    colours = explored.tile(0).locator("canvas.heat").evaluate(read_colours)
    pixels = np.array(colours, float).reshape(-1, 4)
    first = row[: len(pixels)]
    is_strong = np.abs(first) > 0.2 * np.abs(row).max()
    is_cold = pixels[:, 2] > pixels[:, 0]
    assert (is_cold == (first < 0))[is_strong].all()
    explored.choose_block("res4.nonlocal3")
    expect(explored.page.locator("#note")).to_contain_text("concatenation: the weights are divided")
    expect(explored.page.locator("#note")).not_to_contain_text("Negative")


def test_the_stage_shows_the_arrows_of_its_frame(explored: Explored) -> None:
    explored.click(3, 60, 75)
    in_frame = {key for key in explored.best() if explored.block.keys.centres()[key, 0] == 3}
    stage = explored.page.locator("#stage")
    tips = explored.tips("#stage-marks")
    assert tips.keys() == in_frame
    for key, tip in tips.items():
        _, row, column = explored.block.keys.centres()[key]
        assert np.hypot(*np.subtract(tip, explored.spot(stage, row, column))) < 0.1
    expect(explored.page.locator("#stage-marks .query.elsewhere")).to_have_count(0)
    explored.press(".")
    assert explored.tips("#stage-marks").keys() == {
        key for key in explored.best() if explored.block.keys.centres()[key, 0] == 4
    }
    expect(explored.page.locator("#stage-marks .query.elsewhere")).to_have_count(1)


# --- pointer ---


def test_a_drag_takes_the_query_along_over_the_frames(explored: Explored) -> None:
    mouse, nearest = explored.page.mouse, explored.block.queries.nearest
    mouse.move(*explored.spot(explored.tile(1), 30, 30))
    mouse.down()
    for frame, row, column in ((1, 30, 30), (1, 100, 120), (2, 100, 10), (6, 20, 140)):
        mouse.move(*explored.spot(explored.tile(frame), row, column), steps=3)
        explored.settle()
        assert explored.position == nearest(frame, row, column)
        assert explored.frame == frame
    explored.assert_arrows_are_right()
    mouse.up()
    here = explored.position
    mouse.move(*explored.spot(explored.tile(0), 10, 10), steps=3)
    explored.settle()
    assert explored.position == here


def test_a_drag_on_the_stage_stays_on_its_edge(explored: Explored) -> None:
    explored.press("Home")
    stage, mouse = explored.page.locator("#stage"), explored.page.mouse
    mouse.move(*explored.spot(stage, 50, 50))
    mouse.down()
    mouse.move(*explored.spot(stage, 400, 80), steps=4)
    explored.settle()
    assert explored.position == explored.block.queries.nearest(0, 159, 80)
    mouse.up()


def test_other_buttons_do_nothing(explored: Explored) -> None:
    before = explored.position
    explored.page.mouse.click(*explored.spot(explored.tile(0), 5, 5), button="right")
    explored.settle()
    assert explored.position == before


def test_pointing_at_a_place_tells_its_weight_and_lights_its_arrow(explored: Explored) -> None:
    explored.click(3, 60, 75)
    key = explored.best()[3]
    frame, row, column = explored.block.keys.centres()[key]
    explored.page.mouse.move(*explored.spot(explored.tile(int(frame)), row, column))
    tip = explored.page.locator("#tip")
    expect(tip).to_be_visible()
    weight, place = tip.inner_text().split(" · ")
    assert float(weight.rstrip(" %")) == pytest.approx(100 * explored.row()[key], rel=0.02, abs=0.006)
    assert place == f"frame {frame:.0f}, row {round(row + 0.01)}, column {round(column + 0.01)}"
    lit = explored.page.locator(".arrow.lit-key")
    assert set(lit.evaluate_all("(marks) => marks.map((mark) => Number(mark.dataset.key))")) == {key}
    expect(explored.page.locator(f'#weights tr[data-key="{key}"]')).to_have_class("lit-key")
    explored.page.mouse.move(2, 2)
    expect(tip).to_be_hidden()
    expect(lit).to_have_count(0)


def test_a_line_of_the_list_is_a_place_to_go_to(explored: Explored) -> None:
    key = explored.best()[2]
    frame, row, column = explored.block.keys.centres()[key]
    explored.page.locator(f'#weights tr[data-key="{key}"]').hover()
    expect(explored.page.locator(f'#wall-marks .arrow.lit-key[data-key="{key}"]')).to_have_count(1)
    explored.page.locator(f'#weights tr[data-key="{key}"]').click()
    explored.settle()
    assert explored.position == explored.block.queries.nearest(frame, row, column)


def test_touch_taps_and_drags(open_page: Open) -> None:
    phone = open_page(width=390, height=844, has_touch=True, is_mobile=True, device_scale_factor=2)
    page, stage = phone.page, phone.page.locator("#stage")
    stage.scroll_into_view_if_needed()
    frame = phone.frame
    page.touchscreen.tap(*phone.spot(stage, 40, 40))
    phone.settle()
    assert phone.position == phone.block.queries.nearest(frame, 40, 40)
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *spots: tuple[float, float]) -> None:
        points = [{"x": x, "y": y} for x, y in spots]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    scrolled = page.evaluate("scrollY")
    touch("touchStart", phone.spot(stage, 40, 40))
    for row in (60, 90, 120):  # straight down: the stage takes it, the page does not scroll
        touch("touchMove", phone.spot(stage, row, 100))
        phone.settle()
        assert phone.position == phone.block.queries.nearest(frame, row, 100)
    touch("touchEnd")
    assert page.evaluate("scrollY") == scrolled

    phone.tile(0).scroll_into_view_if_needed()
    touch("touchStart", phone.spot(phone.tile(0), 80, 20))
    for column in (60, 100, 140):
        touch("touchMove", phone.spot(phone.tile(0), 80, column))
    touch("touchMove", phone.spot(phone.tile(1), 80, 60))
    phone.settle()
    touch("touchEnd")
    assert phone.position == phone.block.queries.nearest(1, 80, 60)
    assert phone.frame == 1
    phone.assert_arrows_are_right()


# --- keys ---


def test_arrow_keys_move_by_one_position(explored: Explored) -> None:
    explored.click(3, 60, 75)
    _, height, width = explored.block.queries.shape
    here = explored.position
    for key, by in (("ArrowRight", 1), ("ArrowDown", width), ("ArrowLeft", -1), ("ArrowUp", -width)):
        explored.press(key)
        here += by
        assert explored.position == here
        explored.assert_arrows_are_right()
    explored.press("PageDown")
    assert explored.position == here + height * width
    assert explored.frame == 4
    explored.press("PageUp", "PageUp")
    assert explored.position == here - height * width
    assert explored.frame == 2
    explored.assert_arrows_are_right()


def test_keys_stop_at_the_edges(explored: Explored) -> None:
    explored.press(*["ArrowLeft"] * 25, *["ArrowUp"] * 25, *["PageUp"] * 9)
    assert explored.position == 0
    explored.press(*["ArrowRight"] * 25, *["ArrowDown"] * 25, *["PageDown"] * 9)
    assert explored.position == explored.block.queries.positions - 1


def test_keys_for_all_the_rest(explored: Explored) -> None:
    for number, name in enumerate(BLOCKS, start=1):
        explored.press(str(number))
        expect(explored.page.get_by_role("radio", name=name)).to_be_checked()
        assert explored.block_name == name
    explored.press("1", "+", "+", "-")
    assert len(explored.tips()) == 21
    body = explored.page.locator("body")
    for key, mode in (("a", "arrows"), ("h", "heat"), ("b", "both")):
        explored.press(key)
        expect(body).to_have_attribute("data-mode", mode)
    explored.press("End")
    assert explored.frame == 7
    explored.press(",")
    assert explored.frame == 6
    explored.press("c")
    assert explored.position == explored.block.queries.nearest(3, 79.5, 79.5)
    explored.press("s")
    assert explored.position == int(explored.block.response().argmax())
    explored.press("?")
    dialog = explored.page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    here = explored.position
    explored.press("ArrowRight")
    assert explored.position == here  # behind the dialog nothing moves
    explored.press("Escape")
    expect(dialog).to_be_hidden()


def test_controls_keep_the_keys_that_they_need(explored: Explored) -> None:
    here = explored.position
    explored.page.locator("#arrow-count").focus()
    explored.press("ArrowRight", "ArrowRight")
    assert explored.position == here
    assert len(explored.tips()) == 22
    explored.page.get_by_role("radio", name="res3.nonlocal1").focus()
    explored.press("ArrowRight")
    assert explored.block_name == "res3.nonlocal3"
    explored.page.get_by_role("button", name="Help").focus()
    explored.press("Space")
    expect(explored.page.get_by_role("dialog")).to_be_visible()
    expect(explored.page.locator("#play")).to_have_attribute("aria-label", "Play")
