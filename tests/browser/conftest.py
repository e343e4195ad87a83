"""A Chromium, pages to open in it, and what holds for every one of them: no error and no request.

`python3 run.py test-browser` runs these tests; with `--screenshots docs/assets` it makes the pictures of the
documentation anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from nonlocal_nn.explain.explorer import write_explorer
from tests.browser.explored import Explored, Watch
from tests.explain.scene import FakeCapture, capture_of_film
from tests.scripts import REPOSITORY, load_script

OPTIONS = [
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-color-profile=srgb",
]

Open = Callable[..., Explored]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", help="folder to keep the pictures of the documentation in")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = load_script("run.py").find_browser(REPOSITORY)
    if path is None:
        pytest.fail("no Chromium here: python3 run.py test-browser installs one")
    options = [*OPTIONS, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else OPTIONS
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def film_capture() -> FakeCapture:
    """Eight frames of 160 x 160, five blocks."""
    return capture_of_film(8, 160)


@pytest.fixture(scope="session")
def film_page(film_capture: FakeCapture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_explorer(film_capture, tmp_path_factory.mktemp("explorer") / "film.html")


@pytest.fixture
def open_page(browser: Browser, film_page: Path, film_capture: FakeCapture) -> Iterator[Open]:
    """Opens a page; when the test is over, none of the pages may have done what it must not."""
    opened: list[tuple[BrowserContext, Watch]] = []

    def open_it(
        path: Path = film_page,
        captured: FakeCapture = film_capture,
        *,
        width: int = 1280,
        height: int = 860,
        address: str = "",
        **options: object,
    ) -> Explored:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)  # type: ignore[arg-type]
        context.set_default_timeout(10_000)
        watch = Watch(context)
        watch.opened = path.as_uri()
        opened.append((context, watch))
        page = context.new_page()
        page.goto(path.as_uri() + address)
        return Explored(page, captured, watch)

    yield open_it
    for context, watch in opened:
        context.close()
        assert watch.wrong == []


@pytest.fixture
def explored(open_page: Open) -> Explored:
    """The film on a desk."""
    return open_page()
