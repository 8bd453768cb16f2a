"""What video data sets share: names of clips without folder or ending, seconds, and answers given by number.

Everything raises `RecordError` (`bad_schema`) for a value that can't be what it should be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from aria_finetune.data_formats.building import choices, fields, media_fields, questions
from aria_finetune.data_formats.building.turns import Turn, draft
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import Context
from aria_finetune.data_formats.record import Draft, MediaReference

ENDINGS = (".mp4", ".webm", ".mkv", ".avi", ".mov")
"""Tried in this order where a data set names its clips without an ending."""

_FOLDERS = ("", "videos/", "video/")
_KNOWN_ENDINGS = frozenset({*ENDINGS, ".gif", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ogv"})
_NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*")
_INDEX = re.compile(r"\s*(-?\d{1,9})(?:\.0)?\s*")
_CLOCK = re.compile(r"\s*(?:(\d{1,4}):)?(\d{1,4}):(\d{1,2}(?:[.,]\d*)?)\s*")


def clip(
    *names: str, start: float | None = None, end: float | None = None, endings: Sequence[str] = ENDINGS
) -> MediaReference:
    """The video called by the first of `names`, or else by the next, with or without an ending.

    The folders `videos/` and `video/` are tried too, and last the bare name, as of a folder of frames.
    """
    places = list(dict.fromkeys(place for name in names for place in _places(name, endings)))
    return MediaReference("video", places[0], start=start, end=end, alternatives=tuple(places[1:]))


def named(value: object, where: str, *, start: float | None = None, end: float | None = None) -> MediaReference:
    """The video that a field names, or holds as bytes or `{"bytes", "path"}`."""
    found = media_fields.medium("video", value, where)
    if found.content is not None:
        return replace(found, start=start, end=end)
    return clip(found.reference, start=start, end=end)


def identifier(value: object, where: str) -> str:
    """The id of a clip or question, which some readers turn into a whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    name = fields.text(value, where)
    if not name:
        raise RecordError("bad_schema", f"{where} is empty")
    return name


def options(values: Iterable[object], where: str) -> list[str]:
    """The texts to choose from."""
    return [fields.text(value, f"{where}[{number}]") for number, value in enumerate(values)]


def index(value: object, where: str) -> int | None:
    """The number of an option counted from 0, as a number or text; None for null, empty text and -1."""
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and (digits := _INDEX.fullmatch(value)):
        value = int(digits[1])
    if not isinstance(value, int) or isinstance(value, bool):
        raise fields.wrong(value, where, "the number of an option")
    return None if value == -1 else value


def seconds(value: object, where: str) -> float:
    """A time that is not negative, as a number or the text of one."""
    if isinstance(value, str) and (number := _NUMBER.fullmatch(value)):
        value = float(number[1])
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise fields.wrong(value, where, "seconds")
    if not 0 <= value < math.inf or value > 1e9:
        raise RecordError("bad_schema", f"{where} is {value!r:.30}, which is no time in a video")
    return float(value)


def clock(value: object, where: str) -> float:
    """Seconds of `hh:mm:ss.x` or `mm:ss`, in which the minutes may be more than 59."""
    match = _CLOCK.fullmatch(fields.text(value, where))
    if match is None:
        raise RecordError("bad_schema", f"{where} is {value!r:.30}, not hh:mm:ss or mm:ss")
    return 3600.0 * int(match[1] or 0) + 60 * int(match[2]) + float(match[3].replace(",", "."))


def span(start: object, end: object, where: str) -> tuple[float | None, float | None]:
    """Start and end of a part of a clip in seconds; either may be null, and the end comes after the start."""
    begin = None if start is None else seconds(start, f"{where} start")
    finish = None if end is None else seconds(end, f"{where} end")
    if finish is not None and finish <= (begin or 0):
        raise RecordError("bad_schema", f"{where} ends at {finish:g} s and begins at {begin or 0:g} s")
    return begin, finish


def open_question(
    clip: MediaReference,
    question: str,
    answer: object,
    *,
    others: Iterable[str] = (),
    meta: Mapping[str, Any],
    repairs: Iterable[str] = (),
) -> Draft:
    """A question about a video with its answer in words; `others` are right as well.

    `answer` is what the source has in its place: text, a number, null, or a list of which the most frequent is taken.
    """
    given, notes = questions.answers(answer, "answer")
    accepted = tuple(dict.fromkeys([*given, *others]))
    right = questions.majority(given) if given else None
    return questions.asked([clip], question, right, references=accepted, meta=meta, repairs=(*repairs, *notes))


def choice(
    shown: Sequence[MediaReference | str],
    question: str,
    options: Sequence[str],
    right: int | None,
    context: Context,
    *,
    meta: Mapping[str, Any],
    repairs: Iterable[str] = (),
) -> Draft:
    """A multiple-choice question about what is `shown`; `right` is None where the source gives no answer.

    Letters in front of all options are taken away. The letter, the text and both are accepted answers.
    """
    plain = choices.without_letters(options)
    turns = [Turn("user", (*shown, choices.question(question, plain)))]
    if right is None:
        return draft(turns, meta=meta, repairs=repairs)
    turns.append(Turn("assistant", (choices.answer(right, plain, context.settings.answers),)))
    return draft(turns, references=choices.accepted(right, plain), meta=meta, repairs=repairs)


def _places(name: str, endings: Sequence[str]) -> list[str]:
    if "://" in name or name.startswith(("/", "data:")):
        return [name]
    ending = PurePosixPath(name).suffix.lower()
    files = [name] if ending in _KNOWN_ENDINGS else [*(name + ending for ending in endings), name]
    return [folder + file for file in files for folder in _FOLDERS]
