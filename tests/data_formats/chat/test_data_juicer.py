"""Data-Juicer's documents against canonical records written by hand."""

import pytest
from hypothesis import given, settings
from mutated_records import convert_or_reject, mutations

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat import plain_text
from aria_finetune.data_formats.chat.data_juicer import FORMAT
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked

FORMS = (FORMAT, plain_text.FORMAT)
PNG = b"\x89PNG"
STRUCTS = {"text": "a", "images": [{"bytes": PNG, "path": None}]}
IMAGE, END = "<__dj__image>", "<|__dj__eoc|>"


def text(content):
    return Part("text", content)


def convert(record):
    (draft,) = FORMAT.convert(record)
    return checked(draft)


def test_tokens_are_the_places_of_the_media():
    record = {
        "text": f"{IMAGE} A bed. {END} <__dj__video>A bus.\n{IMAGE}{IMAGE} {END}",
        "images": ["../a.jpg", "b.jpg", "c.jpg"],
        "videos": ["v.mp4"],
        "audios": [],
        "meta": {"src": "x"},
        "__dj__stats__": {"lang": "en"},
    }
    assert convert(record) == Draft(
        (
            Message(
                "assistant",
                (
                    Part("image", media=0),
                    text(" A bed.  "),
                    Part("video", media=1),
                    text("A bus.\n"),
                    Part("image", media=2),
                    Part("image", media=3),
                ),
            ),
        ),
        (
            MediaReference("image", "../a.jpg"),
            MediaReference("video", "v.mp4"),
            MediaReference("image", "b.jpg"),
            MediaReference("image", "c.jpg"),
        ),
        meta={"meta": {"src": "x"}, "__dj__stats__": {"lang": "en"}},
        repairs=("blank_text_dropped",),
        document=True,
    )


@pytest.mark.parametrize(
    ("columns", "medium"),
    [
        ({"images": ["a.jpg"], "image_bytes": [PNG]}, MediaReference("image", "a.jpg", content=PNG)),
        ({"images": ["a.jpg"], "image_bytes": [None]}, MediaReference("image", "a.jpg")),
        ({"images": ["a.jpg"], "image_bytes": None}, MediaReference("image", "a.jpg")),
        ({"images": None, "image_bytes": [PNG]}, MediaReference("image", "image_bytes[0]", content=PNG)),
        ({"image_bytes": [PNG]}, MediaReference("image", "image_bytes[0]", content=PNG)),
        ({"images": [{"bytes": PNG, "path": "a.jpg"}]}, MediaReference("image", "a.jpg", content=PNG)),
    ],
)
def test_images_by_name_and_by_bytes(columns, medium):
    draft = convert({"text": f"{IMAGE} A bed."} | columns)
    assert draft.messages == (Message("assistant", (Part("image", media=0), text(" A bed."))),)
    assert (draft.media, draft.meta, draft.repairs) == ((medium,), {}, ())


def test_without_any_token_the_media_go_first():
    draft = convert({"text": f"A bed.{END}", "images": ["a.jpg"], "videos": ["v.mp4"]})
    assert draft.messages[0].content == (Part("image", media=0), Part("video", media=1), text("A bed."))
    assert draft.repairs == ("placeholder_added",)


def test_text_alone():
    draft = convert({"text": f"A bed. {END} A bus. {END}", "images": []})
    assert draft.messages == (Message("assistant", (text("A bed.  A bus. "),)),)
    assert draft.document


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": IMAGE + "a", "images": []}, "placeholder_mismatch"),
        ({"text": IMAGE + "a", "images": ["a", "b"]}, "placeholder_mismatch"),
        ({"text": IMAGE + "a", "images": ["a"], "videos": ["v"]}, "placeholder_mismatch"),
        ({"text": "<__dj__video>a", "images": ["a"]}, "placeholder_mismatch"),
        ({"text": "<__dj__audio> a"}, "unsupported_modality"),
        ({"text": "a", "audios": ["a.wav"]}, "unsupported_modality"),
        ({"text": IMAGE + "a", "images": ["a", "b"], "image_bytes": [PNG]}, "bad_schema"),
        ({"text": IMAGE + "a", "images": "a", "image_bytes": [PNG]}, "bad_schema"),
        ({"text": IMAGE + "a", "image_bytes": [None]}, "bad_schema"),
        ({"text": IMAGE + "a", "image_bytes": PNG}, "bad_schema"),
        ({"text": IMAGE + "a", "images": [3]}, "bad_schema"),
        ({"text": 3}, "bad_schema"),
        ({"images": []}, "bad_schema"),
        ({"text": None, "images": ["a"]}, "empty_answer"),
        ({"text": IMAGE, "images": ["a"]}, "empty_answer"),
        ({"text": f" {END} "}, "empty_answer"),
    ],
)
def test_bad_records(record, reason):
    with pytest.raises(RecordError) as caught:
        convert(record)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ([{"text": IMAGE, "images": ["a"]}], "data-juicer"),
        ([{"text": "a"}, {"text": "a", "images": ["a"]}], "data-juicer"),
        ([{"text": "a"}, {"text": f"a{END}", "other": 1}], "data-juicer"),
        ([{"text": "a", "image_bytes": None, "other": 1}], "data-juicer"),
        ([{"text": "a", "__dj__stats__": {}}], "data-juicer"),
        ([{"text": "a"}], "plain-text"),
        ([{"text": "a", "meta": {}}], "plain-text"),
    ],
)
def test_detection(records, name):
    assert registry.detect(records, FORMS).name == name


@pytest.mark.parametrize(
    "record", [{"text": "a", "image": "b"}, {"text": "a", "label": 1}, {"images": []}, [], "a", STRUCTS]
)
def test_what_is_something_else(record):
    assert not FORMAT.matches(record)


def test_text_means_the_same_as_in_plain_text():
    record = {"text": "A bed.", "meta": {"src": "x"}}
    assert list(FORMAT.convert(record)) == list(plain_text.FORMAT.convert(record))


def test_the_example_is_of_its_format_and_sound():
    assert registry.detect([FORMAT.example], FORMS) is FORMAT
    assert len(convert(FORMAT.example).media) == 3


@settings(max_examples=100, deadline=None, derandomize=True)
@given(record=mutations(FORMAT.example, {"text": IMAGE, "videos": ["a"], "image_bytes": [None]}, words=(IMAGE, END)))
def test_only_record_errors_are_raised(record):
    convert_or_reject(FORMAT, record)
