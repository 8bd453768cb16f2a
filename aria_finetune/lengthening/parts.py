"""What of a record can be a part of a longer one: its only medium, what is asked of it, and the answer.

Knows records. Knows nothing of tokens or of how parts are put together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from aria_finetune.data_formats.documents.pdf_folder import TEXT_PROMPT
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Media, Message, Record
from aria_finetune.media.documents import in_one

Family = Literal["image", "video", "document", "page"]
FAMILIES: tuple[Family, ...] = ("image", "video", "document", "page")
"""Of which parts of one record are: only what is alike is joined. A page is one of a document, a document all of them."""


@dataclass(frozen=True)
class JoinedPart:
    """A record of one question about one medium."""

    record: Record
    medium: Media
    question: str
    answer: str

    @property
    def family(self) -> Family:
        """What it is joined with."""
        if self.medium.kind == "document":
            return "document" if self.medium.page is None else "page"
        return "video" if self.medium.kind == "video" else "image"

    @property
    def origin(self) -> dict[str, Any]:
        """Where it came from, as plain JSON values, with what its format did not understand."""
        return {"id": self.record.id, "source": self.record.source.to_dict(), "meta": json.loads(self.record.meta)}


def part_of(record: Record) -> JoinedPart:
    """A record as a part of a longer one.

    Raises:
        RecordError: `not_joined`, it is something else than one question about one medium with its answer.
    """
    if record.tools is not None or [message.role for message in record.messages] != ["user", "assistant"]:
        raise RecordError("not_joined", "it is not one question and one answer")
    asked, said = record.messages
    shown = [part.media for part in asked.content if part.media is not None]
    if len(shown) != 1 or any(part.media is not None for part in said.content):
        raise RecordError("not_joined", f"it shows {len(shown)} media in its question, and a part of a longer row one")
    if said.train is False:
        raise RecordError("not_joined", "its answer is kept out of the loss")
    return JoinedPart(record, record.media[shown[0]], _text(asked), _text(said))


def pages_of(part: JoinedPart, texts: Sequence[str]) -> list[JoinedPart]:
    """The pages of a document, each with its own text, where the answer was the text of all of them; else the part as it is."""
    if part.family != "document" or part.question != TEXT_PROMPT or part.answer != in_one(texts).strip():
        return [part]
    return [
        replace(part, medium=replace(part.medium, page=page), answer=text.strip()) for page, text in enumerate(texts, 1)
    ]


def _text(message: Message) -> str:
    return "".join(part.text or "" for part in message.content).strip()
