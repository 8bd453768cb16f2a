"""Pages of text and images (OBELICS, OmniCorpus, MMC4) against documents written by hand."""

import hashlib

import pytest

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat import aria, llava, messages
from aria_finetune.data_formats.documents import mmc4, obelics, omnicorpus
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked

FORMATS = (obelics.FORMAT, omnicorpus.FORMAT, mmc4.FORMAT, aria.FORMAT, llava.FORMAT, messages.FORMAT)


def text(content):
    return Part("text", text=content)


def image(number):
    return Part("image", media=number)


def convert(form, record):
    (draft,) = form.convert(record)
    return checked(draft)


def page(images, texts, **rest):
    return {"images": images, "texts": texts, **rest}


class TestObelics:
    def test_a_page(self):
        record = page(
            [None, "https://host/a.jpg", None, "b.jpg", "b.jpg"],
            ["One.\n\nTwo.", None, " Three", None, None],
            metadata='[null, {"alt_text": "x"}, null, null, null]',
            general_metadata='{"url": "https://host"}',
        )
        assert convert(obelics.FORMAT, record) == Draft(
            messages=(Message("assistant", (text("One.\n\nTwo."), image(0), text(" Three"), image(1), image(1))),),
            media=(MediaReference("image", "https://host/a.jpg"), MediaReference("image", "b.jpg")),
            meta={
                "metadata": '[null, {"alt_text": "x"}, null, null, null]',
                "general_metadata": '{"url": "https://host"}',
            },
            document=True,
        )

    def test_texts_that_follow_each_other_are_set_apart(self):
        draft = convert(obelics.FORMAT, page([None, None, "a", None], ["One", "two", None, "three"]))
        assert draft.messages[0].content == (text("One\n\ntwo"), image(0), text("three"))

    def test_images_may_lie_in_the_row(self):
        row = page([{"bytes": b"GIF8", "path": None}, None], [None, "One"], preview=b"x")
        draft = convert(obelics.FORMAT, row)
        assert draft.media == (MediaReference("image", "images[0]", content=b"GIF8"),)
        assert draft.meta == {}
        assert draft.repairs == ("bytes_dropped",)

    @pytest.mark.parametrize(
        ("record", "reason"),
        [
            (page([None], ["a", None]), "bad_schema"),
            (page([None, None], ["a", None]), "bad_schema"),
            (page(["a.jpg"], ["a"]), "bad_schema"),
            (page([7], [None]), "bad_schema"),
            (page([""], [None]), "bad_schema"),
            (page([None], [7]), "bad_schema"),
            (page(None, ["a"]), "bad_schema"),
            (page([None], None), "bad_schema"),
            ({"images": [None]}, "bad_schema"),
            ("text", "bad_schema"),
            (page([], []), "empty_answer"),
            (page(["a.jpg"], [None]), "empty_answer"),
            (page([None], [" \n"]), "empty_answer"),
            (page([None], ["\ud800"]), "bad_text"),
        ],
    )
    def test_bad_records(self, record, reason):
        with pytest.raises(RecordError) as caught:
            convert(obelics.FORMAT, record)
        assert caught.value.reason == reason


class TestOmniCorpus:
    URL = "https://host/a.jpg"

    def test_a_page(self):
        record = page(
            [self.URL, None, "frames/1.jpg"],
            [None, "One.", None],
            metadata=[{"width": 640}, None, None],
            general_metadata={"id": "7"},
            doc_loc="cc",
        )
        stored = hashlib.sha256(b"https://host/a.jpg").hexdigest()
        assert convert(omnicorpus.FORMAT, record) == Draft(
            messages=(Message("assistant", (image(0), text("One."), image(1))),),
            media=(
                MediaReference("image", self.URL, alternatives=(stored, f"images/{stored}")),
                MediaReference("image", "frames/1.jpg"),
            ),
            meta={"metadata": [{"width": 640}, None, None], "general_metadata": {"id": "7"}, "doc_loc": "cc"},
            document=True,
        )

    def test_images_marked_invalid_are_left_out(self):
        record = page(["a", None, "b", None], [None, "One", None, "two"], valid_image=[True, False])
        draft = convert(omnicorpus.FORMAT, record)
        assert draft.messages[0].content == (image(0), text("One\n\ntwo"))
        assert [medium.reference for medium in draft.media] == ["a"]
        assert draft.repairs == ("invalid_image_dropped",)

    def test_all_valid_or_unmarked_are_kept(self):
        for flags in ([True], None):
            draft = convert(omnicorpus.FORMAT, page(["a", None], [None, "One"], valid_image=flags))
            assert draft.messages[0].content == (image(0), text("One"))
            assert draft.repairs == ()

    @pytest.mark.parametrize(
        ("record", "reason"),
        [
            (page(["a", None], [None, "One"], valid_image=[True, True]), "bad_schema"),
            (page(["a", None], [None, "One"], valid_image=[]), "bad_schema"),
            (page(["a", None], [None, "One"], valid_image=[1]), "bad_schema"),
            (page(["a", None], [None, "One"], valid_image="yes"), "bad_schema"),
            (page(["a", None], [None], metadata=[]), "bad_schema"),
            (page(["https://\ud800/a", None], [None, "One"], metadata=[]), "bad_text"),
            (page(["a"], [None], valid_image=[False]), "empty_answer"),
        ],
    )
    def test_bad_records(self, record, reason):
        with pytest.raises(RecordError) as caught:
            convert(omnicorpus.FORMAT, record)
        assert caught.value.reason == reason


def shown(sentence, name="a.jpg", **rest):
    return {"image_name": name, "matched_text_index": sentence, **rest}


class TestMMC4:
    def test_images_stand_before_their_sentences(self):
        info = [shown(2, "c.jpg", raw_url="https://host/c"), shown(1, "b.jpg"), shown(2, "d.jpg")]
        record = {"text_list": ["One.", "Two.", "Three.", "Four."], "image_info": info, "url": "https://host"}
        assert convert(mmc4.FORMAT, record) == Draft(
            messages=(
                Message(
                    "assistant",
                    (text("One."), image(0), text("Two."), image(1), image(2), text("Three. Four.")),
                ),
            ),
            media=tuple(MediaReference("image", f"{n}.jpg", alternatives=(f"images/{n}.jpg",)) for n in "bcd"),
            meta={"image_info": info, "url": "https://host"},
            document=True,
        )

    def test_without_a_name_the_url_counts(self):
        info = [{"matched_text_index": 0, "image_name": None, "raw_url": "https://host/c"}]
        draft = convert(mmc4.FORMAT, {"text_list": ["One."], "image_info": info})
        assert draft.media == (MediaReference("image", "https://host/c"),)

    def test_a_page_without_images(self):
        draft = convert(mmc4.FORMAT, {"text_list": ["One.", "Two."], "image_info": []})
        assert draft.messages[0].content == (text("One. Two."),)

    @pytest.mark.parametrize(
        ("sentences", "info", "reason"),
        [
            (["One."], [shown(1)], "bad_schema"),
            (["One."], [shown(-1)], "bad_schema"),
            (["One."], [shown(True)], "bad_schema"),
            (["One."], [shown(0.0)], "bad_schema"),
            (["One."], [shown(None)], "bad_schema"),
            (["One."], [{"image_name": "a.jpg"}], "bad_schema"),
            (["One."], [{"matched_text_index": 0}], "bad_schema"),
            (["One."], [shown(0, 7)], "bad_schema"),
            (["One."], ["a.jpg"], "bad_schema"),
            (["One."], None, "bad_schema"),
            ([None], [], "bad_schema"),
            ("One.", [], "bad_schema"),
            ([], [], "empty_answer"),
            ([""], [shown(0)], "empty_answer"),
        ],
    )
    def test_bad_records(self, sentences, info, reason):
        with pytest.raises(RecordError) as caught:
            convert(mmc4.FORMAT, {"text_list": sentences, "image_info": info})
        assert caught.value.reason == reason


LISTS = page([None], ["a"])


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (LISTS, "obelics"),
        (page([], []), "obelics"),
        (page(["a", 7], ["b", 7]), "obelics"),
        ({**LISTS, "metadata": "[]", "general_metadata": "{}"}, "obelics"),
        ({**LISTS, "metadata": None, "general_metadata": None}, "obelics"),
        ({**LISTS, "metadata": [None]}, "omnicorpus"),
        ({**LISTS, "general_metadata": {}}, "omnicorpus"),
        ({**LISTS, "valid_image": []}, "omnicorpus"),
        ({"text_list": None, "image_info": None}, "mmc4"),
    ],
)
def test_a_record_is_recognised(record, name):
    assert registry.detect([record], FORMATS).name == name


@pytest.mark.parametrize(
    "record",
    [
        page([{"bytes": b"", "path": None}], [{"user": "What?", "assistant": "A cat.", "source": "x"}]),
        {"images": ["a.jpg"], "text": "<image> a"},
        {"text_list": ["a"]},
        {"texts": ["a"]},
        ["a"],
        "text_list",
    ],
)
def test_other_records_are_not(record):
    assert not any(form.matches(record) for form in FORMATS)
