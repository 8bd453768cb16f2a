"""Drafts of one question and its answer, which is what most data sets for questions and captions hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aria_finetune.data_formats.building.turns import Turn, draft
from aria_finetune.data_formats.record import Draft, MediaReference

IMAGE_PROMPT = "Describe the image."
VIDEO_PROMPT = "Describe the video."
"""What is asked where a source has captions only."""


def asked(
    media: Sequence[MediaReference],
    question: str,
    answer: str | None,
    *,
    references: Sequence[str] = (),
    meta: Mapping[str, Any] | None = None,
    repairs: Iterable[str] = (),
) -> Draft:
    """A user turn of the media and the question behind them, and the answer; None if the source has none.

    A draft without an answer passes the rules only where records for evaluation are asked for.
    """
    turns = [Turn("user", (*media, question))]
    if answer is not None:
        turns.append(Turn("assistant", (answer,)))
    return draft(turns, references=references, meta=meta, repairs=repairs)


def majority(answers: Sequence[str]) -> str:
    """The answer given most often; of several the one that was given first. `answers` must not be empty."""
    return Counter(answers).most_common(1)[0][0]
