"""What need not be read again of a conversation, and that what is kept answers as a reading from the beginning does."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from aria_finetune.generation.decoding import Wish, decode
from aria_finetune.generation.kept import Kept, Seen, shared
from aria_finetune.model.experts import LEAN
from aria_finetune.model.loading import load_model


def kept(ids: list[int], pictures: list[Seen]) -> Kept:
    """A conversation whose keys are its ids."""
    cache = DynamicCache()
    cache.update(*(torch.tensor(ids).view(1, 1, -1, 1).float(),) * 2, 0)
    return Kept(ids, pictures, cache)


CAT, DOG = Seen(2, 3, "cat"), Seen(7, 2, "dog")
IDS = [1, 4, 9, 9, 9, 8, 4, 9, 9, 8, 5]


@pytest.mark.parametrize(
    ("ids", "pictures", "same"),
    [
        ([*IDS, 6], [CAT, DOG], 11),
        (IDS, [CAT, DOG], 10),  # the last token is read again
        (IDS[:9], [CAT, DOG], 7),  # which is within a picture
        ([1, 4, 9, 9, 9, 8, 4, 3, 3, 3], [CAT], 7),
        ([*IDS, 6], [CAT, Seen(7, 2, "cow")], 7),
        ([*IDS, 6], [Seen(2, 3, "cow"), DOG], 2),
        ([1, 4, 9, 9, 8, 8], [Seen(2, 2, "cat")], 2),
        ([3, 3], [], 0),
        ([1], [], 0),
    ],
)
def test_what_is_the_same(ids: list[int], pictures: list[Seen], same: int) -> None:
    before = kept(list(IDS), [CAT, DOG])
    assert before.cut(ids, pictures) == same
    assert before.ids == IDS[:same]
    assert before.pictures == [seen for seen in (CAT, DOG) if seen.place < same]
    assert before.cache.layers[0].keys.flatten().tolist() == IDS[:same]
    before.forget()
    assert before.cut(ids, pictures) == 0


def test_beginnings() -> None:
    assert [shared(*pair) for pair in [("abc", "abd"), ("", "a"), ("ab", "abc"), ("x", "y")]] == [2, 0, 2, 0]


def test_a_conversation_goes_on_as_if_it_were_read_anew() -> None:
    model = load_model("tiny", experts="fp32", dtype=torch.float32, implementation=LEAN).model
    talk, ids = Kept(), [4, 30, 40, 50, 60]
    for turn in range(3):
        same = talk.cut(ids, [])
        assert same == (0 if turn == 0 else len(talk.ids))
        rest = torch.tensor([ids[same:]])
        batch = {"input_ids": rest, "attention_mask": torch.ones_like(rest)}
        (found,) = decode(model, batch, None, Wish([], 8), cache=talk.cache)
        whole = torch.tensor([ids])
        (due,) = decode(model, {"input_ids": whole, "attention_mask": torch.ones_like(whole)}, None, Wish([], 8))
        assert found == due
        talk.ids = [*ids, *found.ids[:-1]]
        assert talk.cache.get_seq_length() == len(talk.ids)
        ids = [*ids, *found.ids, 70 + turn, 5, 4]
