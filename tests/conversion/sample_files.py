"""Sound files of every kind that is read, small enough to be changed a million times: the seeds of broken ones."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

CHAT = [
    {"id": n, "image": f"{n}.jpg", "conversations": [
        {"from": "human", "value": f"<image>\nWas ist auf Bild {n}? \u2028 é\U0001f40b"},
        {"from": "gpt", "value": 'Ein "Hund", {"id": 1}, {"id": \\ 2}'},
    ]}
    for n in range(6)
]  # fmt: skip
ROWS = [
    {"image": f"{n}.jpg", "caption": f'Zwei "Boote", am\nPier {n}', "width": str(n), "note": "x;y|z\t"}
    for n in range(9)
]


def json_files() -> dict[str, list[bytes]]:
    """Files of JSON by how the records lie in them."""
    plain, escaped = (as_lines(CHAT, ensure_ascii=flag) for flag in (False, True))
    lists = [json.dumps(CHAT, indent=indent, ensure_ascii=False).encode() for indent in (None, 1)]
    wrapped = [
        json.dumps({"version": 1, "data": CHAT}).encode(),
        json.dumps({"images": CHAT, "annotations": []}, indent=2).encode(),
    ]
    numbers = as_lines([{"id": 12345678901234567890, "v": [1.5e300, -0.0, True, None]}, {"id": 10**25}, {"": {}}])
    marked = codecs.BOM_UTF8 + plain
    texts = [line.decode() for line in (plain, lists[0], wrapped[0])]
    return {
        "lines": [plain, escaped, numbers, marked, plain.replace(b"\n", b"\r\n\n \n")],
        "list": [*lists, b"[" + plain.rstrip().replace(b"\n", b",\n") + b"]", b'[[1, "a]"], {"x": "}, {"}, "t", null]'],
        "document": wrapped,
        "utf-16": [
            *(codecs.BOM_UTF16_LE + text.encode("utf-16-le") for text in texts),
            *(codecs.BOM_UTF32_BE + text.encode("utf-32-be") for text in texts),
        ],
    }


def as_lines(records: Sequence[Any], *, ensure_ascii: bool = True) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=ensure_ascii) + "\n" for record in records).encode()


def tables() -> list[bytes]:
    """Tables with a header, by each of the delimiters."""
    found = []
    for delimiter in ",\t;|":
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
        found.append(stream.getvalue().encode())
    return found


PLAIN_TEXT = [
    "".join(f"{n}.jpg#{k}\tA dog , number {n} .\n" for n in range(4) for k in range(3)).encode(),
    b"AB1CD 24.3 30.4##a person turns on the light.\nXY2Z 0.0 3.1##a person sits.\n",
    b"0001.png\tIs there a dog? Please answer yes or no.\tYes\n0001.png\tIs there a cat?\tNo\n",
]


def parquet_files() -> list[bytes]:
    """Parquet of plain, nested and binary columns, packed in every usual way."""
    nested = pa.Table.from_pylist([{**row, "image": {"bytes": b"\xff\xd8" * 9, "path": row["image"]}} for row in ROWS])
    unusual = pa.table(
        {
            "question": pa.array(["a", "b", "a"]).dictionary_encode(),
            "time": pa.array([0, 2**40, None], pa.timestamp("ms", "UTC")),
            "price": pa.array([None, 1, 2], pa.decimal128(9, 2)),
            "pairs": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int32())),
            "half": pa.array([1.5, None, float("nan")], pa.float16()),
        }
    )
    found = []
    for table, options in (
        (unusual, {"compression": "none"}),
        (pa.Table.from_pylist(CHAT), {"compression": "none"}),
        (pa.Table.from_pylist(CHAT), {"compression": "snappy", "row_group_size": 2, "data_page_version": "2.0"}),
        (pa.Table.from_pylist(ROWS), {"compression": "zstd", "use_dictionary": False}),
        (nested, {"compression": "gzip", "row_group_size": 4, "write_page_index": True}),
    ):
        stream = io.BytesIO()
        parquet.write_table(table, stream, **options)
        found.append(stream.getvalue())
    return found


def tar_files() -> list[bytes]:
    """WebDataset archives: plain names, folders, and long names in both of the ways they are written."""
    members = [
        ("000.jpg", image("JPEG")), ("000.txt", b"ein Hund"), ("000.json", b'{"caption": "a", "n": 1}'),
        ("a/001.png", image("PNG")), ("a/001.cls", b"7"), ("a/002.txt.gz", gzip.compress(b"three")), ("b.txt", b""),
    ]  # fmt: skip
    long = [("x" * 150 + ".txt", b"long"), *members]
    plans = ((members, tarfile.USTAR_FORMAT), (long, tarfile.GNU_FORMAT), (long, tarfile.PAX_FORMAT))
    return [tar(members, format) for members, format in plans]  # noqa: A001


def tar(members: Sequence[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> bytes:  # noqa: A002 (as tarfile has it)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


SUBTITLES = [
    b"1\n00:00:01,000 --> 00:00:04,000\nHello <i>there</i>\n\n2\n00:00:05,500 --> 00:00:07,000\nHello there\nagain\n",
    b"WEBVTT\n\nNOTE x\n\n1\n00:01.000 --> 00:04.000 align:start\n<v Ann>a &amp; <c.red>b</c>\n\n00:05.000 --> 00:06.000\nb\n",
    b"[Script Info]\nTitle: x\n\n[V4+ Styles]\nFormat: Name, Fontname\nStyle: Default,Arial\n\n[Events]\n"  # noqa: ISC004
    b"Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
    b"Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\i1}Hello\\N{\\p1}m 0 0{\\p0}\n",
    codecs.BOM_UTF16_LE + "1\r\n00:00:01,000 --> 00:00:04,000\r\ngrün\r\n".encode("utf-16-le"),
]


def image(kind: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: Any) -> bytes:
    """An image of noise, so that no byte of it is idle."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(7).integers(0, 255, (size[1], size[0], bands), np.uint8)
    picture = Image.fromarray(pixels[:, :, 0] if bands == 1 else pixels, None if bands > 1 else "L").convert(mode)
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def images() -> list[bytes]:
    """Images of every kind that is read."""
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [Image.new("RGB", (40, 30), "red")]}
    return [
        image("JPEG", quality=80, exif=exif), image("JPEG", progressive=True), image("JPEG", mode="CMYK"),
        image("PNG"), image("PNG", mode="P"), image("PNG", mode="RGBA", exif=exif), image("PNG", mode="1"),
        image("PNG", **frames), image("WEBP"), image("WEBP", lossless=True, exif=exif), image("WEBP", **frames),
        image("GIF"), image("GIF", **frames), image("TIFF"), image("TIFF", compression="tiff_lzw"),
        image("TIFF", compression="tiff_deflate"), image("TIFF", mode="CMYK", **frames), image("BMP"), image("PPM"),
        image("PPM", mode="L"), image("JPEG2000"), image("AVIF"),
    ]  # fmt: skip


def clips(folder: Path) -> list[bytes]:
    """Clips of a few frames in the usual containers."""
    return [
        clip(folder / f"seed{number}.{ending}", codec)
        for number, (ending, codec) in enumerate(
            [("mp4", "mpeg4"), ("mp4", "libx264"), ("webm", "libvpx"), ("mkv", "mpeg4"), ("avi", "mjpeg"), ("mov", "libx264"),
             ("mpg", "mpeg1video"), ("ts", "mpeg2video"), ("flv", "flv1"), ("gif", "gif")]
        )
    ]  # fmt: skip


def clip(path: Path, codec: str = "mpeg4", frames: int = 5, size: tuple[int, int] = (64, 48)) -> bytes:
    """A clip whose frames differ."""
    pixels = np.random.default_rng(7).integers(0, 255, (frames, size[1], size[0], 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def pdf(pages: int = 2, box: str = "0 0 200 100", *, packed: bool = False) -> bytes:
    """A document with a line of text and a picture on each page; `packed` compresses what is drawn."""
    drawn = b"BT /F1 12 Tf 10 80 Td (Hello) Tj ET q 40 0 0 40 50 10 cm /I1 Do Q 1 0 0 rg 0 0 20 20 re f"
    pixels = bytes(range(256)) * 3
    kids = " ".join(f"{5 + 2 * number} 0 R" for number in range(pages))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {pages} /MediaBox [{box}] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        _stream(pixels, b"/Type /XObject /Subtype /Image /Width 16 /Height 16 /BitsPerComponent 8 /ColorSpace /DeviceRGB",
                packed=True),
    ]  # fmt: skip
    for number in range(pages):
        resources = b"/Resources << /Font << /F1 3 0 R >> /XObject << /I1 4 0 R >> >>"
        objects.append(b"<< /Type /Page /Parent 2 0 R %b /Contents %d 0 R >>" % (resources, 6 + 2 * number))
        objects.append(_stream(drawn, b"", packed=packed))
    return written(objects)


def _stream(data: bytes, entries: bytes, *, packed: bool) -> bytes:
    data = zlib.compress(data) if packed else data
    entries += b" /Filter /FlateDecode" if packed else b""
    return b"<< /Length %d %b >> stream\n%b\nendstream" % (len(data), entries, data)


def written(objects: Sequence[bytes]) -> bytes:
    """A PDF of these objects, the first of them its catalogue."""
    out, places = b"%PDF-1.4\n", []
    for number, data in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, data)
    table = b"0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    return out + b"xref\n0 %d\n%btrailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        size, table, size, len(out)
    )  # fmt: skip


def pdfs() -> list[bytes]:
    stream = io.BytesIO()
    Image.new("RGB", (60, 40), "blue").save(stream, "PDF")
    return [pdf(), pdf(packed=True), stream.getvalue()]
