"""Text of tokens as they come: as much as can't change any more, in whole words.

A character may take several tokens, and a secret is known as one only when it is printed whole. Knows a tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_WORDS = re.compile(r".*[\s\u0080-\U0010ffff]", re.DOTALL)


class TextStream:
    """Turns tokens into text and hands it on word by word; `text` is all that was handed on.

    Args:
        tokenizer: of the tokens.
        write: takes a piece of text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]) -> None:
        self._tokenizer, self._write = tokenizer, write
        self._ids: list[int] = []
        self._shown = self._read = 0
        self._waiting = self.text = ""

    def take(self, token: int) -> None:
        """The next token."""
        self._ids.append(token)
        # Some tokenizers write a token in another way at the beginning, so it is read behind those before it.
        before = self._decode(self._ids[self._shown : self._read])
        now = self._decode(self._ids[self._shown :])
        if now.endswith(UNFINISHED):
            return
        self._shown, self._read = self._read, len(self._ids)
        self._waiting += now[len(before) :]
        whole = _WORDS.match(self._waiting)
        if whole:
            self._hand_on(len(whole[0]))

    def end(self) -> None:
        """No token comes any more."""
        before = self._decode(self._ids[self._shown : self._read])
        self._waiting += self._decode(self._ids[self._shown :])[len(before) :]
        self._hand_on(len(self._waiting))

    def _hand_on(self, length: int) -> None:
        piece, self._waiting = self._waiting[:length], self._waiting[length:]
        if piece:
            self.text += piece
            self._write(piece)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text
