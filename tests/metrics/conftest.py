"""Records as a converted data set has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from aria_finetune.data_formats.record import Media, Message, Part, Record, Source


@pytest.fixture
def make_record() -> Callable[..., Record]:
    def make(
        turns: Sequence[tuple[str, str]] = (("user", "?"),),
        *,
        references: Sequence[str] = (),
        meta: dict[str, Any] | None = None,
        form: str = "messages",
        media: Sequence[Media] = (),
    ) -> Record:
        messages = tuple(Message(role, (Part("text", text),)) for role, text in turns)  # type: ignore[arg-type]
        source = Source(form, "rows.json", 0, "1")
        return Record("id", messages, tuple(media), tuple(references), None, json.dumps(meta or {}), source)

    return make
