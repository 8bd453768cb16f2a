"""A conversation with a model: what was said, what is to be shown next, and one more turn of it.

What the model has read stays read from turn to turn as far as nothing before it changes. Knows a speaker and records, no terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from aria_finetune.conversion.derived import derived_set
from aria_finetune.conversion.engine import problems_told
from aria_finetune.data.rows import plan_row
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import PartType
from aria_finetune.errors import MediaError, UserError
from aria_finetune.generation import text_of
from aria_finetune.generation.decoding import Answer
from aria_finetune.generation.kept import Kept
from aria_finetune.media.inspection import Inspector
from aria_finetune.speaking.answering import Asking, refusal
from aria_finetune.speaking.attaching import Attached, Attacher, Said, record_of
from aria_finetune.speaking.speaker import Speaker, told
from aria_finetune.speaking.streaming import TextStream

FORM = "conversation"
"""What the manifest of a saved one calls its format."""


class Conversation:
    """One conversation; to be closed.

    Args:
        speaker: the model.
        asking: how its answers are made; draws go by the number of the turn.
        system: what is said before all else.
    """

    def __init__(self, speaker: Speaker, asking: Asking, system: str | None = None) -> None:
        self._speaker, self._asking, self.system = speaker, asking, system
        self._open = ExitStack()
        self._inspector = Inspector(speaker.media_timeout)
        self._open.callback(self._inspector.close)
        self._attacher = Attacher(self._inspector, speaker.showing.image_limits.max_pixels)
        self._turns: list[tuple[str, list[Said]]] = []
        self._kept = Kept()
        self.attached: list[Attached] = []

    def close(self) -> None:
        """End the process that looks into media."""
        self._open.close()

    def __len__(self) -> int:
        """How many questions were answered."""
        return len(self._turns) // 2

    def attach(self, kind: PartType, path: str) -> str:
        """Show a file with what is said next; returns what it is.

        Raises:
            UserError: it can't be used.
        """
        attached = Attached(kind, path)
        try:
            medium = self._attacher.medium(attached)
        except MediaError as error:
            raise told(error, path) from error
        self.attached.append(attached)
        match kind:
            case "video":
                return f"{medium.duration:.1f} s, {medium.frames} frames of {medium.width} x {medium.height}"
            case "document":
                return f"{medium.frames} page(s)"
            case _:
                return f"{medium.width} x {medium.height} pixels"

    def reset(self) -> None:
        """Begin anew, with the same system turn."""
        self._turns, self.attached = [], []
        self._kept.forget()

    def say(self, text: str, write: Callable[[str], None], wanted: Callable[[], bool] | None = None) -> Answer:
        """Ask, with what is attached, and hand the answer on as it comes.

        An answer that was stopped counts as far as it went; a question without any is as if it had not been asked.

        Raises:
            UserError: a file can't be used any more, or the conversation is longer than the context; the question is taken back.
        """
        said: list[Said] = [*self.attached, *([text] if text else [])]
        self.attached = []
        stream = TextStream(self._speaker.chat.tokenizer, write)
        turns = [*self._turns, ("user", said)]
        wish = self._speaker.wish(self._asking.max_new_tokens, self._asking.sampling)
        try:
            plan = plan_row(
                record_of(FORM, self._with_system(turns), self._attacher),
                self._speaker.viewing,
                self._speaker.chat,
                generation=True,
                inspector=self._inspector,
            )
            answer = self._speaker.answer(
                plan, self._kept, wish, row=len(self), watch=lambda _, token: stream.take(token), wanted=wanted
            )
        except MediaError as error:
            raise told(error, "what is attached") from error
        except RecordError as error:
            raise refusal(error, self._speaker) from error
        except torch.OutOfMemoryError as error:
            fix = "/reset, show less, or start the chat with a lower --max-new-tokens or with --experts-on host"
            raise UserError("the GPU's memory ran out; the question is taken back", fix=fix) from error
        stream.end()
        words = text_of(answer, self._speaker.chat)
        if words:
            self._turns = [*turns, ("assistant", [words])]
        return answer

    def save(self, folder: Path) -> None:
        """Write what was said as a data set of one row, its media copied beside it, for `train` to read.

        Raises:
            UserError: nothing was said, a medium is gone, something is at the folder already, or it can't be written.
        """
        if not self._turns:
            raise UserError("nothing was said yet", fix="ask something first")
        try:
            record = record_of(f"{FORM}:0", self._with_system(self._turns), self._attacher)
        except (MediaError, RecordError) as error:
            raise UserError(f"{error.reason}: {error.detail}", where=str(folder)) from error
        with problems_told(folder), derived_set(folder, FORM, {}) as made:
            made.report = {"source_records": 1, "read": 1, "written": 1, "rejected": 0}
            made.add(record)

    def _with_system(self, turns: list[tuple[str, list[Said]]]) -> list[tuple[str, list[Said]]]:
        return [("system", [self.system]), *turns] if self.system else turns
