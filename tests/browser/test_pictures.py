"""The pictures of the documentation, taken anew by `python3 run.py test-browser --screenshots docs/assets`.

Whether they look good is judged by people; what can be counted is checked here.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nonlocal_nn.explain.explorer import write_explorer
from tests.browser.conftest import Open
from tests.explain.scene import capture_of_film

VIEWS: dict[str, dict[str, Any]] = {
    "explorer_light": {
        "color_scheme": "light",
        "width": 1400,
        "height": 900,
        "address": "#block=2&at=2,68,74",
    },
    "explorer_dark": {
        "color_scheme": "dark",
        "width": 1400,
        "height": 900,
        "address": "#block=5&at=4,150,60",
    },
    "explorer_phone": {
        "color_scheme": "light",
        "width": 390,
        "height": 844,
        "has_touch": True,
        "is_mobile": True,
        "device_scale_factor": 1.5,
        "address": "#block=2&at=5,66,148",
    },
}


@pytest.mark.parametrize("name", VIEWS)
def test_pictures_of_the_page(
    open_page: Open, tmp_path: Path, pytestconfig: pytest.Config, name: str
) -> None:
    captured = capture_of_film()
    view = VIEWS[name]
    explored = open_page(write_explorer(captured, tmp_path / "film.html"), captured, **view)
    is_phone = view["width"] < 500
    if is_phone:  # the large frame and the wall below it
        explored.page.locator(".stage-card").evaluate("(card) => scrollTo(0, card.offsetTop - 10)")
    explored.page.wait_for_timeout(200)
    picture = Image.open(io.BytesIO(explored.page.screenshot(full_page=not is_phone))).convert("RGB")
    assert picture.width == round(view["width"] * view.get("device_scale_factor", 1))
    pixels = np.asarray(picture)
    edge = pixels[:, :3].reshape(-1, 3)
    assert (edge == edge[0]).all()  # nothing touches the edge
    assert edge[0].mean() < 30 if view["color_scheme"] == "dark" else edge[0].mean() > 225
    yellow = np.abs(pixels.astype(int) - (255, 196, 46)).sum(axis=2) < 60
    assert yellow.mean() > 0.0005  # arrows
    folder = pytestconfig.getoption("--screenshots")
    if folder:
        picture.save(Path(folder) / f"{name}.webp", quality=84, method=6)
