"""Tables whose columns the user names, against conversations written by hand."""

import pytest

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import Context, Settings
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked
from aria_finetune.data_formats.tables.columns import FORMAT


def text(content):
    return Part("text", text=content)


def convert(row, **columns):
    (draft,) = FORMAT.convert(row, Context(Settings(columns=columns)))
    return checked(draft)


def test_a_row_with_every_role():
    row = {"n": "007", "sys": "Be brief.", "pic": "a.jpg", "q": "What?", "a": "A cat.", "alt": "cat", "more": "00"}
    draft = convert(row, id="n", system="sys", image="pic", question="q", answer="a", references="alt")
    assert draft == Draft(
        messages=(
            Message("system", (text("Be brief."),)),
            Message("user", (Part("image", media=0), text("What?"))),
            Message("assistant", (text("A cat."),)),
        ),
        media=(MediaReference("image", "a.jpg"),),
        references=("A cat.", "cat"),
        meta={"more": "00", "id": "007"},
    )


def test_columns_of_their_own_names_need_no_naming():
    draft = convert({"id": "1", "system": "", "question": "What?", "answer": "That.", "references": "It."})
    assert draft.messages == (Message("user", (text("What?"),)), Message("assistant", (text("That."),)))
    assert draft.references == ("That.", "It.")
    assert draft.meta == {"id": "1"}


def test_a_named_column_counts_before_one_of_that_name():
    draft = convert({"question": "old", "q": "new", "answer": "a"}, question="q")
    assert draft.messages[0].content == (text("new"),)
    assert draft.meta == {"question": "old"}
    swapped = convert({"question": "a", "answer": "q"}, question="answer", answer="question")
    assert [message.content for message in swapped.messages] == [(text("q"),), (text("a"),)]


def test_a_column_that_was_named_for_a_role_has_no_other():
    draft = convert({"answer": "What?", "x": "That."}, question="answer", answer="x")
    assert draft.messages[0].content == (text("What?"),)
    with pytest.raises(RecordError, match="empty_answer"):
        convert({"answer": "What?"}, question="answer")


@pytest.mark.parametrize(
    ("row", "media"),
    [
        ({"image": "a.jpg"}, (MediaReference("image", "a.jpg"),)),
        ({"image": ["a.jpg", "b.jpg"]}, (MediaReference("image", "a.jpg"), MediaReference("image", "b.jpg"))),
        ({"image": {"bytes": b"J", "path": None}}, (MediaReference("image", "image", content=b"J"),)),
        ({"video": "v.mp4", "image": "a.jpg"}, (MediaReference("image", "a.jpg"), MediaReference("video", "v.mp4"))),
        ({"document": "a.pdf"}, (MediaReference("document", "a.pdf"),)),
        ({"image": "", "video": None}, ()),
        ({"image": "a [1].jpg"}, (MediaReference("image", "a [1].jpg"),)),
    ],
)
def test_media(row, media):
    assert convert({**row, "question": "What?", "answer": "That."}).media == media


@pytest.mark.parametrize(("kind", "prompt"), [("image", "Describe the image."), ("video", "Describe the video.")])
def test_a_medium_without_a_question_is_described(kind, prompt):
    draft = convert({"file": "a", "text": "This."}, **{kind: "file", "answer": "text"})
    assert draft.messages[0].content == (Part(kind, media=0), text(prompt))


def test_cells_stay_as_they_are():
    row = {"question": " 00012 ", "answer": "1.50", "x": "True", "list": "['a']"}
    draft = convert(row)
    assert [message.content for message in draft.messages] == [(text(" 00012 "),), (text("1.50"),)]
    assert draft.meta == {"x": "True", "list": "['a']"}
    assert convert({"question": "Which?", "answer": "['a', 'b']"}).messages[1].content == (text("['a', 'b']"),)


@pytest.mark.parametrize(("cell", "written"), [(4, "4"), (0.5, "0.5"), (-1, "-1")])
def test_numbers_of_other_tables_are_written_out(cell, written):
    assert convert({"question": "How many?", "answer": cell}).messages[1].content == (text(written),)


def test_bytes_do_not_get_into_the_metadata():
    draft = convert({"question": "What?", "answer": "That.", "id": b"1", "hash": b"x", "more": 1})
    assert draft.meta == {"more": 1}
    assert draft.repairs == ("bytes_dropped",)


def test_several_accepted_answers():
    draft = convert({"question": "Who?", "answer": "Ann", "references": ["Ann", "Ann Lee", 3]})
    assert draft.references == ("Ann", "Ann Lee", "3")


def test_a_row_without_an_answer_is_for_evaluation():
    (draft,) = FORMAT.convert({"question": "What?"})
    assert len(checked(draft, evaluation=True).messages) == 1


@pytest.mark.parametrize(
    ("row", "columns", "reason"),
    [
        ({"question": "q", "answer": "a"}, {"image": "img"}, "bad_schema"),
        ({"question": "q", "answer": "a"}, {"picture": "question"}, "bad_schema"),
        ({"question": "q", "answer": "a", "image": "['a.jpg', 'b.jpg']"}, {}, "bad_schema"),
        ({"question": "q", "answer": "a", "image": " ['a.jpg']\n"}, {}, "bad_schema"),
        ({"question": "q", "answer": "a", "image": '["a.jpg"]'}, {}, "bad_schema"),
        ({"question": "q", "answer": "a", "image": "[]"}, {}, "bad_schema"),
        ({"question": "q", "answer": "a", "image": "('a.jpg',)"}, {}, "bad_schema"),
        ({"question": "q", "answer": "a", "image": "{'path': 'a.jpg', 'bytes': None}"}, {}, "bad_schema"),
        ({"question": "q", "answer": "a", "image": 5}, {}, "bad_schema"),
        ({"question": "q", "answer": "a", "references": "['a', 'b']"}, {}, "bad_schema"),
        ({"question": "q", "answer": "a", "references": {"a": 1}}, {}, "bad_schema"),
        ({"question": ["q"], "answer": "a"}, {}, "bad_schema"),
        ({"question": "q", "answer": True}, {}, "bad_schema"),
        ({"question": "q", "answer": ["a"]}, {}, "bad_schema"),
        ({"question": "q", "answer": "a", "system": ["s"]}, {}, "bad_schema"),
        ({"answer": "a"}, {}, "bad_schema"),
        ({"image": "", "answer": "a"}, {}, "bad_schema"),
        ({"document": "a.pdf", "answer": "a"}, {}, "bad_schema"),
        ("q,a", {}, "bad_schema"),
        ({"question": "q", "answer": ""}, {}, "empty_answer"),
        ({"question": "q", "answer": None}, {}, "empty_answer"),
        ({"question": "q"}, {}, "empty_answer"),
        ({"question": "\ud800", "answer": "a"}, {}, "bad_text"),
    ],
)
def test_bad_rows(row, columns, reason):
    with pytest.raises(RecordError) as caught:
        convert(row, **columns)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("row", "matches"),
    [
        ({"question": "q", "answer": "a"}, True),
        ({"question": None, "answer": 4, "id": 1, "system": "", "references": []}, True),
        ({"question": "q"}, False),
        ({"question": "q", "answer": "a", "image": "a.jpg"}, False),
        ({"question": "q", "answer": "a", "category": "x"}, False),
        ({"question": {"text": "q"}, "answer": "a"}, False),
        ({}, False),
        ("question,answer", False),
    ],
)
def test_detection(row, matches):
    assert FORMAT.matches(row) is matches
