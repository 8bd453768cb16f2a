"""Files become records whatever their name says; a bad line costs one record, a bad file says where."""

import codecs
import json

import pytest

from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.reading.sources import locate, read_source

RECORDS = [{"a": 1, "t": "grün 你好 \u2028"}, {"a": 2}, {"a": 3}]
LINES = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)


def read(tmp_path, content, name="data.bin"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_source(path))


def records(items):
    assert [item.ordinal for item in items] == list(range(len(items)))
    return [f"{item.record.reason}" if isinstance(item.record, RecordError) else item.record for item in items]


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES + "\n",
        "\n \r\n" + LINES.replace("\n", "\r\n\n\t\n"),
        json.dumps(RECORDS, ensure_ascii=False),
        "\n  " + json.dumps(RECORDS, indent=2) + "\n",
        "[" + LINES.replace("\n", ",\n") + "]",
        json.dumps({"version": "1", "data": RECORDS}),
        json.dumps({"data": RECORDS}, indent=1),
    ],
    ids=["lines", "newline at the end", "blank lines", "array", "indented", "compact", "wrapped", "indented wrapped"],
)
@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.txt"])
def test_the_bytes_say_what_a_file_holds(tmp_path, content, name):
    assert records(read(tmp_path, content, name)) == RECORDS


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
@pytest.mark.parametrize("content", [LINES, json.dumps(RECORDS)])
def test_byte_order_marks(tmp_path, mark, encoding, content):
    assert records(read(tmp_path, mark + content.encode(encoding))) == RECORDS


def test_one_list_per_line(tmp_path):
    conversation = [{"role": "user", "content": "a"}]
    line = json.dumps(conversation)
    assert records(read(tmp_path, f"{line}\n{line}\n")) == [conversation, conversation]


def test_a_single_object_is_one_record(tmp_path):
    record = {"messages": [{"role": "user"}]}
    assert records(read(tmp_path, json.dumps(record))) == [record]
    assert records(read(tmp_path, json.dumps(record, indent=2))) == [record]
    coco = {"images": [{"id": 1}], "annotations": [{"id": 2}]}
    assert records(read(tmp_path, json.dumps(coco))) == [coco]
    two = {"data": [1], "meta": {"b": 1}}
    assert records(read(tmp_path, json.dumps(two))) == [two]


BAD_VALUES = {
    "cut": '{"a": 1, "b":',
    "NaN": '{"a": NaN}',
    "Infinity": '{"a": -Infinity}',
    "too large": '{"a": 1e999}',
    "digits": '{"a": ' + "9" * 5000 + "}",
    "duplicate": '{"a": 1, "a": 2}',
    "inner duplicate": '{"x": [{"a": 1, "a": 2}]}',
    "deep": "[" * 101 + "]" * 101,
    "bottomless": "[" * 100_000 + "]" * 100_000,
    "more behind it": '{"a": 1} {"a": 2}',
    "python": "{'a': 1}",
    "plain text": "hello",
}


@pytest.mark.parametrize("line", BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_bad_line_is_one_bad_record(tmp_path, line):
    assert records(read(tmp_path, f'{{"a": 0}}\n{line}\n\n{{"a": 2}}\n')) == [{"a": 0}, "bad_json", {"a": 2}]


# A file that begins with [ is taken for an array.
@pytest.mark.parametrize("line", [line for line in BAD_VALUES.values() if not line.startswith("[")])
def test_a_bad_first_line_is_one_bad_record(tmp_path, line):
    assert records(read(tmp_path, f'{line}\n{{"a": 2}}\n')) == ["bad_json", {"a": 2}]


def test_a_bad_line_is_named(tmp_path):
    items = read(tmp_path, '{"a": 0}\n\n{"a": 1, "b":}\n')
    assert items[1].record.detail.startswith("line 3, column 14: ")


@pytest.mark.parametrize("name", ["NaN", "Infinity", "too large", "digits", "duplicate", "inner duplicate", "deep"])
def test_a_bad_element_of_an_array_is_one_bad_record(tmp_path, name):
    assert records(read(tmp_path, f'[{{"a": 0}},\n {BAD_VALUES[name]}, {{"a": 2}}]')) == [
        {"a": 0},
        "bad_json",
        {"a": 2},
    ]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('[{"a": 0},\n {"a": }]', "line 2, column 8"),
        ('[{"a": 0},\n {"a": 1}', "line 2, column 10"),
        ('[{"a": 0}\n {"a": 1}]', "line 2, column 2"),
        ('[{"a": 0},\n]', "line 2, column 1"),
        ('[{"a": 0}] x', "line 1, column 12"),
        ("[" * 100_000, "line 1, column 2"),
    ],
)
def test_a_broken_array_says_where(tmp_path, content, place):
    with pytest.raises(FormatError, match=place) as caught:
        read(tmp_path, content)
    assert caught.value.where.endswith("data.bin")


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b'{"a": 1}\n{"a": "\xff"}\n', 16),
        (codecs.BOM_UTF8 + b'["\xe9"]', 5),
        (codecs.BOM_UTF16_LE + b"[\0]\0\x00\xd8", 6),
    ],
)
def test_bytes_that_are_not_text_are_named_by_offset(tmp_path, content, offset):
    with pytest.raises(FormatError, match=f"byte {offset} "):
        read(tmp_path, content)


def test_a_replacement_character_is_data(tmp_path):
    assert records(read(tmp_path, '{"a": "\ufffd"}')) == [{"a": "\ufffd"}]


@pytest.mark.parametrize("content", ["", " \n\r\n\t", "[]", "[ ]\n", codecs.BOM_UTF8])
def test_an_empty_file_is_an_error(tmp_path, content):
    with pytest.raises(FormatError, match="no record"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"PK\x03\x04..", "zip"),
        (b"PAR1....", "Parquet"),
        (b"version https://git-lfs.g", "LFS"),
    ],
)
def test_other_kinds_of_file_are_named(tmp_path, content, what):
    with pytest.raises(FormatError, match=what):
        read(tmp_path, content)


def test_lines_are_read_as_they_are_asked_for(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 10 + b"\xff" * 200_000)
    items = read_source(path)
    assert [next(items).ordinal for _ in range(10)] == list(range(10))
    with pytest.raises(FormatError, match="byte 90 "):
        next(items)


class TestLocate:
    def test_train_jsonl_comes_first(self, tmp_path):
        for name in ("train.jsonl", "test.jsonl", "info.json"):
            (tmp_path / name).write_text("{}")
        assert locate(tmp_path) == tmp_path / "train.jsonl"

    @pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
    def test_the_only_file(self, tmp_path, name):
        (tmp_path / name).write_text("{}")
        (tmp_path / "images").mkdir()
        (tmp_path / "README.md").write_text("")
        assert locate(tmp_path) == tmp_path / name

    def test_several_files_are_listed(self, tmp_path):
        (tmp_path / "a.json").write_text("{}")
        (tmp_path / "b.jsonl").write_text("{}")
        with pytest.raises(FormatError, match=r"a\.json, b\.jsonl"):
            locate(tmp_path)

    def test_a_folder_without_data_says_what_is_there(self, tmp_path):
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(FormatError, match=r"notes\.txt"):
            locate(tmp_path)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FormatError, match="no such file"):
            locate(tmp_path / "nowhere")
