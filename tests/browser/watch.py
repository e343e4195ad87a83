"""All that an explorer page must not do, noted while it is open."""

from __future__ import annotations

from playwright.sync_api import BrowserContext, Page


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
