"""Rows that hold their media as bytes, against conversations written by hand."""

import pytest

from aria_finetune.data_formats.building import media_bytes, media_fields
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked
from aria_finetune.data_formats.tables.embedded import FORMAT

PNG, MP4 = b"\x89PNG", b"\0\0\0\x18ftyp"
IMAGE = {"bytes": PNG, "path": "a.png"}


def text(content):
    return Part("text", text=content)


def converted(record):
    return [checked(draft) for draft in FORMAT.convert(record)]


def said(draft):
    user, assistant = draft.messages
    return user.content[-1].text, assistant.content[0].text


def test_a_caption():
    assert converted({"image": IMAGE, "caption": "A cat.", "id": 7, "thumbnail": PNG}) == [
        Draft(
            messages=(
                Message("user", (Part("image", media=0), text("Describe the image."))),
                Message("assistant", (text("A cat."),)),
            ),
            media=(MediaReference("image", "a.png", content=PNG),),
            references=("A cat.",),
            meta={"id": 7},
            repairs=("bytes_dropped",),
        )
    ]


@pytest.mark.parametrize(
    ("record", "media"),
    [
        ({"image": PNG}, (MediaReference("image", "image", content=PNG),)),
        ({"image": {"bytes": PNG, "path": None}}, (MediaReference("image", "image", content=PNG),)),
        ({"image": {"bytes": PNG}}, (MediaReference("image", "image", content=PNG),)),
        ({"image": {"bytes": None, "path": "x.png"}}, (MediaReference("image", "x.png"),)),
        (
            {"images": [PNG, {"bytes": MP4, "path": "b.png"}]},
            (MediaReference("image", "images[0]", content=PNG), MediaReference("image", "b.png", content=MP4)),
        ),
        ({"video": MP4, "image": None}, (MediaReference("video", "video", content=MP4),)),
        ({"pdf": b"%PDF-"}, (MediaReference("document", "pdf", content=b"%PDF-"),)),
    ],
)
def test_the_media_of_a_row(record, media):
    (draft,) = converted({**record, "text": "This."})
    assert draft.media == media
    assert draft.meta == {}
    assert draft.repairs == ()


@pytest.mark.parametrize(
    ("columns", "question", "answer", "references"),
    [
        ({"question": "What?", "answer": "A cat."}, "What?", "A cat.", ("A cat.",)),
        ({"question": "What?", "answers": ["a", "b", "b"]}, "What?", "b", ("a", "b")),
        ({"label": "cats"}, "What does the image show?", "cats", ("cats",)),
        ({"text": "A cat.", "label": 3}, "Describe the image.", "A cat.", ("A cat.",)),
    ],
)
def test_what_is_said(columns, question, answer, references):
    (draft,) = converted({"image": IMAGE, **columns})
    assert said(draft) == (question, answer)
    assert draft.references == references


def test_each_of_several_captions():
    drafts = converted({"image": IMAGE, "captions": ["One.", "Two."]})
    assert [said(draft)[1] for draft in drafts] == ["One.", "Two."]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"image": IMAGE}, "bad_schema"),
        ({"image": IMAGE, "text": "a", "caption": "b"}, "bad_schema"),
        ({"image": IMAGE, "label": 3}, "bad_schema"),
        ({"image": {"bytes": "iVBO", "path": None}, "text": "a"}, "bad_schema"),
        ({"image": {"bytes": None, "path": None}, "text": "a"}, "bad_schema"),
        ({"image": {"bytes": PNG, "path": 3}, "text": "a"}, "bad_schema"),
        ({"images": [PNG, 3], "text": "a"}, "bad_schema"),
        ({"images": [], "text": "a"}, "bad_schema"),
        ({"image": None, "text": "a"}, "bad_schema"),
        ([IMAGE], "bad_schema"),
        ({"image": IMAGE, "audio": {"bytes": b"x"}, "text": "a"}, "unsupported_modality"),
        ({"image": IMAGE, "text": None}, "empty_answer"),
        ({"image": IMAGE, "question": "What?", "answers": []}, "empty_answer"),
    ],
)
def test_bad_records(record, reason):
    with pytest.raises(RecordError) as caught:
        converted(record)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("record", "matches"),
    [
        ({"image": PNG, "text": None}, True),
        ({"images": [None, IMAGE], "caption": "a"}, True),
        ({"video": {"bytes": None, "path": None}, "question": "What?"}, True),
        ({"image": IMAGE, "label": 3}, True),
        ({"image": "a.png", "text": "a"}, False),
        ({"image": {"path": "a.png"}, "text": "a"}, False),
        ({"image": IMAGE}, False),
        ({"image": IMAGE, "ground_truth": "{}", "text": "a"}, False),
        ({"image": IMAGE, "question": "What?", "choices": ["a"], "answer": 0}, False),
        ({"image": IMAGE, "conversations": [], "text": "a"}, False),
        ({"images": [IMAGE], "texts": [], "text": "a"}, False),
        ({"images": ["a.png"], "image_bytes": [PNG], "text": "a"}, False),
        ({"__key__": "1", "image": PNG, "text": "a"}, False),
        (PNG, False),
    ],
)
def test_detection(record, matches):
    assert FORMAT.matches(record) is matches


class TestMediaBytes:
    @pytest.mark.parametrize(
        ("value", "embedded"),
        [
            (b"", True),
            ({"bytes": None}, True),
            ([None, b"a"], True),
            ([{"bytes": b"a", "path": None}], True),
            ("a.png", False),
            ({"path": "a.png"}, False),
            ([[b"a"]], False),
            ([], False),
            (None, False),
        ],
    )
    def test_embedded(self, value, embedded):
        assert media_bytes.is_embedded(value) is embedded

    def test_columns(self):
        assert media_fields.media("image", None, "image") == []
        assert media_fields.media("image", [], "image") == []
        assert media_fields.media("video", ["a", b"b"], "clips") == [
            MediaReference("video", "a"),
            MediaReference("video", "clips[1]", content=b"b"),
        ]

    def test_the_rest_of_a_row(self):
        row = {"a": 1, "b": {"c": b"x", "d": 2}, "e": [b"x", 3], "f": b"x", "known": 4}
        assert media_bytes.rest(row, ("known",)) == ({"a": 1, "b": {"d": 2}, "e": [3]}, ("bytes_dropped",))
        assert media_bytes.rest({"a": 1, "known": b"x"}, ("known",)) == ({"a": 1}, ())
