"""Token ids back to text, token by token, and text made safe to look at. Knows a tokenizer, not what the text is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from aria_finetune.data.chat import CONTROL_TOKENS, ChatTokenizer

LONGEST_CHARACTER = 8
"""Tokens that one character may take: up to four bytes, and a mark of its beginning."""

_KEPT = frozenset("\n\t\u200c\u200d\u00a0\u202f\u3000")
_UNFINISHED = "\ufffd"


class Piece(NamedTuple):
    """Text of `tokens` tokens: of one, or of the several that spell one character."""

    text: str
    tokens: int


def decode_pieces(chat: ChatTokenizer, ids: Sequence[int]) -> list[Piece]:
    """The text of a run of ids as it reads behind a control token, cut where tokens begin."""
    pieces: list[Piece] = []
    alone = {index: _decode(chat, [index]) for index in set(ids)}
    pending: list[int] = []
    for place, index in enumerate(ids):
        pending.append(index)
        text = alone[index] if len(pending) == 1 else _decode(chat, pending)
        if text.endswith(_UNFINISHED) and len(pending) < LONGEST_CHARACTER and place + 1 < len(ids):
            continue  # the bytes of a character that goes on in the next token
        pieces.append(Piece(text, len(pending)))
        pending = []
    whole = _decode(chat, ids)
    if "".join(piece.text for piece in pieces) != whole:
        return [Piece(whole, len(ids))]  # a decoder that looks at neighbours
    return pieces


def _decode(chat: ChatTokenizer, ids: Sequence[int]) -> str:
    # Behind a control token, because sentence-piece decoders take away a space that begins a string.
    text: str = chat.tokenizer.decode([chat.end, *ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text.removeprefix(CONTROL_TOKENS[1])


def visible(text: str) -> str:
    r"""The text with characters that can't be seen, or that move others about, as escapes such as `\x1b` and `\u202e`.

    Line breaks and tabs stay, as do joiners, which scripts and emoji need, and wide and unbreakable spaces.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in _KEPT else _escaped(character) for character in text
    )


def _escaped(character: str) -> str:
    return (
        character.encode("ascii", "backslashreplace").decode("ascii") if ord(character) > 127 else repr(character)[1:-1]
    )
