r"""Aria's chat format as token ids, with the label of every token.

A turn is `<|im_start|>ROLE\n` + content + `<|im_end|>\n`; an image is `<fim_prefix>`, its image tokens and
`<fim_suffix>`. The loss covers assistant replies, their `<|im_end|>` and the newline behind it, as the
authors' training code has it, and never an image token. Knows nothing of files or pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from transformers import PreTrainedTokenizerBase

from aria_finetune.errors import UserError

IGNORED = -100
CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<fim_prefix>", "<fim_suffix>", "<|img|>")
LossOn = Literal["assistant", "last_turn"]


@dataclass(frozen=True, slots=True)
class Text:
    """Words of a message. Control tokens in them are plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """The place of one image, all its tiles together: `tokens` image tokens between prefix and suffix."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Turn:
    """A message. `train` None leaves the loss of an assistant turn to `loss_on`."""

    role: str
    content: tuple[Text | Picture, ...]
    train: bool | None = None


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids and labels of a conversation, of equal length; a label is the id itself or -100."""

    ids: list[int]
    labels: list[int]

    @property
    def label_count(self) -> int:
        """Number of tokens in the loss. The first token has no predecessor and is never one."""
        return sum(label != IGNORED for label in self.labels)


class ChatTokenizer:
    """Renders turns with a tokenizer of Aria. `control_ids` are those that text never has.

    Raises:
        UserError: the tokenizer lacks one of Aria's control tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in CONTROL_TOKENS if token not in vocabulary]
        if missing:
            raise UserError(
                f"the tokenizer lacks Aria's control token(s) {', '.join(missing)}",
                fix="use the tokenizer files of rhymes-ai/Aria",
            )
        self.start, self.end, self.prefix, self.suffix, self.image = (vocabulary[token] for token in CONTROL_TOKENS)
        special = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= {token: vocabulary[token] for token in CONTROL_TOKENS}
        self._special_strings = re.compile("|".join(map(re.escape, special)))
        # Unknown characters become `<unk>` in any text.
        self.control_ids = frozenset(set(special.values()) - {tokenizer.unk_token_id})
        alone = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._marks_beginnings = alone != self._encode_behind_control("a")

    def encode(
        self, turns: Sequence[Turn], *, loss_on: LossOn = "assistant", generation_prompt: bool = False
    ) -> Encoding:
        """Ids and labels of a conversation.

        Args:
            turns: the conversation, in order.
            loss_on: `assistant` puts every assistant turn in the loss, `last_turn` only the last one; a turn's own
                `train` goes before either.
            generation_prompt: end with the header of an assistant turn, for an answer to be generated.
        """
        encoding = Encoding([], [])
        last = max((index for index, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        for index, turn in enumerate(turns):
            chosen = turn.role == "assistant" and (loss_on == "assistant" or index == last)
            in_loss = turn.role == "assistant" and turn.train if turn.train is not None else chosen
            self._append_turn(encoding, turn, in_loss=in_loss)
        if generation_prompt:
            self._append(encoding, [self.start, *self.encode_text("assistant\n")], in_loss=False)
        return encoding

    def _append_turn(self, encoding: Encoding, turn: Turn, *, in_loss: bool) -> None:
        self._append(encoding, [self.start], in_loss=False)
        pending = f"{turn.role}\n"
        if turn.role == "assistant":
            # A reply is generated behind a finished header, so it is tokenised apart from it.
            self._append(encoding, self.encode_text(pending), in_loss=False)
            pending = ""
        for part in turn.content:
            if isinstance(part, Text):
                pending += part.text
                continue
            self._append(encoding, self.encode_text(pending), in_loss=in_loss)
            self._append(encoding, [self.prefix, *[self.image] * part.tokens, self.suffix], in_loss=False)
            pending = ""
        self._append(encoding, self.encode_text(pending), in_loss=in_loss)
        self._append(encoding, [self.end, *self.encode_text("\n")], in_loss=in_loss)

    @staticmethod
    def _append(encoding: Encoding, ids: list[int], *, in_loss: bool) -> None:
        encoding.ids.extend(ids)
        encoding.labels.extend(ids if in_loss else [IGNORED] * len(ids))

    def encode_text(self, text: str) -> list[int]:
        """Ids of a run of plain text as it reads behind a control token; never a control token itself."""
        if not text:
            return []
        if self._special_strings.search(text):
            return self._encode_literally(text)
        return self._encode_behind_control(text)

    def _encode_behind_control(self, text: str) -> list[int]:
        # Encoded with a control token and cut, because sentence-piece tokenizers put a space before text
        # that begins a string.
        ids: list[int] = self.tokenizer(CONTROL_TOKENS[1] + text, add_special_tokens=False)["input_ids"]
        return ids[1:]

    def _encode_literally(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if self._marks_beginnings:
            # No control token can stand in front here, so special strings are cut behind their first character.
            cuts = [0, *(found.start() + 1 for found in self._special_strings.finditer(text)), len(text)]
            ids = [index for cut in pairwise(cuts) for index in self._encode_behind_control(text[slice(*cut)])]
        if not self.control_ids.isdisjoint(ids):
            raise UserError(
                "the tokenizer turns control tokens inside text into control, so a user could forge a turn",
                fix="use the fast tokenizer of rhymes-ai/Aria (tokenizer.json)",
            )
        return ids
