"""A small data set of pictures and clips of its own, and all the ways in which a file of it can break."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from aria_finetune.conversion import ConversionOptions, convert

IMAGE_SIZE = (60, 40)
ELSEWHERE = Path(__file__).parents[2] / "recipes" / "data" / "tiny"
"""Sound pictures and a clip outside of every data set that is made here."""


def make_data(folder: Path, *, images: int, clips: int, texts: int = 0) -> Path:
    """Make that many rows of each kind and convert them; returns the converted data set."""
    source = folder / "source"
    source.mkdir(parents=True)
    rows = [_image_row(make_image(source / f"{n}.{'png' if n % 2 else 'jpg'}", n), n) for n in range(images)]
    rows += [_clip_row(make_clip(source / f"{n}.mp4", n), n) for n in range(clips)]
    rows += [_row(f"What comes after {n}?", str(n + 1)) for n in range(texts)]
    (source / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = convert(source / "rows.jsonl", folder / "data", ConversionOptions())
    assert (report.written, report.rejected) == (len(rows), 0)
    return folder / "data"


def media_of(data: Path) -> dict[str, Path]:
    """The file of each row of a converted data set by the row's id; rows of text are left out."""
    records = [json.loads(line) for line in (data / "data-00000.jsonl").read_text().splitlines()]
    return {record["id"]: data.resolve() / record["media"][0]["path"] for record in records if record["media"]}


def make_image(path: Path, number: int, size: tuple[int, int] = IMAGE_SIZE) -> Path:
    """A picture of one colour, which `number` decides."""
    Image.new("RGB", size, (5 * number % 256, 90, 255 - 5 * number % 256)).save(path)
    return path


def make_clip(path: Path, number: int) -> Path:
    """A clip of six grey frames, whose brightness `number` decides."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in range(6):
            pixels = np.full((48, 64, 3), (13 * number + 20 * frame) % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def _image_row(path: Path, number: int) -> dict[str, object]:
    return {**_row("Which colour is it?", f"number {number}", "image"), "images": [path.name]}


def _clip_row(path: Path, number: int) -> dict[str, object]:
    return {**_row("How bright is it?", f"clip {number}", "video"), "video": {"path": path.name, "num_frames": 1}}


def _row(question: str, answer: str, media: str | None = None) -> dict[str, object]:
    shown = [{"type": media, "text": None}] if media else []
    return {
        "messages": [
            {"role": "user", "content": [*shown, {"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    }


def break_file(file: Path, way: str) -> None:
    """Break a media file in one of `IMAGE_WAYS` or `CLIP_WAYS`."""
    content = file.read_bytes()
    file.unlink()
    if way in _CONTENTS:
        file.write_bytes(_CONTENTS[way](content))
    elif way in _LINKS:
        file.symlink_to(_LINKS[way](file))
    elif way == "folder":
        file.mkdir()
    elif way == "pipe":
        os.mkfifo(file)


def _neighbour(file: Path) -> Path:
    return next(
        other for other in sorted(file.parents[1].rglob("*")) if other.is_file() and other.parent != file.parent
    )


def _other_size(content: bytes) -> bytes:
    image = Image.open(io.BytesIO(content))
    turned = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(turned, image.format)
    return turned.getvalue()


def _bomb(_: bytes) -> bytes:
    """A PNG of a hundred bytes that says it has 3.6 billion pixels."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(b""),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    )


def _lose_frames(content: bytes) -> bytes:
    """Zeros where the later frames of an MP4 file were; its header and its first frame are sound."""
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    start += (end - start) // 3
    return content[:start] + bytes(end - start) + content[end:]


_CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda _: b"",
    "cut to a header": lambda content: content[:40],
    "cut in the middle": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "garbage": lambda content: bytes((7 * place * place + 3) % 251 for place in range(len(content))),
    "an error page": lambda _: b"<html><body>404 Not Found</body></html>",
    "turned": _other_size,
    "bomb": _bomb,
    "frames lost": _lose_frames,
    "another kind": lambda content: b"%PDF-1.7\n" + content,
}
_LINKS: dict[str, Callable[[Path], Path]] = {
    "link out": lambda file: ELSEWHERE / ("ball.mp4" if file.suffix == ".mp4" else "photos/cat.jpg"),
    "link to a neighbour": _neighbour,
    "link to nothing": lambda file: file.with_name("nothing"),
    "link to a device": lambda _: Path("/dev/zero"),
}
_ANY_FILE = (
    "deleted", "cut in the middle", "link to a neighbour", "emptied", "garbage", "pipe", "folder", "cut to a header",
    "link to nothing", "an error page", "zeroed", "link to a device", "link out",
)  # fmt: skip
IMAGE_WAYS = (*_ANY_FILE, "turned", "bomb", "another kind")
CLIP_WAYS = ("frames lost", *_ANY_FILE)
RESUMABLE_IMAGE_WAYS = tuple(way for way in IMAGE_WAYS if not way.startswith("link"))
RESUMABLE_CLIP_WAYS = tuple(way for way in CLIP_WAYS if not way.startswith("link"))
"""Those with which a run can go on: a link in a data set is followed when it is read again, or the set is refused."""
UNPLANNED_CLIP_WAYS = ("frames lost",)
"""Those that planning does not meet either, which opens every clip and no picture of a converted set."""
