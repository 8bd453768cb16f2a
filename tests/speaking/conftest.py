"""The tiny Aria in fp32, asked as `generate` and `chat` ask it; and a PDF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from aria_finetune.libraries import prepare_libraries
from aria_finetune.speaking.speaker import Speaker, SpeakerOptions, open_speaker

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"


@pytest.fixture(scope="session")
def speaker() -> Speaker:
    prepare_libraries()
    return open_speaker(SpeakerOptions("tiny", experts="fp32", device="cpu"), 64)


@pytest.fixture
def make_pdf(tmp_path: Path) -> Callable[[str, int], Path]:
    """A PDF whose pages are numbered."""

    def make(name: str, pages: int) -> Path:
        drawn = []
        for number in range(pages):
            page = Image.new("RGB", (200, 280), "white")
            ImageDraw.Draw(page).text((90, 130), str(number + 1), fill="black")
            drawn.append(page)
        path = tmp_path / name
        drawn[0].save(path, save_all=True, append_images=drawn[1:])
        return path

    return make
