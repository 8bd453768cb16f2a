"""VLMEvalKit's tables: pictures in cells, pictures of other rows, options in columns."""

import base64

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import Context, Settings
from aria_finetune.data_formats.questions.image_qa import FORMAT as IMAGE_QA
from aria_finetune.data_formats.questions.vlmevalkit import FORMAT, LONGEST_INDEX
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part

RED, BLUE = b"red" * 30, b"blue" * 30
RED_CELL, BLUE_CELL = (base64.b64encode(picture).decode() for picture in (RED, BLUE))


def row(index, image=RED_CELL, **rest):
    return {"index": index, "image": image, "question": "Which?", "answer": "x", **rest}


def pictures(*rows):
    return [[medium.content for medium in draft.media] for draft in drafts(FORMAT, *rows)]


def test_a_row_of_every_part():
    source = row("7", hint="Look left.", A="red", B="green", C="", D=None, answer="B", category="colour", split="dev")
    assert drafts(FORMAT, source) == [
        Draft(
            messages=(
                Message(
                    "user",
                    (Part("image", media=0), Part("text", text="Hint: Look left.\nWhich?\nA. red\nB. green")),
                ),
                Message("assistant", (Part("text", text="B. green"),)),
            ),
            media=(MediaReference("image", "7", content=RED),),
            references=("B", "green", "B. green"),
            meta={"index": "7", "category": "colour", "split": "dev"},
        )
    ]


@pytest.mark.parametrize(("wording", "written"), [("letter", "A"), ("text", "red")])
def test_the_answer_as_it_is_wanted(wording, written):
    (draft,) = drafts(
        FORMAT, row("7", A="red", B="green", answer="A"), context=Context(settings=Settings(answers=wording))
    )
    assert draft.messages[1].content == (Part("text", text=written),)


class TestPicturesOfOtherRows:
    def test_of_rows_before_and_after(self):
        rows = [row("1", "3"), row("2", BLUE_CELL), row("3"), row("4", "2"), row("5", "3")]
        assert pictures(*rows) == [[RED], [BLUE], [RED], [BLUE], [RED]]
        found = drafts(FORMAT, *rows)
        assert [draft.meta["index"] for draft in found] == ["1", "2", "3", "4", "5"]
        assert [draft.meta.get("image_of_index") for draft in found] == ["3", None, None, "2", "3"]

    def test_rows_pass_as_soon_as_their_picture_is_there(self):
        read = []

        def source():
            for record in (row("1"), row("2", "1"), row("3", "4"), row("4"), row("5")):
                read.append(record["index"])
                yield record

        rows = FORMAT.unfold(source(), Context())
        assert [(next(rows)["index"], read[-1]) for _ in range(5)] == [
            ("1", "1"), ("2", "2"), ("3", "4"), ("4", "4"), ("5", "5"),
        ]  # fmt: skip

    def test_a_row_that_is_not_there_spoils_only_those_that_need_it(self):
        rows = [row("1", "9"), row("2"), row("3", "1"), row("4", "2")]
        assert reasons(FORMAT, *rows) == ["bad_schema", None, "bad_schema", None]

    def test_two_pictures_under_one_index_are_not_chosen_between(self):
        assert reasons(FORMAT, row("1"), row("1", BLUE_CELL), row("2", "1")) == [None, None, "bad_schema"]
        assert reasons(FORMAT, row("1"), row("1"), row("2", "1")) == [None, None, None]

    def test_an_index_has_64_characters_at_most(self):
        name = "x" * LONGEST_INDEX
        assert pictures(row(name), row("2", name)) == [[RED], [RED]]
        assert reasons(FORMAT, row(name + "="), row("2", name + "=")) == [None, "media_unreadable"]

    def test_errors_of_reading_pass_through(self):
        error = RecordError("bad_schema", "3 cells under a header of 4")
        assert reasons(FORMAT, row("1", "2"), error, row("2")) == [None, "bad_schema", None]


@pytest.mark.parametrize("separator", [", ", ",", " , "])
@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_cell_may_hold_a_list_of_pictures(separator, quote):
    cell = f"[{quote}{RED_CELL}{quote}{separator}{quote}{BLUE_CELL}{quote}]"
    (draft,) = drafts(FORMAT, row("7", cell, image_path="['a.jpg', 'b.jpg']"))
    assert draft.media == (
        MediaReference("image", "a.jpg", content=RED),
        MediaReference("image", "b.jpg", content=BLUE),
    )
    (draft,) = drafts(FORMAT, row("7", cell))
    assert [medium.reference for medium in draft.media] == ["7_0", "7_1"]


@pytest.mark.parametrize(
    ("path", "names"),
    [("a.jpg", ["a.jpg"]), ("['a.jpg']", ["a.jpg"]), ("['a.jpg', 'b, c.jpg']", ["a.jpg", "b, c.jpg"])],
)
def test_paths_where_there_is_no_picture(path, names):
    source = {"index": "7", "image_path": path, "question": "Which?", "answer": "x"}
    (draft,) = drafts(FORMAT, source)
    assert draft.media == tuple(MediaReference("image", name) for name in names)
    (draft,) = drafts(FORMAT, source | {"image": ""})
    assert len(draft.media) == len(names)


def test_rows_of_parquet_files_hold_bytes():
    source = row(7, {"bytes": RED, "path": None}, A="red", B="green", answer="A")
    assert pictures(source) == [[RED]]


@pytest.mark.parametrize(
    "cell",
    [
        RED_CELL + "\n",
        "é" * 100,
        RED_CELL[:-1],
        RED_CELL[:-4] + "\n" * 4,
        "images/" + "x" * 70,
        f"['{RED_CELL}', '!']",
    ],
)
def test_pictures_must_be_strict_base64(cell):
    assert reasons(FORMAT, row("1", cell), row("2")) == ["media_unreadable", None]


@pytest.mark.parametrize(
    ("answer", "chosen", "references", "repairs"),
    [
        ("a cat", "a cat", ("a cat",), ()),
        ("['a cat', 'cat']", "a cat", ("a cat", "cat"), ("answer_list_read",)),
        ('["a", "b", "b"]', "b", ("a", "b", "b"), ("answer_list_read",)),
        ("[1, 2]", "[1, 2]", ("[1, 2]",), ()),
        ("['a' 'b']", "['a' 'b']", ("['a' 'b']",), ()),
        ("[]", "[]", ("[]",), ()),
    ],
)
def test_answers_where_there_are_no_options(answer, chosen, references, repairs):
    (draft,) = drafts(FORMAT, row("7", answer=answer))
    assert draft.messages[1].content == (Part("text", text=chosen),)
    assert (draft.references, draft.repairs) == (references, repairs)


@pytest.mark.parametrize("nothing", ["nan", float("nan")])
def test_what_pandas_writes_for_nothing(nothing):
    source = row("7", hint=nothing, A="x", B="y", C=nothing, answer="A", comment="nan")
    (draft,) = drafts(FORMAT, source)
    assert draft.messages[0].content[1].text == "Which?\nA. x\nB. y"
    assert draft.repairs == ("nan_as_empty",)
    assert draft.meta == {"index": "7", "comment": "nan"}
    assert reasons(FORMAT, source | {"answer": nothing}) == ["empty_answer"]


@pytest.mark.parametrize("answer", ["", None])
def test_a_row_without_an_answer_is_for_evaluation(answer):
    assert reasons(FORMAT, row("7", A="x", B="y", answer=answer)) == ["empty_answer"]


@pytest.mark.parametrize(
    "source",
    [
        row("7", ""),
        row("7", None),
        row("7", "", image_path="[]x" * 0),
        row("7", A="x", B="", C="z", answer="A"),
        row("7", A="x", B="y", answer="D"),
        row("7", A="x", B="y", answer=1),
        row("7", question=None),
        row("7", hint=3),
        row("7", "", image_path=3),
        "text",
    ],
)
def test_bad_rows(source):
    assert reasons(FORMAT, source) == ["bad_schema"]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (row("7"), "vlmevalkit"),
        (row("7", "3"), "vlmevalkit"),
        (row(7, b"x", A="x", B="y"), "vlmevalkit"),
        ({"index": "7", "image_path": "a.jpg", "question": "q"}, "vlmevalkit"),
        (row("7", "images/a.jpg"), "image-qa"),
        (row(7), "image-qa"),
        ({"image": RED_CELL, "question": "q", "A": "x", "B": "y"}, "image-qa"),
    ],
)
def test_detection(record, name):
    assert registry.detect([record], (FORMAT, IMAGE_QA)).name == name


@pytest.mark.parametrize("record", [{"index": "7", "question": "q"}, {"index": "7", "image": "3"}, [], "index"])
def test_what_is_no_such_row(record):
    assert not FORMAT.matches(record)


def test_the_example():
    assert registry.detect([FORMAT.example], (FORMAT, IMAGE_QA)) is FORMAT
    (draft,) = drafts(FORMAT, FORMAT.example)
    assert draft.references == ("B", "green", "B. green")
    assert draft.media[0].content.startswith(b"\x89PNG")


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=broken(FORMAT.example | {"image_path": "['a.jpg']"}))
def test_nothing_but_record_errors(record):
    check_robust(FORMAT, record)
