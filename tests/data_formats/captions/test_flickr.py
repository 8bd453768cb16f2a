"""Captions as lines, rows, and one object of names."""

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.building import image_names
from aria_finetune.data_formats.captions.flickr import FORMATS, LINES, NAMES, ROWS
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part


def captioned(caption, media, meta=None, repairs=()):
    return Draft(
        messages=(
            Message("user", (Part("image", media=0), Part("text", text="Describe the image."))),
            Message("assistant", (Part("text", text=caption),)),
        ),
        media=(media,),
        references=(caption,),
        meta=meta or {},
        repairs=repairs,
    )


@pytest.mark.parametrize(
    ("line", "name", "caption", "meta"),
    [
        ("1.jpg#0\tA dog runs .", "1.jpg", "A dog runs .", {"caption_number": 0}),
        ("2258277193_586949ec62.jpg.1#3\tA man .", "2258277193_586949ec62.jpg.1", "A man .", {"caption_number": 3}),
        ("1.jpg\tA dog, running", "1.jpg", "A dog, running", {}),
        ("1.jpg,A dog runs .", "1.jpg", "A dog runs .", {}),
        ("1.jpg,A dog , which runs", "1.jpg", "A dog , which runs", {}),
        ('1.jpg,"A dog, which ""runs"""', "1.jpg", 'A dog, which "runs"', {}),
        ('1.jpg\t"A dog"', "1.jpg", '"A dog"', {}),
        ('1.jpg,"A" dog, "B"', "1.jpg", '"A" dog, "B"', {}),
        ("a#b.png,c#0", "a#b.png", "c#0", {}),
    ],
)
def test_lines(line, name, caption, meta):
    assert drafts(LINES, line) == [captioned(caption, image_names.named(name), meta)]


@pytest.mark.parametrize("header", ["image,caption", "image\tcaption", "filename,caption"])
def test_there_may_be_a_header(header):
    assert registry.detect([header, "1.jpg,A dog"], FORMATS) is LINES
    assert [draft.references for draft in drafts(LINES, header, "1.jpg,A dog")] == [("A dog",)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1.jpg A dog", "bad_schema"),
        ("1.jpg#x\tA dog", "bad_schema"),
        pytest.param(f"1.jpg#{'9' * 5000}\tA dog", "bad_schema", id="thousands of digits"),
        ("1.jpg\tA dog\tYes", "bad_schema"),
        ("image,caption", "bad_schema"),
        ("1.jpg#0\t", "empty_answer"),
        ("1.jpg#0\t\udcff", "bad_text"),
        (None, "bad_schema"),
    ],
)
def test_a_bad_line_leaves_its_neighbours_alone(line, reason):
    assert reasons(LINES, "1.jpg#0\ta", line, "1.jpg#1\tb") == [None, reason, None]


@pytest.mark.parametrize(
    ("row", "media", "caption", "meta"),
    [
        ({"image": "1.jpg", "caption": "A dog"}, image_names.named("1.jpg"), "A dog", {}),
        (
            {"image_name": "1.jpg", " comment_number": " 0", " comment": " A dog ."},
            image_names.named("1.jpg"),
            "A dog .",
            {"comment_number": "0"},
        ),
        (
            {"image": {"bytes": b"x", "path": "1.jpg"}, "caption": "A dog", "split": "train"},
            MediaReference("image", "1.jpg", content=b"x"),
            "A dog",
            {"split": "train"},
        ),
    ],
)
def test_rows(row, media, caption, meta):
    assert ROWS.matches(row) is not isinstance(row.get("image"), dict)
    assert drafts(ROWS, row) == [captioned(caption, media, meta)]


def test_several_captions_of_a_row():
    row = {"image": "1.jpg", "caption": ["a", None, "", "b"], "mask": b"x"}
    assert reasons(ROWS, row) == [None, "bad_schema", "empty_answer", None]
    first, *_ = (candidate for candidate in drafts(ROWS, row | {"caption": ["a", "b"]}))
    assert first == captioned("a", image_names.named("1.jpg"), repairs=("bytes_dropped",))


@pytest.mark.parametrize(
    "row",
    [
        {"image": "", "caption": "a"},
        {"image": None, "caption": "a"},
        {"image": 3, "caption": "a"},
        {"image": "1.jpg", "caption": None},
        {"image": "1.jpg", "caption": 3},
        {"image": "1.jpg", "caption": []},
        {"image": "1.jpg", "caption": "a", "comment": "b"},
        {"image": "1.jpg", "image_name": "2.jpg", "caption": "a"},
        "text",
    ],
)
def test_bad_rows(row):
    assert reasons(ROWS, row) == ["bad_schema"]


def test_one_object_of_names():
    source = {"1.jpg": "a", "2.png": ["b", "c"]}
    assert drafts(NAMES, source) == [
        captioned("a", image_names.named("1.jpg")),
        captioned("b", image_names.named("2.png")),
        captioned("c", image_names.named("2.png")),
    ]


def test_bad_captions_of_names():
    assert reasons(NAMES, {"1.jpg": 3, "2.jpg": ["a", 3], "": "a", "3.jpg": []}) == [
        "bad_schema",
        None,
        "bad_schema",
        "bad_schema",
        "bad_schema",
    ]
    assert reasons(NAMES, ["1.jpg"]) == ["bad_schema"]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ("1.jpg#0\ta", "flickr-lines"),
        ({"image": "1.jpg", "caption": "a"}, "image-captions"),
        ({"1.jpg": "a"}, "caption-names"),
    ],
)
def test_detection(record, name):
    assert registry.detect([record], FORMATS).name == name


@pytest.mark.parametrize(
    "record",
    [
        "1.jpg\tIs it?\tYes",
        "AO8RW 0.0 6.9##a person",
        "1.jpg a dog",
        "some text, with a comma",
        {"image": "1.jpg", "caption": "a", "question": "q"},
        {"image": "1.jpg", "caption": "a", "conversations": []},
        {"image": "1.jpg", "text": "a"},
        {"image": {"bytes": None, "path": "1.jpg"}, "caption": "a"},
        {"file_name": "1.jpg", "caption": "a"},
        {"image_id": 1, "caption": "a"},
        {"1.jpg": "a", "info": "b"},
        {"1.jpg": {"caption": "a"}},
        {},
        None,
    ],
)
def test_what_is_none_of_them(record):
    assert not any(form.matches(record) for form in FORMATS)


@pytest.mark.parametrize(("form", "count"), [(LINES, 1), (ROWS, 1), (NAMES, 3)])
def test_the_examples(form, count):
    assert registry.detect([form.example], FORMATS) is form
    assert len(drafts(form, form.example)) == count


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_nothing_but_record_errors(form):
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(record=broken(form.example))
    def check(record):
        check_robust(form, record)

    check()
