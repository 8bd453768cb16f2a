"""Files become records whatever their name says; a bad line costs one record, a bad file says where."""

import codecs
import gzip
import json

import pytest

from aria_finetune.data_formats.errors import FormatError, RecordError
from aria_finetune.data_formats.reading import sources
from aria_finetune.data_formats.reading.sources import locate, unwrapped

RECORDS = [{"a": 1, "t": "grün 你好 \u2028"}, {"a": 2}, {"a": 3}]
LINES = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)


def read(tmp_path, content, name="data.bin"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (file,) = locate(path)
    values = list(sources.read(file))
    return unwrapped(values[0]) if file.contents.kind == "json_object" else values


def records(values):
    return [value.reason if isinstance(value, RecordError) else value for value in values]


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
    assert items[1].detail.startswith("line 3, column 14: ")


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
        (b"\x1f\x8b\x08\0", "compressed data are damaged"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"PK\x03\x04..", "zip"),
        (b"PAR1....", "Parquet"),
        (b"version https://git-lfs.g", "LFS"),
    ],
)
def test_other_kinds_of_file_are_named(tmp_path, content, what):
    with pytest.raises(FormatError, match=what):
        read(tmp_path, content)


def test_what_comes_before_a_bad_byte_is_read(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 10 + b"\xff" * 200_000)
    values = sources.read(locate(path)[0])
    assert [next(values) for _ in range(10)] == [{"a": 1}] * 10
    with pytest.raises(FormatError, match="byte 90 "):
        next(values)


def test_an_encoding_may_be_named(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes('{"a": "grün"}\n{"a": "Ende"}'.encode("cp1252"))
    with pytest.raises(FormatError, match="byte 9 ") as caught:
        list(sources.read(locate(path)[0]))
    assert "--encoding" in caught.value.fix
    assert list(sources.read(locate(path, "cp1252")[0])) == [{"a": "grün"}, {"a": "Ende"}]
    with pytest.raises(FormatError, match="no encoding 'latin-99'"):
        locate(path, "latin-99")


@pytest.mark.parametrize("content", [LINES, json.dumps(RECORDS), json.dumps({"data": RECORDS})])
def test_compressed_files(tmp_path, content):
    assert records(read(tmp_path, gzip.compress(content.encode()))) == RECORDS
    with pytest.raises(FormatError, match="compressed data are damaged"):
        read(tmp_path, gzip.compress(content.encode() * 100)[:-20])


def test_a_first_line_longer_than_what_is_looked_at(tmp_path):
    long = {"a": "x" * (2 << 20)}
    assert records(read(tmp_path, f"{json.dumps(long)}\n{json.dumps(long)}\n")) == [long, long]
    assert records(read(tmp_path, json.dumps(long))) == [long]


class TestLocate:
    def test_train_jsonl_comes_first(self, tmp_path):
        for name in ("train.jsonl", "test.jsonl", "info.json"):
            (tmp_path / name).write_text("{}")
        assert [file.path for file in locate(tmp_path)] == [tmp_path / "train.jsonl"]

    @pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
    def test_the_only_file(self, tmp_path, name):
        (tmp_path / name).write_text("{}")
        (tmp_path / "images").mkdir()
        (tmp_path / "README.md").write_text("")
        assert [file.path for file in locate(tmp_path)] == [tmp_path / name]

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

    def test_shards_are_one_source(self, tmp_path):
        names = ["part-2.jsonl", "part-10.jsonl", "part-1.jsonl"]
        for name in names:
            (tmp_path / name).write_text("{}")
        assert [file.name for file in locate(tmp_path)] == ["part-1.jsonl", "part-2.jsonl", "part-10.jsonl"]

    def test_the_companion_of_a_file_is_no_source(self, tmp_path):
        (tmp_path / "data.json").write_text("{}")
        (tmp_path / "dataset_info.json").write_text("{}")
        assert [file.name for file in locate(tmp_path)] == ["data.json"]

    def test_a_folder_of_classes(self, tmp_path):
        for name in ("dog/b.jpg", "cat/a.png", "cat/deep/c.jpg"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        (file,) = locate(tmp_path)
        assert list(sources.read(file)) == [
            {"file_name": "cat/a.png", "label": "cat"},
            {"file_name": "cat/deep/c.jpg", "label": "cat"},
            {"file_name": "dog/b.jpg", "label": "dog"},
        ]

    def test_a_folder_of_pdfs(self, tmp_path):
        (tmp_path / "b.pdf").write_bytes(b"")
        (tmp_path / "a.PDF").write_bytes(b"")
        assert list(sources.read(locate(tmp_path)[0])) == [{"document": "a.PDF"}, {"document": "b.pdf"}]
