"""TextVQA and DocVQA: questions below `data`, with ten answers or with those that are right."""

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.building import image_names
from aria_finetune.data_formats.questions.image_qa import FORMAT as IMAGE_QA
from aria_finetune.data_formats.questions.text_vqa import DOC_VQA, FORMATS, TEXT_VQA
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part

TEXT_ENTRY = {"question_id": 3, "image_id": "00a1", "question": "What?", "answers": ["a", "b", "b"]}
DOC_ENTRY = {"questionId": 3, "image": "documents/x_1.png", "question": "What?", "answers": ["a", "b", "b"]}
FOLDERS = ("train_images/", "test_images/", "val_images/")


def document(*entries, **rest):
    return {"data": list(entries), **rest}


def text(content):
    return Part("text", text=content)


def test_the_answer_of_most_people_in_textvqa():
    source = document(TEXT_ENTRY | {"set_name": "val"}, dataset_name="textvqa", splits={"val": 1})
    assert drafts(TEXT_VQA, source) == [
        Draft(
            messages=(Message("user", (Part("image", media=0), text("What?"))), Message("assistant", (text("b"),))),
            media=(image_names.named("00a1", *FOLDERS),),
            references=("a", "b", "b"),
            meta={"dataset_name": "textvqa", "question_id": 3, "image_id": "00a1", "set_name": "val"},
        )
    ]


def test_the_first_answer_in_docvqa():
    assert drafts(DOC_VQA, document(DOC_ENTRY | {"docId": 9}, dataset_split="val")) == [
        Draft(
            messages=(Message("user", (Part("image", media=0), text("What?"))), Message("assistant", (text("a"),))),
            media=(
                MediaReference(
                    "image",
                    "documents/x_1.png",
                    alternatives=(
                        "x_1.png",
                        "images/x_1.png",
                        "spdocvqa_images/x_1.png",
                        "infographicsvqa_images/x_1.png",
                    ),
                ),
            ),
            references=("a", "b", "b"),
            meta={"dataset_split": "val", "questionId": 3, "docId": 9},
        )
    ]


def test_infographics_have_another_key():
    entry = {"questionId": 3, "image_local_name": "7.jpeg", "image_url": "u", "question": "What?", "answers": ["a"]}
    (draft,) = drafts(DOC_VQA, document(entry))
    assert draft.media[0].reference == "7.jpeg"
    assert "infographicsvqa_images/7.jpeg" in draft.media[0].alternatives


def test_st_vqa_has_paths():
    entry = {"question_id": 3, "file_path": "train/coco/7.jpg", "question": "What?", "answers": ["a"]}
    assert registry.detect([document(entry)], FORMATS[:1]) is TEXT_VQA
    (draft,) = drafts(TEXT_VQA, document(entry))
    assert draft.media[0].reference == "train/coco/7.jpg"


def test_rows_of_a_table_hold_their_page():
    row = DOC_ENTRY | {"image": {"bytes": b"png", "path": None}, "thumbnail": b"x"}
    (draft,) = drafts(DOC_VQA, row)
    assert draft.media == (MediaReference("image", "image", content=b"png"),)
    assert draft.repairs == ("bytes_dropped",)
    assert draft.meta == {"questionId": 3}


@pytest.mark.parametrize(("form", "entry"), [(TEXT_VQA, TEXT_ENTRY), (DOC_VQA, DOC_ENTRY)])
def test_records_without_the_object_around_them(form, entry):
    assert [draft.messages for draft in drafts(form, entry)] == [
        draft.messages for draft in drafts(form, document(entry))
    ]


@pytest.mark.parametrize(("form", "entry"), [(TEXT_VQA, TEXT_ENTRY), (DOC_VQA, DOC_ENTRY)])
@pytest.mark.parametrize("answers", [{}, {"answers": None}, {"answers": []}])
def test_a_test_split_is_for_evaluation(form, entry, answers):
    question = {key: value for key, value in entry.items() if key != "answers"} | answers
    assert reasons(form, document(question, entry)) == ["empty_answer", None]


@pytest.mark.parametrize(
    ("form", "entry"),
    [
        (TEXT_VQA, TEXT_ENTRY | {"image_id": None}),
        (TEXT_VQA, TEXT_ENTRY | {"image_id": ""}),
        (TEXT_VQA, TEXT_ENTRY | {"question": None}),
        (TEXT_VQA, TEXT_ENTRY | {"answers": ["a", None]}),
        (TEXT_VQA, "broken"),
        (DOC_VQA, DOC_ENTRY | {"image": None}),
        (DOC_VQA, DOC_ENTRY | {"image": "documents/"}),
        (DOC_VQA, DOC_ENTRY | {"image": 3}),
        (DOC_VQA, DOC_ENTRY | {"answers": True}),
        (DOC_VQA, {"questionId": 3}),
    ],
)
def test_a_bad_entry_leaves_its_neighbour_alone(form, entry):
    assert reasons(form, document(entry, TEXT_ENTRY | DOC_ENTRY)) == ["bad_schema", None]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (document(TEXT_ENTRY), "textvqa"),
        (document(TEXT_ENTRY, None), "textvqa"),
        (TEXT_ENTRY, "textvqa"),
        (document(DOC_ENTRY), "docvqa"),
        (DOC_ENTRY, "docvqa"),
        (TEXT_ENTRY | {"image": "a.jpg"}, "image-qa"),
    ],
)
def test_detection(record, name):
    assert registry.detect([record], (*FORMATS, IMAGE_QA)).name == name


@pytest.mark.parametrize(
    "record",
    [
        document(),
        {"data": None},
        document({"question": "q"}),
        {"question_id": 3, "image_id": 7, "question": "q", "choices": ["a"]},
        [TEXT_ENTRY],
        None,
    ],
)
def test_what_is_neither(record):
    assert not any(form.matches(record) for form in FORMATS)


@pytest.mark.parametrize(("form", "answer"), [(TEXT_VQA, "stop"), (DOC_VQA, "May 3, 1990")])
def test_the_examples(form, answer):
    assert registry.detect([form.example], FORMATS) is form
    (draft,) = drafts(form, form.example)
    assert draft.messages[1].content == (text(answer),)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(text_record=broken(TEXT_VQA.example), doc_record=broken(DOC_VQA.example))
def test_nothing_but_record_errors(text_record, doc_record):
    check_robust(TEXT_VQA, text_record)
    check_robust(DOC_VQA, doc_record)
