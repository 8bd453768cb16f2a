"""Folders of media with a table or a folder per class, against conversations written by hand."""

import pytest

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked
from aria_finetune.data_formats.tables import donut
from aria_finetune.data_formats.tables.imagefolder import FORMAT

FORMATS = (FORMAT, donut.FORMAT)


def text(content):
    return Part("text", text=content)


def converted(record):
    return [item if isinstance(item, RecordError) else checked(item) for item in FORMAT.convert(record)]


def said(draft):
    user, assistant = draft.messages
    return user.content[-1].text, assistant.content[0].text


def test_a_caption():
    assert converted({"file_name": "in/a.JPG", "text": " A cat.", "extra": 1}) == [
        Draft(
            messages=(
                Message("user", (Part("image", media=0), text("Describe the image."))),
                Message("assistant", (text(" A cat."),)),
            ),
            media=(MediaReference("image", "in/a.JPG"),),
            references=(" A cat.",),
            meta={"extra": 1},
        )
    ]


@pytest.mark.parametrize(
    ("name", "kind", "prompt"),
    [
        ("a.png", "image", "Describe the image."),
        ("a", "image", "Describe the image."),
        ("a.unknown", "image", "Describe the image."),
        ("a.MP4", "video", "Describe the video."),
        ("a.b.webm", "video", "Describe the video."),
        ("a.pdf", "document", "Write out the text of the document."),
    ],
)
def test_the_ending_tells_the_kind(name, kind, prompt):
    (draft,) = converted({"file_name": name, "caption": "This."})
    assert draft.media == (MediaReference(kind, name),)
    assert said(draft) == (prompt, "This.")


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ({"file_names": ["b.png", "a.png"]}, ["b.png", "a.png"]),
        ({"left_file_name": "l.png", "right_file_name": "r.png"}, ["l.png", "r.png"]),
        ({"frames_file_names": ["1.png"], "file_name": None, "clip_file_name": "c.mp4"}, ["1.png", "c.mp4"]),
    ],
)
def test_several_files(columns, names):
    (draft,) = converted({**columns, "text": "This."})
    assert [medium.reference for medium in draft.media] == names
    assert draft.meta == {}


def test_a_class_folder():
    (draft,) = converted({"file_name": "cats/1.jpg", "label": "cats"})
    assert said(draft) == ("What does the image show?", "cats")
    assert draft.references == ("cats",)


def test_a_text_counts_before_a_label():
    (draft,) = converted({"file_name": "a.jpg", "label": 3, "text": "A cat."})
    assert said(draft) == ("Describe the image.", "A cat.")
    assert draft.meta == {"label": 3}


def test_each_of_a_list_of_texts():
    first, bad, empty, last = FORMAT.convert({"file_name": "a.jpg", "captions": ["One.", 2, "", "Three."]})
    assert (said(first), first.references) == (("Describe the image.", "One."), ("One.",))
    assert (bad.reason, last.references) == ("bad_schema", ("Three.",))
    with pytest.raises(RecordError, match="empty_answer"):
        checked(empty)


def test_a_question():
    (draft,) = converted({"file_name": "a.jpg", "question": "What?", "answer": "A cat.", "text": "x"})
    assert said(draft) == ("What?", "A cat.")
    assert draft.meta == {"text": "x"}


@pytest.mark.parametrize(
    ("answers", "answer", "references"),
    [
        ({"answers": ["a", "b", "b"]}, "b", ("a", "b")),
        ({"answers": ["a", "b"]}, "a", ("a", "b")),
        ({"answer": "c", "answers": ["a", "c"]}, "c", ("c", "a")),
        ({"answer": "c", "answers": None}, "c", ("c",)),
        ({"answer": 4}, "4", ("4",)),
    ],
)
def test_several_answers(answers, answer, references):
    (draft,) = converted({"file_name": "a.jpg", "question": "What?", **answers})
    assert said(draft) == ("What?", answer)
    assert draft.references == references
    assert draft.repairs == (("number_as_text",) if answer == "4" else ())


def test_answers_that_say_more_stay_in_the_metadata():
    answers = [{"answer": "a", "confidence": "yes"}, {"answer": "a", "confidence": "no"}]
    (draft,) = converted({"file_name": "a.jpg", "question": "What?", "answers": answers})
    assert said(draft) == ("What?", "a")
    assert draft.meta == {"answers": answers}


def test_a_question_without_an_answer_is_for_evaluation():
    (draft,) = FORMAT.convert({"file_name": "a.jpg", "question": "What?"})
    assert len(checked(draft, evaluation=True).messages) == 1


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"file_name": "a.jpg"}, "bad_schema"),
        ({"file_name": "a.jpg", "text": "a", "caption": "b"}, "bad_schema"),
        ({"file_name": "a.jpg", "text": {"en": "a"}}, "bad_schema"),
        ({"file_name": "a.jpg", "label": 3}, "bad_schema"),
        ({"file_name": "a.jpg", "label": "03"}, "bad_schema"),
        ({"file_name": "a.jpg", "label": ["a"]}, "bad_schema"),
        ({"file_name": "a.jpg", "question": None, "answer": "a"}, "bad_schema"),
        ({"file_name": "a.jpg", "question": "a", "answer": {"x": 1}}, "bad_schema"),
        ({"file_name": 5, "text": "a"}, "bad_schema"),
        ({"file_name": "", "text": "a"}, "bad_schema"),
        ({"file_name": None, "text": "a"}, "bad_schema"),
        ({"file_names": ["a.jpg", None], "text": "a"}, "bad_schema"),
        ({"text": "a"}, "bad_schema"),
        ({"file_name": "a.wav", "text": "a"}, "unsupported_modality"),
        ({"file_name": "a.jpg", "audio": "a.x", "text": "a"}, "unsupported_modality"),
        ({"file_names": ["a.jpg", "b.MP3"], "text": "a"}, "unsupported_modality"),
        ({"file_name": "a.jpg", "text": None}, "empty_answer"),
        ({"file_name": "a.jpg", "text": " "}, "empty_answer"),
        ({"file_name": "a.jpg", "text": []}, "empty_answer"),
        ({"file_name": "a.jpg", "label": ""}, "empty_answer"),
        ({"file_name": "a.jpg", "question": "What?", "answer": ""}, "empty_answer"),
        ({"file_name": "a.jpg", "question": "What?", "answers": []}, "empty_answer"),
        ({"file_name": "a.jpg", "text": "\ud800"}, "bad_text"),
    ],
)
def test_bad_records(record, reason):
    with pytest.raises(RecordError) as caught:
        converted(record)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"file_name": "a.jpg", "text": "a"}, "imagefolder"),
        ({"file_name": "a.jpg"}, "imagefolder"),
        ({"left_file_name": None, "caption": "a"}, "imagefolder"),
        ({"frames_file_names": [], "text": "a"}, "imagefolder"),
        ({"file_name": "a.jpg", "ground_truth": "{}"}, "donut"),
        ({"file_name": "a.jpg", "ground_truth": "{}", "text": "a"}, "donut"),
    ],
)
def test_a_record_is_recognised(record, name):
    assert registry.detect([record], FORMATS).name == name


@pytest.mark.parametrize(
    "record",
    [
        {"file": "a.jpg", "text": "a"},
        {"file_name": "a.jpg", "conversations": []},
        {"file_name": "a.jpg", "messages": []},
        {"file_name": "a.jpg", "image": "b.jpg", "text": "a"},
        {"images": [{"file_name": "a.jpg"}], "annotations": []},
        ["file_name"],
        "file_name",
    ],
)
def test_other_records_are_not(record):
    assert not any(form.matches(record) for form in FORMATS)
