"""What holds for every conversation whatever its format: the order of roles, answers, and characters.

The engine applies `checked` to each draft, so a converter needs none of it.
"""

from __future__ import annotations

import re
from dataclasses import replace

from aria_finetune.data_formats.building import fields
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, Message

# First letters of the roles of a conversation that ends with an answer.
_USUAL_ROLES = re.compile("s?u[uat]*a")

CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|img|>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>")
"""Tokens that steer Aria; inside a text they are only characters, and the tokeniser stage keeps it so."""


def checked(draft: Draft, *, evaluation: bool = False) -> Draft:
    """The draft if it can be trained on, with what was noticed added to its repairs.

    A system turn may only come first, a user turn comes next, and an answer comes last; turns of the same role may
    follow each other; a document has none of these. With `evaluation` the last answer may be missing, and an empty one is removed
    (`empty_answer_removed`). Control tokens are kept and noticed (`control_token_in_text`).

    Raises:
        RecordError: `bad_roles`, `empty_answer` or `bad_text`.
    """
    if evaluation and draft.messages and not draft.document and _is_nothing(draft.messages[-1]):
        draft = replace(draft, messages=draft.messages[:-1], repairs=(*draft.repairs, "empty_answer_removed"))
    if not draft.document:
        _check_roles(draft.messages, evaluation=evaluation)
    _check_answers(draft.messages)
    text = _check_characters(draft)
    if "<" in text and any(token in text for token in CONTROL_TOKENS):
        draft = replace(draft, repairs=(*draft.repairs, "control_token_in_text"))
    return draft


def _check_roles(messages: tuple[Message, ...], *, evaluation: bool) -> None:
    roles = [message.role for message in messages]
    if _USUAL_ROLES.fullmatch("".join([role[0] for role in roles])):
        return
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if "system" in turns:
        raise RecordError(
            "bad_roles", f"turn {len(roles) - len(turns) + turns.index('system')} is a second system turn"
        )
    if turns[:1] != ["user"]:
        raise RecordError("bad_roles", f"the first turn is {turns[0]}, not user" if turns else "there is no turn")
    if evaluation or turns[-1] == "assistant":
        return
    if "assistant" not in turns:
        raise RecordError("empty_answer", "there is no assistant turn")
    raise RecordError("bad_roles", f"the last turn is {turns[-1]}, not assistant")


def _check_answers(messages: tuple[Message, ...]) -> None:
    for number, message in enumerate(messages):
        if message.role == "assistant" and _is_empty(message):
            raise RecordError("empty_answer", f"turn {number} is an assistant turn without text")


def _is_empty(message: Message) -> bool:
    for part in message.content:  # noqa: SIM110 (a generator takes twice as long)
        if part.text and not part.text.isspace():
            return False
    return True


def _is_nothing(message: Message) -> bool:
    return message.role == "assistant" and _is_empty(message) and all(part.media is None for part in message.content)


def _check_characters(draft: Draft) -> str:
    """All texts of the messages in one, if neither they nor anything else holds what UTF-8 can't."""
    joined = "\n".join([part.text for message in draft.messages for part in message.content if part.text])
    _check_text(joined)
    for medium in draft.media:
        _check_text(medium.reference)
    if draft.references or draft.tools:
        _check_text("".join([*draft.references, draft.tools or ""]))
    if draft.meta:
        _check_text(fields.compact_json(draft.meta))
    return joined


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError("bad_text", f"lone surrogate U+{ord(text[error.start]):04X}") from error
