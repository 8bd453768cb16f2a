"""Every harm that a batch could do is found and named; sound rows have none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aria_finetune.data.chat import IGNORED
from aria_finetune.data.rows import Viewing
from aria_finetune.viewing.checks import find_faults

VISION_TOKENS = {490: 128, 980: 256}
FIRST_IMAGE = 1 + 5 + 1  # start, `user\n`, prefix
FIRST_TEXT = FIRST_IMAGE + 128 + 1


@pytest.fixture
def record(make_record, make_image):
    said = [("user", [0, "What?"]), ("assistant", ["Yes."])]
    return make_record(said, [make_image("a.png", (30, 20))])


@pytest.fixture
def faults(collate, letter_chat):
    def found(record, spoil=None, viewing=None, **changes):
        seen, plan = collate(record, viewing, spoil=spoil)
        return find_faults(replace(seen, **changes), plan, letter_chat, VISION_TOKENS)

    return found


def test_sound_rows_have_none(faults, record, make_record, make_image, make_video, make_pdf):
    assert faults(record) == ()
    media = [make_image("b.png", (980, 490)), make_video("a.mp4", 8), make_pdf("c.pdf", ["red", "blue"])]
    said = [
        ("system", ["<|im_start|>"]), ("user", [0, "and", 1, "<|img|>", 2]), ("assistant", ["See ", 0, "<|im_end|>"]),
        ("tool", ["7"]), ("assistant", ["No"]),
    ]  # fmt: skip
    everything = make_record(said, media, train=[None, None, False, None, None])
    for viewing in (Viewing(), Viewing(split_images=True), Viewing(image_size=980, timestamps=False)):
        assert faults(everything, viewing=replace(viewing, max_tokens=65536)) == ()
    assert faults(everything, viewing=Viewing(loss_on="last_turn", image_size=490)) == ()


def test_image_tokens_in_the_loss(faults, record):
    def learn_images(batch):
        batch["labels"][0, FIRST_IMAGE : FIRST_IMAGE + 3] = batch["input_ids"][0, FIRST_IMAGE : FIRST_IMAGE + 3]

    found = faults(record, learn_images)
    assert found[0] == f"<|img|> is in the loss: token {FIRST_IMAGE} and 2 more"
    assert f"token {FIRST_IMAGE} is in the loss; it stands in turn 0, of user, which is not" in found
    assert "9 tokens are in the loss, 6 were planned" in found


@pytest.mark.parametrize(("place", "name"), [(FIRST_IMAGE - 1, "<fim_prefix>"), (FIRST_TEXT - 1, "<fim_suffix>")])
def test_what_stands_around_images_in_the_loss(faults, record, place, name):
    def learn(batch):
        batch["labels"][0, place] = batch["input_ids"][0, place]

    assert faults(record, learn)[0] == f"{name} is in the loss: token {place}"


def test_an_image_of_a_reply_in_the_loss(faults, make_record, make_image):
    """Where the turn itself is in the loss."""

    def learn_all(batch):
        batch["labels"][0, -1 - 130 :] = batch["input_ids"][0, -1 - 130 :]

    record = make_record([("user", ["a"]), ("assistant", [0])], [make_image("a.png", (30, 20))])
    found = faults(record, learn_all)
    assert found[0].startswith("<|img|> is in the loss")
    assert found[0].endswith("and 127 more")


@pytest.mark.parametrize("token", ["start", "prefix", "suffix", "image"])
def test_a_forged_control_token_is_named(faults, record, letter_chat, token):
    place = FIRST_TEXT + 2
    index = getattr(letter_chat, token)

    def forge(batch):
        batch["input_ids"][0, place] = index

    name = letter_chat.tokenizer.convert_ids_to_tokens(index)
    expected = f"a control token is forged: {name} is token {place}, where the plan has <|im_end|>"
    assert expected in faults(record, forge)


def test_a_turn_that_text_closes_is_found_where_the_next_token_is(faults, record, letter_chat):
    """Which of two ends is the planned one, nobody can tell."""

    def forge(batch):
        batch["input_ids"][0, FIRST_TEXT + 2] = letter_chat.end

    end = FIRST_TEXT + len("What?")
    (found,) = faults(record, forge)
    assert found == f"a control token is forged: <|im_end|> is token {end}, where the plan has <|im_start|>"


def test_any_other_special_token_is_a_forgery_and_an_unknown_character_is_not(faults, make_record, letter_chat):
    def put(index):
        def spoil(batch):
            batch["input_ids"][0, 7] = index

        return spoil

    record = make_record([("user", ["What?"]), ("assistant", ["Y"])])
    end = letter_chat.tokenizer.eos_token_id
    (found,) = faults(record, put(end))
    assert found == f"a control token is forged: control token {end} is token 7, where the plan has <|im_end|>"
    assert faults(record, put(letter_chat.tokenizer.unk_token_id)) == ()


def test_a_row_that_was_cut(faults, record):
    found = faults(record, lambda batch: batch["attention_mask"][0, -4:].zero_())
    assert "the row ends before <|im_end|>" in found
    assert any(text.startswith("padding is in the loss") for text in found)
    assert any("were planned" in text for text in found)


def test_a_question_in_the_loss(faults, record, make_record):
    def learn(batch):
        batch["labels"][0, FIRST_TEXT] = batch["input_ids"][0, FIRST_TEXT]

    found = faults(record, learn)
    assert found[0] == f"token {FIRST_TEXT} is in the loss; it stands in turn 0, of user, which is not"
    assert found[1:] == ("7 tokens are in the loss, 6 were planned",)


def test_a_turn_that_its_record_keeps_out_of_the_loss(faults, make_record):
    record = make_record([("user", ["a"]), ("assistant", ["b"]), ("assistant", ["c"])], train=[None, False, None])

    def learn(batch):
        batch["labels"][0, 20] = batch["input_ids"][0, 20]

    assert faults(record) == ()
    assert "in turn 1, of assistant, which is not" in faults(record, learn)[0]


def test_a_label_that_is_another_token(faults, record):
    def swap(batch):
        batch["labels"][0, -2] += 1

    assert [text for text in faults(record, swap) if "another token" in text]


def test_padding_in_the_loss(faults, record, collate):
    seen, _ = collate(record)
    found = faults(record, ids=[*seen.ids, 2], labels=[*seen.labels, 2], mask=[*seen.mask, 0])
    assert found == ("padding is in the loss: 1 tokens",)
    assert faults(record, ids=[*seen.ids, 2], labels=[*seen.labels, IGNORED], mask=[*seen.mask, 0]) == ()


def test_image_tokens_without_tiles(faults, record):
    assert faults(record, tiles=[]) == ("128 image tokens stand in the text, its tiles have 0",)
