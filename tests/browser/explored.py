"""An open page as tests drive and read it, what NumPy says should be there, and what no page may do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.explain.scene import FakeBlock, FakeCapture

OPAQUE = 210  # alpha of the heat where the weight is largest


class Watch:
    """All that a page must not do."""

    def __init__(self, context: BrowserContext) -> None:
        self.wrong: list[str] = []
        self.opened = ""
        context.on("page", self._page)

    def forgive(self, text: str) -> None:
        """Take back what a test has brought about on purpose; it must have come."""
        assert any(text in wrong for wrong in self.wrong), (text, self.wrong)
        self.wrong = [wrong for wrong in self.wrong if text not in wrong]

    def _page(self, page: Page) -> None:
        page.on("console", lambda message: self.wrong.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("crash", lambda _: self.wrong.append("crash"))
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self._request(page, request.url))

    def _request(self, page: Page, url: str) -> None:
        is_itself = url.startswith("file:") and url.split("#")[0] == self.opened
        if not is_itself and not url.startswith(("data:image/png;", "data:image/jpeg;")):
            self.wrong.append(f"request: {url[:200]}")


class Explored:
    """An open page, and the capture that it was written from."""

    def __init__(self, page: Page, captured: FakeCapture, watch: Watch) -> None:
        self.page, self.captured, self.watch = page, captured, watch
        expect(page.locator("#weights tbody tr").first).to_be_attached()

    # --- actions ---

    def tile(self, frame: int) -> Locator:
        return self.page.locator(f'#wall .tile[data-frame="{frame}"]')

    def spot(self, area: Locator, row: float, column: float) -> tuple[float, float]:
        """Where on the screen a pixel of the clip lies within a tile or the stage."""
        box = area.bounding_box()
        assert box is not None
        height, width = self.captured.frames.shape[1:3]
        return box["x"] + (column + 0.5) / width * box["width"], box["y"] + (row + 0.5) / height * box[
            "height"
        ]

    def click(self, frame: int, row: float, column: float) -> None:
        self.tile(frame).scroll_into_view_if_needed()
        self.page.mouse.click(*self.spot(self.tile(frame), row, column))
        self.settle()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def choose_block(self, name: str) -> None:
        self.page.get_by_role("radio", name=name, exact=True).check(force=True)
        expect(self.page.locator("body")).not_to_have_attribute("aria-busy", "true")
        self.settle()

    def settle(self) -> None:
        """Two frames later all that was asked for is drawn."""
        self.page.evaluate("new Promise((d) => requestAnimationFrame(() => requestAnimationFrame(d)))")

    # --- what is shown ---

    @property
    def position(self) -> int:
        return int(self.page.locator("#stage").get_attribute("data-position") or -1)

    @property
    def block_name(self) -> str:
        return self.page.locator("#blocks label:has(input:checked)").inner_text()

    @property
    def block(self) -> FakeBlock:
        return self.captured.blocks[self.block_name]

    @property
    def frame(self) -> int:
        return int(self.page.locator("#frame").input_value())

    @property
    def shown_frames(self) -> list[int]:
        return [
            int(tile.get_attribute("data-frame") or -1) for tile in self.page.locator("#wall .tile").all()
        ]

    def tips(self, drawing: str = "#wall-marks") -> dict[int, tuple[float, float]]:
        """Where on the screen the arrows end: for each key the tip of a head, or a ring's middle."""
        found: list[tuple[int, float, float]] = self.page.evaluate(
            """(drawing) => {
              const box = document.querySelector(drawing).getBoundingClientRect();
              return Array.from(document.querySelectorAll(`${drawing} .arrow`), (mark) => {
                const head = mark.querySelector("polygon")?.points[0];
                const ring = mark.querySelector("circle");
                const [x, y] = head ? [head.x, head.y] : [ring.cx.baseVal.value, ring.cy.baseVal.value];
                return [Number(mark.dataset.key), box.x + x, box.y + y];
              });
            }""",
            drawing,
        )
        assert len({key for key, _, _ in found}) == len(found)
        return {key: (x, y) for key, x, y in found}

    def heat(self, area: Locator) -> NDArray[np.float64]:
        """The size of each weight, as a part of the largest, told from the heat's alpha: (rows, columns)."""
        pixels: dict[str, Any] = area.locator("canvas.heat").evaluate(
            """(canvas) => ({
              width: canvas.width,
              alpha: Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data)
                .filter((_, i) => i % 4 === 3),
            })"""
        )
        alpha = np.array(pixels["alpha"], float).reshape(-1, int(pixels["width"]))
        assert np.array_equal(alpha, np.pad(alpha[1:-1, 1:-1], 1, mode="edge"))
        return np.asarray((alpha[1:-1, 1:-1] / OPAQUE) ** 2)

    def listed(self) -> list[list[str]]:
        lines = self.page.locator("#weights tbody tr").all()
        return [line.locator("td").all_inner_texts() for line in lines]

    # --- what NumPy computes ---

    def row(self, position: int | None = None) -> NDArray[np.float32]:
        return self.block.rows(np.array([self.position if position is None else position]))[0]

    def best(self, count: int = 20) -> list[int]:
        return [int(key) for key in np.argsort(-np.abs(self.row()), kind="stable")[:count]]

    def expected_tips(self, count: int = 20) -> dict[int, tuple[float, float]]:
        """Where arrows to the highest weights have to end: the nearest shown frame, a key's centre."""
        shown = self.shown_frames
        tips = {}
        for key in self.best(count):
            frame, row, column = self.block.keys.centres()[key]
            nearest = min(shown, key=lambda shown_frame: (abs(shown_frame - frame), shown_frame))
            tips[key] = self.spot(self.tile(nearest), row, column)
        return tips

    def assert_arrows_are_right(self, count: int = 20) -> None:
        tips, expected = self.tips(), self.expected_tips(count)
        row = self.row()
        assert tips.keys() == expected.keys(), {key: row[key] for key in tips.keys() ^ expected.keys()}
        for key, tip in tips.items():
            assert np.hypot(*np.subtract(tip, expected[key])) < 0.1, (key, tip, expected[key])
