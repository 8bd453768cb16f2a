"""Answers to held-out rows while a run goes on: the same rows at every evaluation, answered greedily by the model as it is.

Nothing of training is changed by it: generators and mode are as they were before, and nothing is drawn. Knows the collator, the
model and metrics; not the trainer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import AriaForConditionalGeneration

from aria_finetune.checkpoint.state import generator_states, set_generators
from aria_finetune.data.collation import Collator
from aria_finetune.data.rows import RowPlan
from aria_finetune.errors import UserError
from aria_finetune.generation import answer_batch, batches_of, stop_ids, text_of
from aria_finetune.generation.decoding import Answer, Wish
from aria_finetune.metrics import METRICS, Row, choose, row_of


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out row: its number in the run, what it asks, and the metric that its answer is scored by."""

    row: int
    plan: RowPlan
    asked: Row
    metric: str


@dataclass(frozen=True)
class AnswerCheck:
    """Answers and scores questions.

    Args:
        questions: in order.
        collator: of their plans as prompts, in the same order, made with `generation=True`.
        max_new_tokens: the longest answer.
        batch_size: questions answered at a time.
        record: keeps an entry for each answer.
        say: prints a line.
    """

    questions: Sequence[Question]
    collator: Collator
    max_new_tokens: int
    batch_size: int
    record: Callable[[Mapping[str, Any]], None]
    say: Callable[[str], None] = print

    def run(
        self, model: Any, base: AriaForConditionalGeneration, step: int, wanted: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Answer all questions and keep what was said.

        Args:
            model: Aria with its adapter.
            base: the Aria in it.
            step: after which this is.
            wanted: is asked before every token; nothing is kept once it says no.

        Returns:
            the mean score by metric; None where it was not wanted to its end.
        """
        with undisturbed(model):
            found = self._answers(model, base, wanted)
        if found is None:
            return None
        scores: dict[str, list[float]] = {}
        for number, question in enumerate(self.questions):
            entry: dict[str, Any] = {"step": step, "id": question.plan.record.id, "metric": question.metric}
            answer = found[number]
            if isinstance(answer, Answer):
                text = text_of(answer, self.collator.chat)
                score = METRICS[question.metric].score(question.asked, text)
                scores.setdefault(question.metric, []).append(score.value)
                entry |= {"expected": list(question.asked.expected), "answer": text, "score": score.value}
                entry |= {"tokens": len(answer.ids), "stop": answer.stop}
            else:
                entry |= {"refused": answer}
            self.record(entry)
        means = {name: sum(values) / len(values) for name, values in sorted(scores.items())}
        said = ", ".join(f"{name} {mean:.3f} of {len(scores[name])}" for name, mean in means.items())
        self.say(f"step {step}: answers to held-out rows: {said or 'none could be shown'}")
        return means

    def _answers(
        self, model: Any, base: AriaForConditionalGeneration, wanted: Callable[[], bool]
    ) -> dict[int, Answer | str] | None:
        """By number of question its answer, or why it has none."""
        wish = Wish(stop_ids(base, self.collator.chat), self.max_new_tokens)
        found: dict[int, Answer | str] = {}
        try:
            for numbers in batches_of([question.plan.tokens for question in self.questions], self.batch_size):
                batch = self.collator([{"row": number} for number in numbers])
                for bad in batch.pop("bad_media", []):
                    found[bad.row] = f"{bad.media}: {bad.reason}: {bad.detail}"
                if batch:
                    answers = answer_batch(model, base, batch, wish, wanted=wanted)
                    found |= zip(batch["rows"].tolist(), answers, strict=True)
                if not wanted():
                    return None
        finally:
            self.collator.decoder.close()
        return found


def choose_questions(
    plans: Sequence[RowPlan], count: int, seed: int, prompt_of: Callable[[RowPlan], RowPlan], first: int
) -> list[Question]:
    """Held-out rows to be answered: as many as are wanted of those that have a known answer, chosen by `seed`.

    An answer that would be run as a program is none that training asks for.

    Args:
        plans: of all rows that are held out.
        count: how many are wanted; all, where there are fewer.
        seed: of the choice.
        prompt_of: gives a row without its answer.
        first: the number in the run of the first of `plans`.

    Raises:
        UserError: none has a known answer.
    """
    chosen: list[Question] = []
    for number in random.Random(f"{seed}:answers").sample(range(len(plans)), len(plans)):  # noqa: S311 (a seeded choice)
        plan = plans[number]
        if len(chosen) == count:
            break
        if plan.lost is not None:  # its place stays its own, so that the others stay who they are
            chosen.append(Question(first + number, plan, Row(()), "lost"))
            continue
        asked, metric, prompt = row_of(plan.record), choose(plan.record), prompt_of(plan)
        if asked.expected and not METRICS[metric].runs_code and prompt.turns:
            chosen.append(Question(first + number, prompt, asked, metric))
    if not any(question.plan.lost is None for question in chosen):
        raise UserError(
            "no held-out row has a known answer",
            fix="leave train.evaluate_generation out, or hold out rows with answers",
        )
    return sorted(chosen, key=lambda question: question.row)


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Within the block the model is in evaluation mode; mode and random generators are as before behind it."""
    training, states = model.training, generator_states()
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        set_generators(states)
