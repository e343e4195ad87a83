"""Access: names and order of controls, what is announced, contrast, small screens, touch, reduced motion."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open
from tests.browser.explored import Explored

CONTROLS = {"button", "checkbox", "combobox", "radio", "slider", "textbox", "link", "application", "region"}

# Colours of text and of what is behind it, for every piece of text that is seen.
TEXTS = """() => {
  const solid = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$|transparent/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility()) continue;
    if (element.closest(".tile, #tip, .skip, .visually-hidden")) continue;
    const style = getComputedStyle(element);
    found.push([text, element.closest("svg") ? style.fill : style.color, solid(element)]);
  }
  return found;
}"""


def luminance(colour: str) -> float:
    red, green, blue = (float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3])
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)
    ]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    """As the Web Content Accessibility Guidelines count it: 1 to 21."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def accessible(explored: Explored) -> list[dict[str, Any]]:
    """What a screen reader is given: (role, name) of all nodes that are not ignored."""
    session = explored.page.context.new_cdp_session(explored.page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    return [
        {"role": node["role"]["value"], "name": node.get("name", {}).get("value", "")}
        for node in nodes
        if not node["ignored"]
    ]


def test_every_control_has_a_name(explored: Explored) -> None:
    nodes = accessible(explored)
    controls = [node for node in nodes if node["role"] in CONTROLS]
    assert len(controls) >= 20
    assert [node for node in controls if not node["name"].strip()] == []
    roles = {node["role"] for node in nodes}
    assert {"main", "banner", "heading", "group", "table", "status", "image"} <= roles
    pictures = sorted(node["name"] for node in nodes if node["role"] == "image")
    assert [name.partition(",")[0].partition(":")[0] for name in pictures] == [
        "All frames",
        "Share of weight by distance in pixels",
        "Share of weight by frames from the query",
    ]
    assert "Canvas" not in roles


def test_tab_goes_through_the_page_as_it_is_read(explored: Explored) -> None:
    explored.page.locator("body").evaluate("document.activeElement.blur()")
    order = []
    for _ in range(20):
        explored.page.keyboard.press("Tab")
        name = explored.page.evaluate(
            "document.activeElement.id || document.activeElement.name || document.activeElement.className"
        )
        if order and name in ("", order[0]):
            break
        order.append(name)
    assert order == [
        "skip", "save", "theme", "help", "block", "mode", "arrow-count", "shown",
        "stage", "previous", "play", "next", "frame", "travel", "smooth", "scroll",
    ]  # fmt: skip


def test_the_focus_is_seen(explored: Explored) -> None:
    explored.page.locator("body").evaluate("document.activeElement.blur()")
    for _ in range(15):
        explored.page.keyboard.press("Tab")
        outline = explored.page.evaluate(
            """() => {
              const at = document.activeElement;
              const shown = at.type === "radio" ? at.nextElementSibling : at;
              const style = getComputedStyle(shown);
              return [style.outlineStyle, parseFloat(style.outlineWidth)];
            }"""
        )
        assert outline[0] == "solid"
        assert outline[1] >= 2


def test_what_changed_is_read_aloud_once_it_rests(explored: Explored) -> None:
    live = explored.page.get_by_role("status")
    expect(live).to_have_attribute("aria-live", "polite")
    explored.click(3, 36, 70)
    explored.press("ArrowRight", "ArrowRight")
    frame, row, column = explored.block.queries.centres()[explored.position]
    place = f"frame {frame:.0f}, row {round(row + 0.01)}, column {round(column + 0.01)}"
    expect(live).to_contain_text(f"Query at {place}, block res3.nonlocal1. Highest weights: ")
    best = explored.best()[0]
    frame, row, column = explored.block.keys.centres()[best]
    said = live.inner_text()
    assert f"at frame {frame:.0f}, row {round(row + 0.01)}, column {round(column + 0.01)}" in said
    first = float(said.split("Highest weights: ")[1].split(" %")[0])
    assert first == pytest.approx(100 * explored.row()[best], rel=0.02, abs=0.006)
    explored.choose_block("res4.nonlocal5")
    expect(live).to_contain_text("block res4.nonlocal5")


def test_sliders_say_what_they_are_at(explored: Explored) -> None:
    explored.press("End")
    expect(explored.page.get_by_role("slider", name="Frame", exact=True)).to_have_attribute(
        "aria-valuetext", "frame 7 of 0 to 7"
    )
    expect(explored.page.get_by_role("slider", name="Arrows")).to_have_value("20")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(open_page: Open, scheme: str) -> None:
    explored = open_page(color_scheme=scheme)
    explored.choose_block("res4.nonlocal5")  # with its note
    texts = explored.page.evaluate(TEXTS)
    assert len(texts) > 100
    faint = [
        (text, round(contrast(one, other), 2)) for text, one, other in texts if contrast(one, other) < 4.5
    ]
    assert faint == []
    ground = explored.page.locator("html").evaluate("(html) => getComputedStyle(html).backgroundColor")
    assert (luminance(ground) < 0.1) == (scheme == "dark")


def test_the_button_turns_dark_and_light(open_page: Open) -> None:
    explored = open_page(color_scheme="light")
    button = explored.page.get_by_role("button", name="Dark")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = explored.page.evaluate(ground)
    expect(button).to_have_attribute("aria-pressed", "false")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    assert luminance(explored.page.evaluate(ground)) < 0.1 < luminance(light)
    explored.press("t")
    assert explored.page.evaluate(ground) == light
    explored.page.emulate_media(color_scheme="dark")
    assert explored.page.evaluate(ground) == light  # chosen is chosen


def test_the_system_turns_dark(open_page: Open) -> None:
    explored = open_page(color_scheme="dark")
    expect(explored.page.get_by_role("button", name="Dark")).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("width", [390, 320, 760, 1100])
def test_nothing_sticks_out_of_a_narrow_screen(open_page: Open, width: int) -> None:
    explored = open_page(width=width, height=800, has_touch=width < 700)
    assert explored.page.evaluate("document.documentElement.scrollWidth") <= width
    for card in explored.page.locator(".card, .bar, header").all():
        box = card.bounding_box()
        assert box is None or (box["x"] >= 0 and box["x"] + box["width"] <= width)
    wall = explored.page.locator("#wall").bounding_box()
    assert wall is not None
    for tile in explored.page.locator("#wall .tile").all():
        box = tile.bounding_box()
        assert box is not None
        assert box["width"] >= 60
        assert abs(box["width"] - box["height"]) < 1.5  # the frames are square
        assert wall["x"] - 1 <= box["x"] <= box["x"] + box["width"] <= wall["x"] + wall["width"] + 1
    explored.assert_arrows_are_right()


def test_fingers_find_the_buttons(open_page: Open) -> None:
    explored = open_page(width=390, height=844, has_touch=True)
    for control in explored.page.locator("button, .choice span, select, input[type=range]").all():
        box = control.bounding_box()
        if box is not None:
            assert min(box["width"], box["height"]) >= 16
            assert max(box["width"], box["height"]) >= 24
    stage = explored.page.locator("#stage").bounding_box()
    assert stage is not None
    assert stage["width"] > 340


def test_arrows_follow_when_the_window_changes(explored: Explored) -> None:
    explored.page.set_viewport_size({"width": 800, "height": 700})
    explored.page.wait_for_timeout(150)
    explored.settle()
    explored.assert_arrows_are_right()


def test_less_motion_where_it_is_wished_for(open_page: Open) -> None:
    explored = open_page(reduced_motion="reduce")
    moving = explored.page.locator("*").evaluate_all(
        "(all) => all.filter((one) => parseFloat(getComputedStyle(one).transitionDuration) > 0).length"
    )
    assert moving == 0
    explored.press("Home", "Space")
    explored.page.wait_for_timeout(700)
    assert explored.frame == 0  # one step a second
    explored.page.wait_for_timeout(700)
    assert explored.frame == 1
