"""Ids back to text, cut where tokens begin; and text that can be looked at without harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aria_finetune.data.chat import CONTROL_TOKENS, ChatTokenizer
from aria_finetune.tiny.architecture import tiny_tokenizer
from aria_finetune.viewing.pieces import Piece, decode_pieces, visible

UNKNOWN = "<unk>"
LETTERS = ChatTokenizer(tiny_tokenizer([]))


def test_a_token_is_a_piece_and_the_bytes_of_a_character_stay_together(letter_chat: ChatTokenizer) -> None:
    ids = letter_chat.encode_text("a é漢\n")
    assert len(ids) == 8
    assert decode_pieces(letter_chat, ids) == [
        Piece("a", 1), Piece(" ", 1), Piece("é", 2), Piece("漢", 3), Piece("\n", 1),
    ]  # fmt: skip


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_text_comes_back_and_no_token_is_lost(text: str) -> None:
    ids = LETTERS.encode_text(text)
    pieces = decode_pieces(LETTERS, ids)
    assert "".join(piece.text for piece in pieces) == text
    assert sum(piece.tokens for piece in pieces) == len(ids)


def test_bytes_that_are_no_character_are_told_as_such(letter_chat: ChatTokenizer) -> None:
    whole = letter_chat.encode_text("漢")
    pieces = decode_pieces(letter_chat, [*whole[:2], *letter_chat.encode_text("ab")])
    assert "".join(piece.text for piece in pieces) == "\ufffdab"
    assert sum(piece.tokens for piece in pieces) == 4
    assert decode_pieces(letter_chat, []) == []


def sentence_pieces(decoder: decoders.Decoder, scheme: str = "first") -> ChatTokenizer:
    characters = sorted(set("▁nowaysertidmf<|>_\n"))
    vocabulary = {token: index for index, token in enumerate([UNKNOWN, *CONTROL_TOKENS, *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    return ChatTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN))


def test_a_space_that_begins_a_run_stays() -> None:
    chat = sentence_pieces(decoders.Metaspace(prepend_scheme="first"))
    pieces = decode_pieces(chat, chat.encode_text(" no way"))
    assert [piece.text for piece in pieces] == list(" no way")


def test_a_decoder_that_looks_at_neighbours_gives_one_piece() -> None:
    """This one takes away spaces at the end of whatever it decodes."""
    chat = sentence_pieces(decoders.Sequence([decoders.Metaspace(), decoders.Fuse(), decoders.Strip(" ", 0, 1)]))
    ids = chat.encode_text("no way")
    assert decode_pieces(chat, ids) == [Piece("no way", len(ids))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\n\ttext é漢😀", "plain\n\ttext é漢😀"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("a\rb\x00c\x7f\x9b", "a\\rb\\x00c\\x7f\\x9b"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\\ud800"),
        ("क\u200cष 👩\u200d🔬", "क\u200cष 👩\u200d🔬"),
        ("\u2028\u2029", "\\u2028\\u2029"),
    ],
)
def test_what_can_not_be_seen_is_spelled_out(text: str, expected: str) -> None:
    assert visible(text) == expected
