"""Pages in a real browser: Chromium without a window, where one is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(
    filter(
        None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"))
    ),
    None,
)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed; `apt-get install chromium` brings one"
)


def browse(page: Path) -> tuple[str, str]:
    """The document after loading, and what was said of it."""
    command = [
        CHROMIUM, "--headless", "--disable-gpu", "--no-sandbox", "--enable-logging=stderr",
        f"--user-data-dir={page.parent}/profile", "--virtual-time-budget=5000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout, done.stderr


def measure(page: Path, expression: str) -> list[str]:
    """What an expression of JavaScript, a list of words, says of a page, for which its policy is taken out of a copy."""
    script = f"<script>onload = () => {{ document.body.dataset.told = ({expression}).join(' ') }}</script>"
    copy = page.with_name(f"measured-{page.name}")
    text = re.sub(r'<meta http-equiv="[^>]*>', "", page.read_text(encoding="utf-8"))
    copy.write_text(text.replace("</body>", f"{script}</body>"), "utf-8")
    document, _ = browse(copy)
    found = re.search(r'data-told="([^"]*)"', document)
    assert found, "the page did not load"
    return found[1].split()


def picture_sizes(page: Path) -> list[tuple[int, int]]:
    """Width and height in pixels of every picture of a page as the browser decoded it, 0 where it could not."""
    told = measure(page, "[...document.images].map(i => `${i.naturalWidth}x${i.naturalHeight}`)")
    return [(int(size.split("x")[0]), int(size.split("x")[1])) for size in told]
