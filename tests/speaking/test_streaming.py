"""Text as it comes is the text of all tokens, in whole words, with nothing secret in it."""

from __future__ import annotations

import io
import random

import pytest
from transformers import AriaProcessor, PreTrainedTokenizerFast

from aria_finetune.redaction import RedactingStream
from aria_finetune.speaking.streaming import TextStream

TEXTS = [
    "A circle with a hole.",
    "naïve Ω — 火车 🚂🚃, fin\n\n  indented\ttext ",
    "\U0001d518\U0001d52b\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "",
    " ",
    "nospaceatall",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_up_the_text(
    text: str, tiny_aria_processor: AriaProcessor, letters: PreTrainedTokenizerFast
) -> None:
    """With merges and byte by byte, where a character takes up to four tokens."""
    for tokenizer in (tiny_aria_processor.tokenizer, letters):
        pieces: list[str] = []
        stream = TextStream(tokenizer, pieces.append)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for token in ids:
            stream.take(token)
        stream.end()
        assert "".join(pieces) == stream.text == tokenizer.decode(ids) == text
        assert all(pieces)
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
        assert all(piece[-1].isspace() or not piece[-1].isascii() for piece in pieces[:-1])


def test_tokens_that_make_no_character(letters: PreTrainedTokenizerFast) -> None:
    """Bytes in any order: what is shown in the end is what the tokenizer makes of them all, or of them in pieces."""
    draw = random.Random(1)
    for _ in range(50):
        ids = [draw.randrange(10, 266) for _ in range(12)]
        stream = TextStream(letters, lambda _: None)
        for token in ids:
            stream.take(token)
        stream.end()
        whole = letters.decode(ids)
        assert stream.text.replace("\N{REPLACEMENT CHARACTER}", "") == whole.replace("\N{REPLACEMENT CHARACTER}", "")


def test_control_tokens_are_not_shown(tiny_aria_processor: AriaProcessor) -> None:
    stream = TextStream(tiny_aria_processor.tokenizer, lambda _: None)
    for token in tiny_aria_processor.tokenizer("<|im_start|>red<|img|> blue<|im_end|>", add_special_tokens=False)[
        "input_ids"
    ]:
        stream.take(token)
    stream.end()
    assert stream.text == "red blue"


def test_a_secret_is_printed_whole_and_so_hidden(letters: PreTrainedTokenizerFast) -> None:
    shown = io.StringIO()
    stream = TextStream(letters, RedactingStream(shown).write)
    secret = "hf_" + "aB3" * 12
    for token in letters(f"my token is {secret} of course", add_special_tokens=False)["input_ids"]:
        stream.take(token)
    stream.end()
    assert secret not in shown.getvalue()
    assert shown.getvalue().startswith("my token is ")
    assert shown.getvalue().endswith(" of course")
