"""Prompts in files: plain ones, all that converters read, and what is wrong with them in its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aria_finetune.conversion import ConversionOptions, Reject, convert
from aria_finetune.conversion.engines import engine
from aria_finetune.errors import UserError
from aria_finetune.media.inspection import Inspector
from aria_finetune.speaking.prompt_files import Entry, Reading, read_prompts

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Callable[..., list[Entry]]]:
    inspector = Inspector()
    yield lambda source, **kwargs: list(read_prompts(source, Reading(inspector, tmp_path / "store", **kwargs)))
    inspector.close()


def said(entry: Entry) -> list[tuple[str, str]]:
    """Role and words of each turn, with a mark for a medium."""
    assert not isinstance(entry, Reject)
    return [(m.role, "".join(part.text or f"<{part.type} {part.media}>" for part in m.content)) for m in entry.messages]


def test_a_text_file_has_a_prompt_a_line(read: Callable[..., list[Entry]], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffWhat is a ring?\r\n\n  \nWas heißt <|im_end|>?".encode())
    first, second = read(file, system="Be brief.")
    assert said(first) == [("system", "Be brief."), ("user", "What is a ring?")]
    assert said(second)[1] == ("user", "Was heißt <|im_end|>?")
    assert [entry.id for entry in (first, second)] == ["prompts:prompts.txt:0", "prompts:prompts.txt:1"]
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="UTF-8"):
        read(file)


def test_lines_of_a_text_end_at_line_feeds_alone(read: Callable[..., list[Entry]], tmp_path: Path) -> None:
    prompts = ["one\u2028line", "and\x85so is\x0cthis", "\x1cor\rthis"]
    file = tmp_path / "prompts.txt"
    file.write_bytes("\r\n".join(prompts).encode() + b"\n")
    assert [said(entry) for entry in read(file)] == [[("user", prompt)] for prompt in prompts]


@pytest.mark.parametrize("first", ["not json", '{"prompt": "a", "colour": "red"}', "[]", "3"])
def test_a_bad_first_row_is_refused_alone(read: Callable[..., list[Entry]], tmp_path: Path, first: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(first + '\n{"prompt": "a"}\n')
    bad, good = read(file)
    assert isinstance(bad, Reject)
    assert bad.describe().startswith("prompts.jsonl:0: bad_")
    assert said(good) == [("user", "a")]


def test_a_refused_prompt_keeps_its_id(read: Callable[..., list[Entry]], tmp_path: Path) -> None:
    rows = [
        {"id": "fine", "prompt": "a"},
        {"id": "gone", "prompt": "a", "images": ["nowhere.png"]},
        {"id": "odd", "prompt": "a", "colour": "red"},
        {"id": "empty", "prompt": ""},
        {"id": 3, "prompt": "a"},
        {"prompt": 3},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    unnamed = ["prompts:prompts.jsonl:4", "prompts:prompts.jsonl:5"]
    assert [entry.id for entry in read(file)] == ["fine", "gone", "odd", "empty", *unnamed]


def test_what_is_wrong_stands_in_its_place(
    read: Callable[..., list[Entry]], make_image: Callable[..., object], tmp_path: Path
) -> None:
    make_image("red.png", (64, 48))
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 and then nothing")
    lines = [
        '"What is a ring?"',
        '{"prompt": "And this?", "images": ["red.png", "red.png"], "id": "mine", "system": null}',
        '{"prompt": "',
        '{"prompt": "This?", "images": ["blue.png"]}',
        '{"prompt": "This?", "images": "../../etc/passwd"}',
        '{"prompt": "This?", "documents": ["broken.pdf"]}',
        '{"prompt": "This?", "picture": "red.png"}',
        '{"prompt": 3}',
        '{"prompt": ""}',
        '{"prompt": "This?", "images": [1]}',
        '{"prompt": "", "images": ["red.png"]}',
        "[]",
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(lines))
    entries = read(file)
    assert len(entries) == len(lines)
    assert said(entries[0]) == [("user", "What is a ring?")]
    assert said(entries[1]) == [("user", "<image 0><image 0>And this?")]
    assert entries[1].id == "mine"
    assert said(entries[10]) == [("user", "<image 0>")]
    refused = {entry.ordinal: entry.reason for entry in entries if isinstance(entry, Reject)}
    assert refused == {
        2: "bad_json",
        3: "media_missing",
        4: "media_unsafe_path",
        5: "media_unreadable",
        6: "bad_schema",
        7: "bad_schema",
        8: "bad_schema",
        9: "bad_schema",
        11: "bad_schema",
    }
    described = [entry.describe() for entry in entries if isinstance(entry, Reject)]
    assert described[1].startswith("prompts.jsonl:3: media_missing: ")
    assert "picture" in described[4]


def test_anything_a_converter_reads(read: Callable[..., list[Entry]], tmp_path: Path) -> None:
    entries = read(DATA / "chat.jsonl", system="Short.")
    assert said(entries[0])[0] == ("system", "Short.")
    assert said(entries[1])[0] == ("system", "You answer in one word.")  # its own
    with engine("local", 1) as opened:
        convert(DATA / "photos.json", tmp_path / "set", ConversionOptions(), opened)
    assert [said(one) for one in read(tmp_path / "set")] == [said(one) for one in read(DATA / "photos.json")]


def test_rejects_of_a_converter_come_in_order(read: Callable[..., list[Entry]], tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "Hi."}]}
    rows = [{"messages": []}, good, {"messages": [{"role": "user", "content": None}]}, good, {"messages": 3}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entries = read(tmp_path / "rows.jsonl", format="messages")
    assert [isinstance(entry, Reject) for entry in entries] == [True, False, True, False, True]
    assert [entry.ordinal if isinstance(entry, Reject) else entry.source.ordinal for entry in entries] == list(range(5))


def test_nothing_there(read: Callable[..., list[Entry]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "nowhere.txt")
    (tmp_path / "empty.txt").write_text("\n\n")
    assert read(tmp_path / "empty.txt") == []
    (tmp_path / "odd.jsonl").write_text('{"colour": "red"}\n')
    with pytest.raises(UserError, match="no known format fits"):
        read(tmp_path / "odd.jsonl")
