"""Multiple-choice questions: how their options are shown, and which of them an answer means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import Answers

_LETTERED = re.compile(r"\s*\(?([A-Za-z])(?:[).:]|\)\.?)\s*(.*)", re.DOTALL)


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


def index_of(text: str, options: Sequence[str]) -> int:
    """Which option an answer means that is written as the option's text, its letter, or `(D) text` and the like.

    Raises:
        RecordError: `bad_schema`, none of them, or several that are equal.
    """
    _check(options)
    same = [number for number, option in enumerate(options) if option.strip() == text.strip()]
    if len(same) == 1:
        return same[0]
    if len(same) > 1:
        raise RecordError("bad_schema", f"the answer {text!r:.60} is the text of several options")
    if len(text.strip()) == 1 and text.strip().upper() in ascii_uppercase[: len(options)]:
        return ascii_uppercase.index(text.strip().upper())
    lettered = _LETTERED.fullmatch(text)
    if lettered and lettered[1].upper() in ascii_uppercase[: len(options)]:
        index = ascii_uppercase.index(lettered[1].upper())
        if lettered[2].strip() in {"", _bare(options[index])}:
            return index
    bare = [number for number, option in enumerate(options) if _bare(option) == _bare(text)]
    if len(bare) == 1:
        return bare[0]
    raise RecordError("bad_schema", f"the answer {text!r:.60} is none of the {len(options)} options")


def without_letters(options: Sequence[str]) -> list[str]:
    """The options without the letters A, B, C, ... in front of them, if all have theirs."""
    found = [_LETTERED.fullmatch(option) for option in options]
    if all(match and match[1].upper() == letter for match, letter in zip(found, ascii_uppercase, strict=False)):
        return [match[2].strip() for match in found if match]
    return list(options)


def _bare(option: str) -> str:
    lettered = _LETTERED.fullmatch(option)
    return (lettered[2] if lettered and lettered[2] else option).strip()


def _check(options: Sequence[str]) -> None:
    if not 0 < len(options) <= len(ascii_uppercase):
        raise RecordError("bad_schema", f"{len(options)} options; there must be 1 to {len(ascii_uppercase)}")
