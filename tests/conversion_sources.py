"""Small sources for tests of conversions, and what of two data sets must be equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image


def llava(
    image: object = None, question: str = "<image>\nWhat?", answer: str = "A cat.", **rest: object
) -> dict[str, object]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **({"image": image} if image else {}), **rest}


def text_record(number: int | str) -> dict[str, object]:
    return llava(question=f"{number}?", answer=f"{number}!")


def write_image(path: Path, size: tuple[int, int] = (40, 30), color: str | int = "red", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def write_video(path: Path, frames: int = 5, size: tuple[int, int] = (64, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = size
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), number * 40, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_source(path: Path, records: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_list(path: Path, records: Sequence[object], indent: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=indent), encoding="utf-8")
    return path


def mixed_records(folder: Path, count: int) -> list[object]:
    """Text, pictures of which some are shown again and some are not there, and what is no conversation."""
    for number in range(5):
        write_image(folder / "images" / f"{number}.png", color=number * 999)
    kinds: list[Callable[[int], object]] = [
        text_record,
        lambda number: llava(f"images/{number % 7}.png", id=number),
        lambda number: llava(question=f"Grün {number}?", answer="\u2028ja" * (number % 9 + 1)),
        lambda number: {"conversations": f"record {number}"},
    ]
    return [kinds[number % len(kinds)](number) for number in range(count)]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def written(folder: Path) -> list[Any]:
    """The records of a data set, of all its data files."""
    return [record for path in sorted(folder.glob("data-*.jsonl")) for record in lines(path)]


def listing(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def steady(folder: Path) -> dict[str, bytes | dict[str, Any]]:
    """All of a data set that does not depend on when it was made: every file, and the report without its seconds."""
    files: dict[str, Any] = listing(folder)
    report = json.loads(files.pop("report.json"))
    assert report.pop("seconds") >= 0
    return files | {"report.json": report}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
