"""Large and odd media all the way from a source through `convert` into a batch, with as many tokens as they must have."""

from __future__ import annotations

import json
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pypdfium2 as pdfium
import pytest
from PIL import Image

from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.data.collation import Collator
from aria_finetune.data.dataset import DataSource, load_rows
from aria_finetune.data.pictures import Showing
from aria_finetune.data.rows import VISION_TOKENS, Viewing
from aria_finetune.errors import TooManyRejects
from aria_finetune.media.images import ImageLimits

PAGES, PIXELS = 100, 10_000


def pdf(path: Path, pages: int) -> None:
    document = pdfium.PdfDocument.new()
    for number in range(pages):
        page = document.new_page(612, 792)
        if number == 3:
            page.set_rotation(90)
    document.save(str(path))


def clip(path: Path, seconds: list[float], size: tuple[int, int] = (64, 48)) -> None:
    """A clip with a frame at each of `seconds`, whose brightness is its number times 4."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"qp": "4"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, second in enumerate(seconds):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), number % 60 * 4, np.uint8), "rgb24")
            frame.pts, frame.time_base = round(second * 1000), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def turn_by_90_degrees(path: Path) -> None:
    """Write the matrix of a phone that was held upright into the track header of an MP4 (ISO 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    pdf(folder / "long.pdf", PAGES)
    clip(folder / "long.mp4", [number / 2 for number in range(1200)])  # ten minutes
    Image.new("1", (PIXELS, PIXELS)).save(folder / "huge.png")
    clip(folder / "variable.mp4", [0, 0.1, 0.2, 0.3, 5.0, 9.0])
    clip(folder / "phone.mp4", [0, 1, 2, 3])
    turn_by_90_degrees(folder / "phone.mp4")
    return folder


def converted(folder: Path, name: str, source: object, **options) -> Path:
    (folder / f"{name}.json").write_text(json.dumps([source]))
    convert(folder / f"{name}.json", folder / name, ConversionOptions(**options))
    return folder / name


def conversation(kind: str, name: str) -> dict[str, object]:
    turns = [{"from": "human", "value": f"<{kind}>What?"}, {"from": "gpt", "value": "This."}]
    return {kind: name, "conversations": turns}


def batch_of(data: Path, viewing: Viewing, chat, tmp_path: Path) -> tuple[dict, int]:
    """The batch of the only row, and how many tokens the text alone has."""
    rows = load_rows([DataSource(data)], viewing, chat, media_store=tmp_path / "store", max_pixels=PIXELS**2)
    made = Collator(rows.plans, chat, 2, showing=Showing(image_limits=ImageLimits(max_pixels=PIXELS**2)))([{"row": 0}])
    assert made["input_ids"].shape[1] == rows.plans[0].tokens
    return made, sum(VISION_TOKENS[sight.tile] * sight.tiles for sight in rows.plans[0].sights)


@pytest.mark.parametrize(("size", "tokens"), [(490, 128), (980, 256)])
def test_a_pdf_of_100_pages(folder: Path, letter_chat, tmp_path: Path, size: int, tokens: int) -> None:
    question = {
        "doc_id": "long.pdf",
        "question": "What?",
        "answer": "This.",
        "evidence_pages": "[1]",
        "answer_format": "Str",
    }
    data = converted(folder, f"pdf-{size}", question)
    made, vision = batch_of(data, Viewing(image_size=size, max_tokens=50_000), letter_chat, tmp_path)
    assert vision == PAGES * tokens
    text = len("user\nWhat?\nassistant\nThis.\n") + 4
    assert made["input_ids"].shape[1] == text + PAGES * (tokens + 2), "each page stands between two marks"
    assert len(made[f"pixels_{size}"]) == PAGES
    portrait, landscape = [size, round(size * 612 / 792)], [round(size * 612 / 792), size]
    extents = made[f"extents_{size}"].tolist()
    assert np.abs(np.array(extents[0]) - portrait).max() <= 1
    assert np.abs(np.array(extents[3]) - landscape).max() <= 1, "the fourth page lies on its side"


def test_a_video_of_ten_minutes(folder: Path, letter_chat, tmp_path: Path) -> None:
    data = converted(folder, "video", conversation("video", "long.mp4"))
    viewing = Viewing(num_frames=16, max_tokens=10_000, timestamps=False)
    made, vision = batch_of(data, viewing, letter_chat, tmp_path)
    assert vision == 16 * 128
    brightness = [round(float(tile[:, :48, :64].float().mean()) / 4) for tile in made["pixels_490"]]
    middles = [int((number + 0.5) * 1200 / 16) % 60 for number in range(16)]
    assert np.abs(np.array(brightness) - middles).max() <= 1, "they are spread over all of it"


def test_an_image_of_100_megapixels(folder: Path, letter_chat, tmp_path: Path) -> None:
    with pytest.raises(TooManyRejects, match="media_too_large 1"):
        converted(folder, "refused", conversation("image", "huge.png"))
    data = converted(folder, "image", conversation("image", "huge.png"), max_pixels=PIXELS**2)
    made, vision = batch_of(data, Viewing(max_tokens=2000), letter_chat, tmp_path)
    assert vision == 256
    assert made["extents_980"].tolist() == [[980, 980]]


def test_a_clip_of_variable_frame_rate(folder: Path, letter_chat, tmp_path: Path) -> None:
    data = converted(folder, "variable", conversation("video", "variable.mp4"))
    made, vision = batch_of(data, Viewing(num_frames=3, max_tokens=2000, timestamps=False), letter_chat, tmp_path)
    assert vision == 3 * 128
    brightness = [round(float(tile[:, :48, :64].float().mean()) / 4) for tile in made["pixels_490"]]
    assert brightness[-1] >= 4, "by time and not by number, the last third begins at six seconds"


def test_a_clip_of_a_phone_held_upright(folder: Path, letter_chat, tmp_path: Path) -> None:
    data = converted(folder, "phone", conversation("video", "phone.mp4"))
    made, vision = batch_of(data, Viewing(num_frames=2, max_tokens=2000, timestamps=False), letter_chat, tmp_path)
    assert vision == 2 * 128
    heights, widths = zip(*made["extents_490"].tolist(), strict=True)
    assert set(heights) == {490}
    assert max(widths) < 490, "it stands upright"
