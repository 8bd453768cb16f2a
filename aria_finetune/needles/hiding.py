"""Needles and where they are hidden: a fact in a sentence, or one odd picture, at a depth among other things.

The question about it has one known answer, a number of five digits. Knows records and pictures. Knows nothing of tokens.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from PIL import Image, ImageDraw

from aria_finetune import __version__
from aria_finetune.data_formats.record import Media, Message, Part, Record, Source

Kind = Literal["text", "image"]
KINDS: tuple[Kind, ...] = ("text", "image")
FORM = "needle"
THINGS = ("lighthouse", "bakery", "violin", "harbour", "glacier", "orchard", "telescope", "windmill")
SIDE = 490
"""Of the odd picture in pixels."""
SEGMENTS = {"0": "abcdef", "1": "bc", "2": "abged", "3": "abgcd", "4": "fgbc", "5": "afgcd", "6": "afgedc", "7": "abc",
            "8": "abcdefg", "9": "abcdfg"}  # fmt: skip
"""Of a seven-segment display: a on top, b and c on the right, d at the bottom, e and f on the left, g in the middle."""


@dataclass(frozen=True)
class Needle:
    """What is hidden: its kind, what it is of, and the number that is asked for."""

    kind: Kind
    thing: str
    number: str

    @property
    def sentence(self) -> str:
        """The fact, as it stands among other text."""
        return f"The secret number of the {self.thing} is {self.number}."

    @property
    def question(self) -> str:
        """What is asked at the end."""
        if self.kind == "text":
            return f"What is the secret number of the {self.thing}? Answer with the number alone."
        return (
            "One of the pictures above shows nothing but a number of five digits. Which? Answer with the number alone."
        )


@dataclass(frozen=True)
class Cell:
    """A place of the grid: tokens of the row, and the depth in percent, 0 before everything and 100 behind it."""

    kind: Kind
    length: int
    depth: int


@dataclass(frozen=True)
class Straw:
    """Something that a needle is hidden among: all of one record as it stands in a message, with its media and its id."""

    content: tuple[Part, ...]
    media: tuple[Media, ...]
    origin: str


def needle_of(cell: Cell, number: int, seed: int) -> Needle:
    """The needle of row `number` of a cell; another seed hides another."""
    draws = random.Random(f"{seed}:{FORM}:{cell}:{number}")  # noqa: S311 (a seeded choice)
    return Needle(cell.kind, draws.choice(THINGS), str(draws.randrange(10_000, 100_000)))


def straw_of(record: Record) -> Straw:
    """All that a record says and shows, as text and media one behind the other."""
    content: list[Part] = []
    for message in record.messages:
        content += [*message.content, Part("text", text="\n")]
    return Straw(tuple(content), record.media, record.id)


def hide(
    needle: Needle, cell: Cell, number: int, before: Sequence[Straw], behind: Sequence[Straw], picture: Media | None
) -> Record:
    """One record: straws, the needle, straws, and the question with its answer.

    Args:
        needle: what is hidden.
        cell: its place in the grid.
        number: of the record in its cell.
        before: what stands before the needle.
        behind: what stands behind it.
        picture: of a needle that is one.
    """
    content: list[Part] = []
    media: list[Media] = []
    for straw in before:
        _add(content, media, straw)
    if picture is None:
        content.append(Part("text", text=needle.sentence + "\n"))
    else:
        _add(content, media, Straw((Part("image", media=0), Part("text", text="\n")), (picture,), ""))
    for straw in behind:
        _add(content, media, straw)
    content.append(Part("text", text=needle.question))
    facts = asdict(cell) | {"answer": needle.number, "straws": [straw.origin for straw in (*before, *behind)]}
    name = f"{FORM}:{cell.kind}:{cell.length}:{cell.depth}"
    return Record(
        id=f"{name}:{number}",
        messages=(Message("user", tuple(content)), Message("assistant", (Part("text", text=needle.number),))),
        media=tuple(media),
        references=(needle.number,),
        tools=None,
        meta=json.dumps({FORM: facts}),
        source=Source(FORM, name, number, __version__),
    )


def _add(content: list[Part], media: list[Media], straw: Straw) -> None:
    first = len(media)
    media += straw.media
    content += [
        Part(part.type, part.text, None if part.media is None else part.media + first) for part in straw.content
    ]


def draw_number(number: str) -> bytes:
    """A PNG of a number as a seven-segment display shows it, dark on plain yellow, so that no font is needed."""
    image = Image.new("RGB", (SIDE, SIDE), (250, 220, 90))
    pen = ImageDraw.Draw(image)
    width, height, line = 66, 130, 14
    left = (SIDE - len(number) * (width + 20) + 20) // 2
    top = (SIDE - height) // 2
    for place, digit in enumerate(number):
        x, y, half = left + place * (width + 20), top, height // 2
        boxes = {
            "a": (x, y, x + width, y + line),
            "b": (x + width - line, y, x + width, y + half),
            "c": (x + width - line, y + half, x + width, y + height),
            "d": (x, y + height - line, x + width, y + height),
            "e": (x, y + half, x + line, y + height),
            "f": (x, y, x + line, y + half),
            "g": (x, y + half - line // 2, x + width, y + half + line // 2),
        }
        for segment in SEGMENTS[digit]:
            pen.rectangle(boxes[segment], fill=(20, 20, 60))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
