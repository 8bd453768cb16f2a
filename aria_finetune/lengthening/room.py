"""How many tokens a part takes in a longer record, and which parts have room together.

Costs are reckoned from the plan of a record of one part. What is chosen by them is planned as a whole before it is written, so
that no record is longer than it may be. Knows parts and plans, not where records go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from aria_finetune.conversion import Reject
from aria_finetune.conversion.derived import not_used
from aria_finetune.data.chat import ChatTokenizer, Turn
from aria_finetune.data.rows import RowPlan
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Record
from aria_finetune.lengthening.joining import join, question_of_all
from aria_finetune.lengthening.parts import JoinedPart


@dataclass
class Joiner:
    """Joins parts as far as they have room.

    `plan` says what a record takes, and raises `RecordError` where that is more than `max_tokens`; videos show `frames` frames or
    more. `tokens` are those of the records so far, `parts` how many of each family are in them, `used` the identities of the records
    that these are of, `left_over` parts that have no room alone.
    """

    plan: Callable[[Record], RowPlan]
    chat: ChatTokenizer
    max_tokens: int
    frames: int
    tokens: list[int] = field(default_factory=list)
    parts: Counter[str] = field(default_factory=Counter)
    used: set[int] = field(default_factory=set)
    left_over: list[Reject] = field(default_factory=list)

    def records(self, parts: Sequence[JoinedPart]) -> Iterator[Record]:
        """Long records of parts of one family: each takes them in their order until the next has no room."""
        costs = _Costs(self, parts)
        waiting = list(reversed(parts))
        while waiting:
            chosen: list[JoinedPart] = []
            tokens = self._fill(chosen, waiting, costs)
            if tokens is None:
                continue
            number = len(self.tokens)
            self.tokens.append(tokens)
            self.parts[chosen[0].family] += len(chosen)
            self.used |= {id(part.record) for part in chosen}
            yield join(chosen, number, frames=self.frames, tokens=tokens)

    def _fill(self, chosen: list[JoinedPart], waiting: list[JoinedPart], costs: _Costs) -> int | None:
        """Choose parts by their costs, and more where there turns out to be room; the tokens of all, or None if none fits."""
        room = self.max_tokens - costs.shared
        while True:
            before = len(chosen)
            while waiting and (not chosen or costs.of(waiting[-1]) <= room):
                chosen.append(waiting.pop())
                room -= costs.of(chosen[-1])
            tokens, dropped = self._fitting(chosen, waiting)
            if tokens is None or dropped or len(chosen) == before:
                return tokens
            room = self.max_tokens - tokens

    def _fitting(self, chosen: list[JoinedPart], waiting: list[JoinedPart]) -> tuple[int | None, bool]:
        """Tokens of as many of the chosen parts as fit indeed, and whether that is not all; the others wait again."""
        dropped = False
        while True:
            try:
                return self.plan(join(chosen, 0, frames=self.frames)).tokens, dropped
            except RecordError as error:
                dropped = True
                last = chosen.pop()
                if not chosen:
                    self.left_over.append(not_used(last.record, error, last.medium.page))
                    return None, dropped
                waiting.append(last)


class _Costs:
    """Tokens of parts that may come together. A digit of their numbers is taken for a token."""

    def __init__(self, joiner: Joiner, parts: Sequence[JoinedPart]) -> None:
        self._joiner = joiner
        self._digits = len(str(len(parts)))
        closing, self._asked_once = question_of_all([part.question for part in parts], parts[0].family)
        self._headers = len(joiner.chat.encode([Turn("user", ()), Turn("assistant", ())]).ids)
        self.shared = self._headers + self._text(closing)
        self._known: dict[int, int] = {}

    def of(self, part: JoinedPart) -> int:
        """Tokens of a part; all that may be, where it has no room alone, as is found out when it is its turn."""
        if id(part) not in self._known:
            self._known[id(part)] = self._reckoned(part)
        return self._known[id(part)]

    def _reckoned(self, part: JoinedPart) -> int:
        try:
            alone = self._joiner.plan(join([part], 0, frames=self._joiner.frames)).tokens
        except RecordError:
            return self._joiner.max_tokens
        closing, _ = question_of_all([part.question], part.family)
        question = 0 if self._asked_once else self._text(f"\n{part.question}\n")
        return alone - self._headers - self._text(closing) + question + 2 * (self._digits - 1)

    def _text(self, text: str) -> int:
        return len(self._joiner.chat.encode_text(text))
