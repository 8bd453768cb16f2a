"""Pages in a real browser: Playwright drives the Chromium that is installed, without a window.

Playwright's own browsers are not fetched: their download is no part of the package, and any Chromium will do.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(
    filter(
        None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"))
    ),
    None,
)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed; `apt-get install chromium` brings one"
)


class Opened(NamedTuple):
    """A page in the browser, what its console and its scripts said, and what it asked for beside itself."""

    page: Page
    said: list[str]
    asked: list[str]


@contextmanager
def browse(file: Path) -> Iterator[Opened]:
    """Open a file as a browser does, with all that its policy forbids forbidden."""
    with sync_playwright() as playwright:
        # No sandbox: Chromium refuses to make one for root, which containers of CI run as.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        opened = Opened(page, [], [])
        page.on("console", lambda message: opened.said.append(message.text))
        page.on("pageerror", lambda error: opened.said.append(str(error)))
        page.on("request", lambda request: opened.asked.append(request.url))
        page.goto(file.as_uri(), wait_until="load")
        opened.asked[:] = [url for url in opened.asked if url != file.as_uri() and not url.startswith("data:")]
        yield opened
        browser.close()


def picture_sizes(page: Page) -> list[tuple[int, int]]:
    """Width and height in pixels of every picture of a page as the browser decoded it, 0 where it could not."""
    return [
        tuple(size) for size in page.evaluate("() => [...document.images].map(i => [i.naturalWidth, i.naturalHeight])")
    ]
