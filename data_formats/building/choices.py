"""Multiple-choice questions: how their options are shown, and which of them an answer means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from aria_finetune.data_formats.building import fields
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import Answers

_LETTERED = re.compile(r"\s*\(?([A-Za-z])(?:\)[.:]?|[.:])\s*(.*)", re.DOTALL)


def question(text: str, options: Sequence[str]) -> str:
    """The question with its options below, each on a line: `A. ...`.

    Raises:
        RecordError: `bad_schema`, no option or more than there are letters.
    """
    _check(options)
    return "\n".join([text, *(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))])


def answer(index: int, options: Sequence[str], answers: Answers) -> str:
    """The option `index`, counted from 0, in the wording that was chosen.

    Raises:
        RecordError: `bad_schema`, there is no such option.
    """
    _check(options)
    if not 0 <= index < len(options):
        raise RecordError("bad_schema", f"the answer is option {index} of {len(options)}, counted from 0")
    if answers == "text":
        return options[index]
    return ascii_uppercase[index] if answers == "letter" else f"{ascii_uppercase[index]}. {options[index]}"


def accepted(index: int, options: Sequence[str]) -> tuple[str, ...]:
    """The wordings of the option `index` that are right: its letter, its text, and both."""
    return tuple(dict.fromkeys(answer(index, options, wording) for wording in ("letter", "text", "both")))


def index_of(text: str, options: Sequence[str]) -> int:
    """Which option an answer means that is written as the option's text, its letter, or `(D) text` and the like.

    Raises:
        RecordError: `bad_schema`, none of them, several that are equal, or two by its letter and by its text.
    """
    _check(options)
    same = [number for number, option in enumerate(options) if option.strip() == text.strip()]
    letter = _index_of_letter(text.strip(), options)
    if len(same) == 1 and letter in {None, same[0]}:
        return same[0]
    if same:
        raise RecordError("bad_schema", f"the answer {text!r:.60} may mean several of the options")
    if letter is not None:
        return letter
    lettered = _LETTERED.fullmatch(text)
    index = _index_of_letter(lettered[1], options) if lettered else None
    if lettered and index is not None and lettered[2].strip() in {"", _bare(options[index])}:
        return index
    bare = [number for number, option in enumerate(options) if _bare(option) == _bare(text)]
    if len(bare) == 1 and index in {None, bare[0]}:
        return bare[0]
    raise RecordError("bad_schema", f"the answer {text!r:.60} is none of the {len(options)} options")


def without_letters(options: Sequence[str]) -> list[str]:
    """The options without the letters A, B, C, ... in front of them, if all have theirs."""
    found = [_LETTERED.fullmatch(option) for option in options]
    letters = (*ascii_uppercase, *("" for _ in found))
    if all(match and match[1].upper() == letter for match, letter in zip(found, letters, strict=False)):
        return [match[2].strip() for match in found if match]
    return list(options)


def columns(record: Mapping[str, object]) -> list[str]:
    """The options of a record that has them in fields `A`, `B`, `C`, ...; empty ones at the end are none.

    Raises:
        RecordError: `bad_schema`, one is not text, or empty while a later one is not.
    """
    cells = [fields.text(record.get(letter) or "", letter) for letter in ascii_uppercase]
    count = max((number for number, cell in enumerate(cells, 1) if cell), default=0)
    if "" in cells[:count]:
        raise RecordError("bad_schema", f"option {ascii_uppercase[cells.index('')]} is empty and a later one is not")
    return cells[:count]


def _index_of_letter(text: str, options: Sequence[str]) -> int | None:
    letter = text.upper()
    return ascii_uppercase.index(letter) if len(letter) == 1 and letter in ascii_uppercase[: len(options)] else None


def _bare(option: str) -> str:
    lettered = _LETTERED.fullmatch(option)
    return (lettered[2] if lettered and lettered[2] else option).strip()


def _check(options: Sequence[str]) -> None:
    if not 0 < len(options) <= len(ascii_uppercase):
        raise RecordError("bad_schema", f"{len(options)} options; there must be 1 to {len(ascii_uppercase)}")
