"""Strict YAML against values worked out by hand from the core schema of YAML 1.2.2."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aria_finetune.errors import UserError
from aria_finetune.recipe.strict_yaml import MAX_BYTES, MAX_DEPTH, parse_yaml, read_yaml


def value(text: str) -> object:
    return parse_yaml(f"key: {text}", "recipe.yaml").data["key"]


def refusal(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "recipe.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5e-3", 0.0005),
        ("5.", 5.0),
        ("-1.5", -1.5),
        ("+2e+3", 2000.0),
        ("012.5", 12.5),
        ("0", 0),
        ("-7", -7),
        ("+7", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("-.inf", -math.inf),
        (".INF", math.inf),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_core_schema(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_nan() -> None:
    found = value(".nan")
    assert isinstance(found, float)
    assert math.isnan(found)


@pytest.mark.parametrize(
    "text",
    ["no", "yes", "on", "off", "No", "y", "1_000", "1:30", "2024-01-31", "1e", "e5", "0b11", ".", "1.2.3", "tRue"],
)
def test_what_yaml_1_1_would_convert_stays_text(text: str) -> None:
    assert value(text) == text


@pytest.mark.parametrize("text", ['"1e-4"', "'012'", '"true"', "'~'", '""', "|\n  12"])
def test_quoted_and_block_text_is_never_converted(text: str) -> None:
    assert isinstance(value(text), str)


@pytest.mark.parametrize("text", ["012", "-08", "00", "0777"])
def test_a_leading_zero_is_ambiguous(text: str) -> None:
    message = refusal(f"model: x\nkey: {text}")
    assert message.startswith("recipe.yaml:2: ")
    assert f'write "{text}" in quotes' in message


def test_endless_number_is_refused() -> None:
    assert "digits" in refusal(f"key: {'9' * 6000}")


def test_lines_of_keys_and_entries() -> None:
    text = "model:\n  path: tiny\ndata:\n  train:\n    - a.jsonl\n    - path: b\n      weight: 2\n"
    document = parse_yaml(text, "recipe.yaml")
    assert document.data == {"model": {"path": "tiny"}, "data": {"train": ["a.jsonl", {"path": "b", "weight": 2}]}}
    assert document.line_of(("model",)) == 1
    assert document.line_of(("model", "path")) == 2
    assert document.line_of(("data", "train", 0)) == 5
    assert document.line_of(("data", "train", 1, "weight")) == 7


def test_line_of_what_is_not_written_is_its_nearest_ancestor() -> None:
    document = parse_yaml("a: 1\nmodel:\n  x: 2\ndata:\n  train:\n    path: a\n", "recipe.yaml")
    assert document.line_of(("model", "revision")) == 2
    assert document.line_of(("lora", "rank")) == 1
    assert document.line_of(("data", "train", 0, "path")) == 6


def test_duplicate_key_names_both_lines() -> None:
    message = refusal("train:\n  seed: 1\n  save_steps: 3\n  seed: 2\n")
    assert message.startswith("recipe.yaml:4: ")
    assert "'seed'" in message
    assert "lines 2 and 4" in message


@pytest.mark.parametrize("text", ["{a: 1, a: 2}", "a: 1\n'a': 2", "{x: {b: 1, b: 1}}", "<<: {a: 1}\n<<: {b: 1}"])
def test_duplicate_keys_in_any_spelling(text: str) -> None:
    assert "written twice" in refusal(text)


def test_merge_keys_and_anchors() -> None:
    text = "base: &base {a: 1, b: 2}\nmore: &more {b: 3, c: 4}\nboth:\n  a: 9\n  <<: [*base, *more]\nalias: *base\n"
    document = parse_yaml(text, "recipe.yaml")
    assert document.data["both"] == {"a": 9, "b": 2, "c": 4}
    assert document.data["alias"] == {"a": 1, "b": 2}
    assert document.data["alias"] is not document.data["base"]
    assert document.line_of(("both", "a")) == 4
    assert document.line_of(("both", "c")) == 2


def test_a_quoted_merge_key_is_a_key() -> None:
    assert parse_yaml('"<<": 1', "recipe.yaml").data == {"<<": 1}


@pytest.mark.parametrize("text", ["<<: 1", "<<: [1]", "<<: null"])
def test_only_mappings_merge(text: str) -> None:
    assert "merges mappings only" in refusal(text)


def alias_bomb(form: str) -> str:
    lines = ["a0: &a0 {k: 1}"]
    for level in range(1, 12):
        copies = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(form.format(level=level, copies=copies))
    return "\n".join(lines)


@pytest.mark.parametrize(
    "form",
    [
        "a{level}: &a{level} [{copies}]",
        "a{level}: &a{level} {{<<: [{copies}]}}",
        "a{level}: &a{level} {{k: [{copies}]}}",
    ],
)
def test_alias_bombs_are_refused(form: str) -> None:
    assert "once the aliases are written out" in refusal(alias_bomb(form))


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "a: &a {<<: *a}", "&a [*a]"])
def test_an_alias_of_itself_is_refused(text: str) -> None:
    assert "nested deeper" in refusal(text)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "!!str 5",
        "!Custom {a: 1}",
        "! x",
        "!!int '3'",
    ],
)
def test_tags_are_refused(tag: str) -> None:
    message = refusal(f"a: 1\nb: {tag}")
    assert message.startswith("recipe.yaml:2: the tag ")


def test_nothing_is_run_by_a_tag(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    refusal(f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{canary}']]")
    assert not canary.exists()


@pytest.mark.parametrize("text", ["a: 1\n---\nb: 2\n", "---\na: 1\n...\n---\n", "--- 1\n--- 2\n"])
def test_a_second_document_is_refused(text: str) -> None:
    assert "a second document begins here" in refusal(text)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "---\n...\n"])
def test_an_empty_document_is_none(text: str) -> None:
    assert parse_yaml(text, "recipe.yaml").data is None


def test_deep_nesting_is_refused() -> None:
    assert parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "recipe.yaml").data
    assert "nested deeper" in refusal("[" * 50_000)
    assert "nested deeper" in refusal("\n".join(" " * level + "k:" for level in range(100)))


@pytest.mark.parametrize(
    ("text", "line", "fragment"),
    [
        ("a: 1\nb:\n\tc: 2\n", 3, "indent with spaces"),
        ("a: 1\n b: 2\n", 2, "not valid YAML"),
        ("a: [1, 2\nb: 3\n", 2, "not valid YAML"),
        ('a: 1\nb: "open\n', 3, "not valid YAML"),
        ("a: *nowhere\n", 1, "nowhere"),
        ("a: 1\nb: x\x07y\n", 2, "U+0007"),
        ('a: "\\ud800"\n', 1, "surrogate"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', 2, "not valid YAML"),
        (f"%YAML 1.{'9' * 5000}\n---\na: 1\n", 1, "not valid YAML"),
        ("? [a]\n: 1\n", 1, "a key must be a name"),
    ],
)
def test_bad_text_names_the_line(text: str, line: int, fragment: str) -> None:
    message = refusal(text)
    assert message.startswith(f"recipe.yaml:{line}: ")
    assert fragment in message


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_are_counted_with_any_newline(newline: str) -> None:
    assert refusal(newline.join(["a: 1", "b: 2", "a: 3"])).startswith("recipe.yaml:3: ")
    assert refusal(newline.join(["a: 1", "b: \x07"])).startswith("recipe.yaml:2: ")


def test_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"\xef\xbb\xbfpath: \xc3\xa4.jsonl\n")
    assert read_yaml(file).data == {"path": "ä.jsonl"}


@pytest.mark.parametrize("content", ["a: 1\nb: ä\n".encode("latin-1"), b"a: 1\nb: \xff\xfe\n"])
def test_a_file_that_is_not_utf_8(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"recipe\.yaml:2: is not UTF-8 text"):
        read_yaml(file)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(UserError, match="larger than"):
        read_yaml(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        read_yaml(tmp_path / "recipe.yaml")


MARKS = list("{}[],:-?&*!|>'\"%@`#\n\t \\~<")
WORDS = ["a", "b: ", "- ", "&x ", "*x", "<<: ", "\n  ", "\n---\n", "!!str ", "012", "1e5", "%YAML 1.1\n"]
ODDITIES = ["\\ud800", "\\U00110000", "%TAG ! tag:x,2000:", "\x85", "\u2028", "\ufeff", "\r\n"]
PIECES = st.sampled_from(MARKS + WORDS + ODDITIES)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=30).map("".join), st.text(max_size=60)))
def test_any_text_is_read_or_refused_with_a_user_error(text: str) -> None:
    try:
        parse_yaml(text, "recipe.yaml")
    except UserError as error:
        place = error.where or ""
    else:
        place = "recipe.yaml:1"
    assert re.fullmatch(r"recipe\.yaml:[1-9][0-9]*", place)
