"""Subtitles as cues: SRT, WebVTT, and ASS or SSA through pysubs2.

SRT and WebVTT are read here: pysubs2 takes a number at the end of a cue for the number of the next one, and the
identifier of the next cue for text of this one.
"""

from __future__ import annotations

import html
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pysubs2

from aria_finetune.data_formats.errors import FormatError
from aria_finetune.data_formats.reading.contents import byte_order_mark

_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9}))?"
_TIMING = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_NUMBER = re.compile(r"\s*(\d{1,9})\s*")
_TAG = re.compile(
    r"</?(?:c|b|i|u|s|v|ruby|rt|lang|font|span)(?:[.\s][^<>]*)?/?>|<(?:\d+:)?\d+:\d+[.,]\d+>|\{\\[^{}]*\}",
    re.IGNORECASE,
)
# `\s` would look at all of the empty lines that follow, again from each of them.
_ASS_SECTION = re.compile(r"^[ \t]*\[(?:script info|events)\]", re.IGNORECASE | re.MULTILINE)
_SSA_STYLES = re.compile(r"^[ \t]*\[v4 styles\]", re.IGNORECASE | re.MULTILINE)
_DIALOGUE = re.compile(r"Dialogue:")
_OVERRIDE = re.compile(r"\{[^}]*\}")
_DRAWING_MODE = re.compile(r"\\p([0-9])")

_MOST_REPEATED = 100
"""How many lines of a cue are compared with those before: a screen holds four, and a hostile file a million."""


@dataclass(frozen=True, slots=True)
class Cue:
    """What is said from `start` to `end`, in seconds; lines are separated by line feeds."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Subtitles:
    """The cues in order of time, and how many were `dropped`: by `zero_length`, `no_text` and `repeats`."""

    cues: tuple[Cue, ...]
    dropped: Mapping[str, int]


def read(data: bytes, *, encoding: str | None = None, collapse_repeats: bool = False) -> Subtitles:
    """The cues of a file. `encoding` is that of text without a byte order mark, UTF-8 if it is not given.

    Tags are taken away, and cues without text or length are dropped. With `collapse_repeats` lines that a cue
    repeats from the one before are dropped too: automatic captions show each line twice as they scroll.

    Raises:
        FormatError: a byte is not text, or the text is none of these kinds of subtitles.
    """
    text = _decoded(data, encoding).replace("\r\n", "\n").replace("\r", "\n")
    cues, dropped = clean(_parsed(text))
    if collapse_repeats:
        kept = _without_repeats(cues)
        dropped["repeats"] = len(cues) - len(kept)
        cues = kept
    return Subtitles(tuple(cues), {reason: count for reason, count in dropped.items() if count})


def clean(cues: Iterable[Cue]) -> tuple[list[Cue], Counter[str]]:
    """The cues that have text and length, in order of time, and how many of the others there were."""
    kept: list[Cue] = []
    dropped: Counter[str] = Counter()
    for cue in cues:
        text = "\n".join(line.strip() for line in cue.text.split("\n") if line.strip())
        if cue.end <= cue.start:
            dropped["zero_length"] += 1
        elif not text:
            dropped["no_text"] += 1
        else:
            kept.append(replace(cue, text=text))
    return sorted(kept, key=lambda cue: (cue.start, cue.end)), dropped


def _decoded(data: bytes, encoding: str | None) -> str:
    name, mark = byte_order_mark(data) or (encoding or "utf-8", 0)
    try:
        return data[mark:].decode(name)
    except UnicodeDecodeError as error:
        place = mark + error.start
        message = f"byte {place} of the subtitles is not {name.upper()}: {error.reason}"
        raise FormatError(message, fix="name the encoding, or write the file out as UTF-8") from error
    except LookupError as error:
        raise FormatError(f"there is no encoding {name!r}", fix="utf-8, utf-16, cp1252, gb18030, ...") from error


def _parsed(text: str) -> Iterator[Cue]:
    if text.lstrip().startswith("WEBVTT"):
        return _blocks(text, web=True)
    if _ASS_SECTION.search(text):
        return _dialogue(text)
    if any(_TIMING.fullmatch(line) for line in text.split("\n")):
        return _blocks(text, web=False)
    raise FormatError("it holds no subtitles", fix="give SRT, WebVTT, ASS or SSA")


def _blocks(text: str, *, web: bool) -> Iterator[Cue]:
    """Cues of SRT or WebVTT: a line of times, and what follows until the next such line."""
    lines = text.split("\n")
    timings = [(place, match) for place, line in enumerate(lines) if (match := _TIMING.fullmatch(line))]
    number = _number_before(lines, timings[0][0]) if timings else None
    for count, (place, match) in enumerate(timings):
        following = lines[place + 1 : timings[count + 1][0] if count + 1 < len(timings) else None]
        if web:
            body = _until_blank(following)
        else:
            body, number = _without_number(following, number, last=count + 1 == len(timings))
        plain = _TAG.sub("", "\n".join(body))
        yield Cue(_seconds(match.groups()[:4]), _seconds(match.groups()[4:]), _unescaped(plain) if web else plain)


def _unescaped(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # an entity with more digits than Python makes a number of
        return text


def _until_blank(lines: Sequence[str]) -> Sequence[str]:
    """The text of a WebVTT cue; notes, styles and the identifier of the next cue stand behind an empty line."""
    blank = next((place for place, line in enumerate(lines) if not line.strip()), len(lines))
    return lines[:blank]


def _number_before(lines: Sequence[str], place: int) -> int | None:
    found = _NUMBER.fullmatch(lines[place - 1]) if place else None
    return int(found[1]) if found else None


def _without_number(lines: Sequence[str], number: int | None, *, last: bool) -> tuple[Sequence[str], int | None]:
    """The text of an SRT cue and the number of the next one, which stands in its last line.

    A number is text if no empty line comes before it, unless it counts on from that of this cue.
    """
    found = None if last else _number_before(lines, len(lines))
    alone = len(lines) < 2 or not lines[-2].strip()
    if found is None or not (alone or (number is not None and found == number + 1)):
        return lines, None
    return lines[:-1], found


def _seconds(groups: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = (group or "0" for group in groups)
    return int(hours) * 3600 + int(minutes) * 60 + float(f"{seconds}.{fraction}")


def _dialogue(text: str) -> Iterator[Cue]:
    """Cues of ASS or SSA. Only the spoken lines are given on: a style or font that is broken does not matter."""
    spoken = "\n".join(line for line in text.split("\n") if _DIALOGUE.match(line))
    kind = "ssa" if _SSA_STYLES.search(text) else "ass"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers and margins that are no numbers
            events = pysubs2.SSAFile.from_string(f"[Events]\n{spoken}", format_=kind).events
    except (ValueError, TypeError) as error:
        raise FormatError(f"broken ASS subtitles: {error}", fix="mend the line") from error
    for event in events:
        yield Cue(event.start / 1000, event.end / 1000, _spoken(event.text))


def _spoken(text: str) -> str:
    """The text of an event without overrides; empty where it is a drawing.

    pysubs2 can do this too, in a time that grows with the square of the length.
    """
    # Behind the last bracket nothing can be an override, and looking for its end would be in vain from everywhere.
    head, bracket, tail = text.rpartition("}")
    head += bracket
    drawing = (_DRAWING_MODE.findall(override) for override in _OVERRIDE.findall(head))
    if any(modes and modes[-1] != "0" for modes in drawing):
        return ""
    plain = _OVERRIDE.sub("", head) + tail
    return plain.replace("\\h", " ").replace("\\n", "\n").replace("\\N", "\n")


def _without_repeats(cues: Sequence[Cue]) -> list[Cue]:
    """Cues without the lines that end the cue before; one of which nothing is left lengthens the last kept."""
    kept: list[Cue] = []
    before: list[str] = []
    for cue in cues:
        lines = cue.text.split("\n")
        most = min(len(lines), len(before), _MOST_REPEATED)
        again = max(count for count in range(most + 1) if lines[:count] == before[len(before) - count :])
        before = lines
        if lines[again:]:
            kept.append(replace(cue, text="\n".join(lines[again:])))
        elif kept:
            kept[-1] = replace(kept[-1], end=max(kept[-1].end, cue.end))
    return kept
