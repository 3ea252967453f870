"""A real browser on the pages: what the tests marked `browser` share.

`visit` opens a page as somebody, light or dark, wide or narrow. When the test ends it fails for
whatever no page may do: an error in the console, a request to elsewhere, a part that is missing.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, expect, sync_playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WITHOUT = "no Chromium: install one (Debian: apt-get install chromium), so that the pages are tested"
PATIENCE_MS = 20_000
REFUSED = "Failed to load resource"
"""How Chromium begins its note of a reply above 399, or of none: the page's own business."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One headless Chromium for a module; without one its tests are skipped, and the summary says so.

    Not for the session: while Playwright is open its event loop runs in this thread, so `asyncio.run` cannot.
    """
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(WITHOUT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        expect.set_options(timeout=PATIENCE_MS)
        yield browser
        browser.close()


class Visits:
    """Opens pages of the server at `url` and remembers what they did wrong."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self.faults: list[str] = []

    def __call__(
        self,
        url: str,
        key: str | None = "root-key",
        *,
        scheme: Literal["light", "dark"] = "light",
        width: int = 1280,
    ) -> Page:
        """Open `url` in a tab of its own, signed in with `key`."""
        context = self._browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}, reduced_motion="reduce"
        )
        if key is not None:
            context.add_init_script(f"sessionStorage.setItem('apprentice-key', {key!r})")
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        origin = "/".join(url.split("/")[:3])
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", lambda request: self._requested(request, origin))
        page.on("response", self._answered)
        page.goto(url)
        return page

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(REFUSED):
            self.faults.append(f"console: {message.text}")

    def _requested(self, request: Request, origin: str) -> None:
        if not request.url.startswith((f"{origin}/", "data:")):
            self.faults.append(f"a request to elsewhere: {request.url}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400 and "/web/" in response.url:
            self.faults.append(f"{response.status} for {response.url}")

    def close(self) -> None:
        for context in self._browser.contexts:
            context.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visits]:
    visits = Visits(chromium)
    yield visits
    visits.close()
    assert visits.faults == []


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong with the page as it is now, each with the elements concerned."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {[node['target'] for node in one['nodes']]} {one['help']}" for one in found]


def screenshot(page: Page, path: Path) -> None:
    """The whole page, not only what the window shows."""
    page.screenshot(path=path, full_page=True)
