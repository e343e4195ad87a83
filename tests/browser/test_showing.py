"""What is shown and how: blocks, numbers of arrows, frames, playing, the picture to keep, the address."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from nonlocal_nn.explain.capture.geometry import GridGeometry
from nonlocal_nn.explain.explorer import write_explorer
from tests.browser.conftest import Open
from tests.browser.explored import Explored
from tests.explain.explorer.page_reader import PageReader
from tests.explain.scene import HOSTILE, FakeBlock, FakeCapture, capture_of_film, noise_capture, noisy_block


def test_another_block_is_asked_about_the_same_place(explored: Explored) -> None:
    explored.click(2, 33, 121)
    for name in ("res4.nonlocal1", "res4.nonlocal5", "res3.nonlocal1"):
        explored.choose_block(name)
        assert explored.position == explored.block.queries.nearest(2, 33, 121)
        explored.assert_arrows_are_right()
        expect(explored.page.locator("#about")).to_contain_text(explored.block.pairwise)


@pytest.mark.parametrize("count", [1, 7, 100])
def test_as_many_arrows_as_wished(explored: Explored, count: int) -> None:
    explored.page.locator("#arrow-count").fill(str(count))
    explored.settle()
    assert len(explored.tips()) == len(explored.listed()) == count
    expect(explored.page.locator("#arrow-count-text")).to_have_text(str(count))
    if count <= 20:  # these are exact
        explored.assert_arrows_are_right(count)
    else:
        size = np.abs(explored.row())
        least = np.sort(size)[-count]
        assert all(size[key] >= least - size.max() / 255 for key in explored.tips())


def test_thicker_where_the_weight_is_larger(explored: Explored) -> None:
    explored.choose_block("res3.nonlocal3")
    explored.click(3, 36, 70)  # the ball
    read_widths = """(marks) => marks.map((mark) => {
      const line = mark.querySelector(".line");
      return [Number(mark.dataset.key), Number(line.getAttribute("stroke-width"))];
    })"""
    widths = dict(explored.page.locator("#wall-marks .arrow").evaluate_all(read_widths))
    drawn = [widths[key] for key in explored.best()]
    assert (np.diff(drawn) <= max(drawn) / 255).all()
    assert drawn[0] > 1.5 * drawn[-1]


def test_heat_or_arrows_or_both(explored: Explored) -> None:
    heat, line = explored.tile(1).locator(".heat"), explored.page.locator("#wall-marks .arrow .line").first
    for name, has_heat, has_arrows in (("Heat", True, False), ("Arrows", False, True), ("Both", True, True)):
        explored.page.get_by_role("radio", name=name).check(force=True)
        assert heat.is_visible() == has_heat
        assert line.is_visible() == has_arrows


def test_fewer_frames(open_page: Open, tmp_path: Path) -> None:
    captured = capture_of_film(32, 64)
    explored = open_page(write_explorer(captured, tmp_path / "page.html"), captured)
    assert explored.shown_frames == list(range(32))
    explored.page.locator("#shown").select_option("4")
    explored.settle()
    assert explored.shown_frames == [0, 10, 21, 31]
    explored.click(21, 40, 40)
    assert explored.position == explored.block.queries.nearest(21, 40, 40)
    explored.assert_arrows_are_right()


def test_playing_steps_through_the_clip_and_stops(explored: Explored) -> None:
    explored.press("Home", "Space")
    expect(explored.page.get_by_role("button", name="Stop")).to_be_visible()
    here = explored.position
    seen = {explored.frame}
    for _ in range(40):
        explored.page.wait_for_timeout(60)
        seen.add(explored.frame)
        if len(seen) >= 4:
            break
    assert len(seen) >= 4
    assert explored.position == here
    explored.page.get_by_role("button", name="Stop").click()
    stopped = explored.frame
    explored.page.wait_for_timeout(700)
    assert explored.frame == stopped
    pictures = explored.page.locator("#stage img, #wall .tile img").evaluate_all(
        "(all) => all.map((one) => one.src)"
    )
    assert pictures[0] == pictures[1 + stopped]
    explored.page.locator("#frame").fill("5")
    explored.page.get_by_role("button", name="Next frame").click()
    explored.page.get_by_role("button", name="Next frame").click()
    explored.page.get_by_role("button", name="Previous frame").click()
    assert explored.frame == 6


def test_the_query_can_travel_with_the_clip(explored: Explored) -> None:
    explored.click(1, 40, 60)
    explored.page.get_by_label("The query travels").check()
    explored.press(".", ".")
    assert explored.position == explored.block.queries.nearest(3, 40, 60)
    explored.assert_arrows_are_right()
    explored.page.locator("#play").click()
    explored.page.wait_for_timeout(900)
    explored.page.locator("#play").click()
    assert explored.position == explored.block.queries.nearest(explored.frame, 40, 60)
    assert explored.frame != 3


def test_the_clip_says_what_it_is(explored: Explored) -> None:
    page = explored.page
    assert page.title() == page.get_by_role("heading", level=1).inner_text() == "thrown_ball.mp4"
    expect(page.locator("#summary")).to_have_text("8 frames of 160 × 160 pixels · 5 non-local blocks")
    assert page.locator("#classes li").all_inner_texts()[:2] == ["throwing\n87 %", "juggling balls\n6.4 %"]
    explored.press("End")
    expect(page.locator("#stage-title")).to_have_text("Frame 7 of 0–7 · 1.89 s")


def test_every_way_of_storing_is_read_as_it_was_written(open_page: Open, tmp_path: Path) -> None:
    """The page's script and the Python reader, from one file, arrive at the same weights."""
    seen = set()
    for pairwise in ("embedded_gaussian", "dot_product"):
        block = noisy_block(4, 160, 8, pairwise, sharpness=3.0)
        captured = noise_capture([block], 4, 160)
        for max_bytes in (10_000_000, 560_000, 300_000, 100_000):
            path = write_explorer(captured, tmp_path / f"{pairwise}{max_bytes}.html", max_bytes=max_bytes)
            stored = PageReader(path).block(block.name)
            about = stored.about
            seen.add((pairwise, about["top"] is None, bool(about["leaders"]), about["queries"]["step"][1]))
            page = open_page(path, captured).page
            rows = stored.rows
            for position in (0, len(rows) // 2 + 3, len(rows) - 1):
                row = page.evaluate("(position) => Array.from(explorer.blocks[0].row(position))", position)
                assert np.allclose(row, rows[position], atol=2e-6 * np.abs(rows[position]).max() + 1e-9)
    signed = {kind[1:] for kind in seen if kind[0] == "dot_product"}
    assert {(full, led) for full, led, _ in signed} == {(True, True), (False, True), (False, False)}
    plain = {kind[1:] for kind in seen if kind[0] == "embedded_gaussian"}
    assert {(full, led) for full, led, _ in plain} == {(True, True), (False, False)}
    assert any(step > 8 for _, _, step in signed)
    assert any(step > 8 for _, _, step in plain)


def test_differences_of_rows_are_added_up_again(
    explored: Explored, film_page: Path, film_capture: FakeCapture
) -> None:
    """Neighbouring places look at much the same: their rows are stored as differences."""
    stored = PageReader(film_page).block("res3.nonlocal1")
    assert stored.about["arrays"]["codes"]["differences"]
    row = explored.page.evaluate("Array.from(explorer.blocks[0].row(2345))")
    assert np.allclose(row, stored.rows[2345], atol=1e-7)
    rows = film_capture.blocks["res3.nonlocal1"].rows(np.array([2345]))[0]
    assert np.abs(row - rows).max() <= np.ptp(rows) / stored.about["steps"] * 1.001


def test_an_image_has_one_large_frame(open_page: Open, tmp_path: Path) -> None:
    captured = dataclasses.replace(capture_of_film(1, 96), frame_seconds=None)
    explored = open_page(write_explorer(captured, tmp_path / "page.html"), captured)
    expect(explored.page.locator("#wall")).to_be_hidden()
    expect(explored.page.locator("#play")).to_be_hidden()
    expect(explored.page.locator("#summary")).to_have_text("1 frame of 96 × 96 pixels · 5 non-local blocks")
    stage = explored.page.locator("#stage")
    explored.page.mouse.click(*explored.spot(stage, 30, 70))
    explored.settle()
    assert explored.position == explored.block.queries.nearest(0, 30, 70)
    expect(explored.page.locator("#row-facts")).to_contain_text("Largest weight")
    with explored.page.expect_download() as download:
        explored.page.get_by_role("button", name="Save picture").click()
    saved, box = Image.open(download.value.path()), stage.bounding_box()
    assert box is not None
    assert saved.size == (round(2 * box["width"]), round(2 * box["height"]))
    tips = explored.tips("#stage-marks")
    assert tips.keys() == set(explored.best())
    for key, tip in tips.items():
        _, row, column = explored.block.keys.centres()[key]
        assert np.hypot(*np.subtract(tip, explored.spot(stage, row, column))) < 0.1


def test_the_picture_to_keep_is_what_is_seen(explored: Explored) -> None:
    explored.click(3, 60, 75)
    with explored.page.expect_download() as download:
        explored.page.get_by_role("button", name="Save picture").click()
    assert download.value.suggested_filename == "nonlocal.png"
    saved = Image.open(download.value.path()).convert("RGB")
    wall = explored.page.locator("#wall")
    box = wall.bounding_box()
    assert box is not None
    assert saved.size == (round(2 * box["width"]), round(2 * box["height"]))
    explored.page.mouse.move(2, 2)
    seen = Image.open(io.BytesIO(wall.screenshot())).convert("RGB")
    small = np.asarray(saved.resize((seen.width // 4, seen.height // 4), Image.Resampling.BOX), float)
    other = np.asarray(seen.resize((seen.width // 4, seen.height // 4), Image.Resampling.BOX), float)
    assert np.mean(np.abs(small - other)) < 6
    arrow = np.abs(np.asarray(saved, float) - np.array([255, 196, 46])).sum(axis=2) < 60
    assert arrow.mean() > 0.002


def test_the_address_remembers_the_view(open_page: Open) -> None:
    explored = open_page()
    explored.choose_block("res3.nonlocal3")
    explored.page.locator("#arrow-count").fill("33")
    explored.press("h")
    explored.click(6, 50, 100)
    explored.page.wait_for_timeout(600)
    address = "#" + explored.page.url.split("#")[1]
    again = open_page(address=address)
    assert again.block_name == "res3.nonlocal3"
    assert again.position == explored.position
    assert again.frame == 6
    expect(again.page.locator("body")).to_have_attribute("data-mode", "heat")
    expect(again.page.locator("#arrow-count-text")).to_have_text("33")


@pytest.mark.parametrize(
    "address", ["#block=99&at=a,b,c&arrows=-3&show=x", "#at=999,999,999", "#%", "#at=1,2"]
)
def test_a_damaged_address_is_no_obstacle(open_page: Open, address: str) -> None:
    explored = open_page(address=address)
    assert explored.block_name == "res3.nonlocal1"
    explored.assert_arrows_are_right()


@pytest.mark.parametrize("size", [(60, 200), (200, 60), (1, 96)])
def test_frames_of_any_shape(open_page: Open, tmp_path: Path, size: tuple[int, int]) -> None:
    """Wide, tall, and a sequence, whose frame is one row of pixels."""
    frames = np.ascontiguousarray(
        capture_of_film(2, 200).frames[: 1 if size[0] == 1 else 2, : size[0], : size[1]]
    )
    queries = GridGeometry((len(frames), max(1, size[0] // 10), size[1] // 10), (0, 4.5, 4.5), (1, 10, 10))
    generator = np.random.default_rng(0)
    theta, phi = generator.normal(size=(2, queries.positions, 3))
    captured = FakeCapture(frames, {"one": FakeBlock("one", queries, queries, theta, phi)})
    explored = open_page(write_explorer(captured, tmp_path / "page.html"), captured)
    stage = explored.page.locator("#stage")
    box = stage.bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(min(6, size[1] / size[0]), rel=0.02)
    row, column = (size[0] - 1) * 0.7, size[1] * 0.6
    explored.page.mouse.click(*explored.spot(stage, row, column))
    explored.settle()
    assert explored.position == queries.nearest(explored.frame, row, column)
    if len(frames) > 1:
        explored.assert_arrows_are_right()


def test_names_from_outside_run_nothing(open_page: Open, tmp_path: Path) -> None:
    small = noise_capture([noisy_block(2, 48, 8)], 2, 48)
    block = dataclasses.replace(small.blocks["res0"], name=HOSTILE)
    captured = dataclasses.replace(small, blocks={HOSTILE: block}, classes=((HOSTILE, 0.5),), title=HOSTILE)
    explored = open_page(write_explorer(captured, tmp_path / "page.html"), captured)
    page = explored.page
    page.set_viewport_size({"width": 390, "height": 800})
    explored.settle()  # the page lays itself out anew in the frame after
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.wait_for_timeout(300)  # a dialog would have come up, and `open_page` would have noted it
    for place in ("h1", ".class-name", "#blocks span"):
        assert page.locator(place).first.text_content() == HOSTILE


def test_the_policy_lets_no_other_script_run(explored: Explored) -> None:
    """As a second line behind the escaping: a script that got in would not run."""
    blocked = explored.page.evaluate(
        """() => new Promise((done) => {
          document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
          const script = document.createElement("script");
          try { script.textContent = "globalThis.ran = true"; document.body.append(script); }
          catch (error) { done(error.name); }
          setTimeout(() => done("nothing"), 2000);
        })"""
    )
    assert blocked in ("TypeError", "require-trusted-types-for", "script-src-elem")
    assert explored.page.evaluate("globalThis.ran") is None
    explored.watch.forgive("The action has been blocked")
