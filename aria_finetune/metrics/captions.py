"""Captions: chrF of each, and BLEU and chrF of all, by sacrebleu against all captions of the same picture.

Papineni et al. 2002 and Popović 2015 as Post 2018 (arXiv 1804.08771) computes them, in lower case. CIDEr and ROUGE are
left out: their libraries are not kept up, or bring Java.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aria_finetune.metrics.metric import Metric
from aria_finetune.metrics.rows import Row, Score


def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF  # noqa: PLC0415 (a tenth of a second that only captions need)

    return CHRF(lowercase=True)


def score(row: Row, answer: str) -> Score:
    """ChrF of a caption, from 0 to 1, against the nearest of the accepted ones."""
    return Score(_chrf().sentence_score(answer, list(row.expected)).score / 100)


def corpus(rows: Sequence[Row], answers: Sequence[str], scores: Sequence[Score]) -> dict[str, float]:  # noqa: ARG001
    """BLEU and chrF of all captions together, from 0 to 1."""
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415

    most = max(len(row.expected) for row in rows)
    # sacrebleu takes one text of each row at a time; None where a row has fewer.
    references: list[Any] = [[_nth(row.expected, number) for row in rows] for number in range(most)]
    bleu = BLEU(lowercase=True).corpus_score(list(answers), references)
    chrf = _chrf().corpus_score(list(answers), references)
    return {"bleu": bleu.score / 100, "chrf": chrf.score / 100}


def _nth(texts: Sequence[str], number: int) -> str | None:
    return texts[number] if number < len(texts) else None


CAPTIONS = Metric(
    name="captions",
    title="chrF of each caption; BLEU and chrF of all together",
    source="Papineni et al. 2002 (BLEU), Popović 2015 (chrF), computed by sacrebleu (Post 2018, arXiv 1804.08771)",
    score=score,
    binary=False,
    figures=corpus,
)
