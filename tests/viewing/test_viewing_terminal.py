"""Rows in a terminal: what stands in each line, that colours are never alone, and that data can't steer the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from aria_finetune.conversion import SHOWN_REJECTS, Reject
from aria_finetune.data.collation import BadRow
from aria_finetune.data.rows import Viewing
from aria_finetune.viewing.rows import ShownRow
from aria_finetune.viewing.terminal import LONGEST, STYLES, show_legend, show_rejects, show_row


def printed(row: ShownRow, **options: object) -> str:
    console = Console(file=io.StringIO(), width=60, markup=False, **options)
    show_row(row, console)
    return console.file.getvalue()


def test_a_row_line_by_line(shown, make_record, make_image):
    said = [("user", ["Hi\nyou ", 0, "?"]), ("assistant", ["Yes, here and there:\nand again."])]
    row = shown(make_record(said, [make_image("cat.png", (30, 20))]))
    assert printed(row) == (
        "\n"
        "row 1 of 7: train.jsonl:4  messages:train.jsonl:4\n"
        "  from data/train.jsonl, weight 2\n"
        "  190 tokens, 33 in the loss, 128 image tokens\n"
        "     6  role   <|im_start|>user↵\n"
        "     7  text   Hi↵you \n"
        "   130  image  <fim_prefix>[image 1: 128 tokens, 490 px, cat.png]<fim_suffix>\n"
        "     1  text   ?\n"
        "     2  role   <|im_end|>↵\n"
        "    11  role   <|im_start|>assistant↵\n"
        "    31  LOSS   Yes, here and there:↵\n"
        "               and again.\n"
        "     2  LOSS   <|im_end|>↵\n"
    )


def test_the_words_of_the_kinds_are_in_the_legend_and_styles_come_on_top(shown, make_record, make_video):
    row = shown(
        make_record([("user", [0, "?"]), ("assistant", ["Y"])], [make_video("a.mp4", 4)]), Viewing(num_frames=2)
    )
    plain, coloured = printed(row), printed(row, force_terminal=True, color_system="truecolor", no_color=False)
    assert plain.count("  frame  <fim_prefix>[frame ") == 2
    assert "\x1b" not in plain
    assert "\x1b[4;32mLOSS \x1b[0m  \x1b[4;32mY\x1b[0m" in coloured
    assert "\x1b[35mframe\x1b[0m" in coloured
    lines = shown(make_record([("user", ["a"]), ("assistant", ["two lines,\nthe second of them"])]))
    coloured = printed(lines, force_terminal=True, color_system="truecolor", no_color=False)
    indent = " " * 15
    assert f"\x1b[4;32mtwo lines,↵\x1b[0m\n{indent}\x1b[4;32mthe second of them\x1b[0m\n" in coloured
    console = Console(file=io.StringIO(), width=60)
    show_legend(console)
    assert all(f" {kind} " in console.file.getvalue() for kind in STYLES)


def test_escape_sequences_and_fake_lines_are_spelled_out(shown, make_record, place):
    hostile = "\x1b[2J\x1b]0;owned\x07 \u202eabc"
    row = shown(make_record([("user", [hostile]), ("assistant", ["[bold]Y[/bold] :smile:"])]))
    row = replace(row, place=replace(place, where="a\x1b[31m.jsonl:0", id="x\nrow 2 of 7: fake"))
    said = printed(row)
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "\\x1b[2J\\x1b]0;owned\\x07 \\u202eabc" in said
    assert "a\\x1b[31m.jsonl:0  x\\nrow 2 of 7: fake\n" in said
    assert "[bold]Y[/bold] :smile:" in said


def test_a_terminal_without_these_characters(shown, make_record):
    class Narrow(io.StringIO):
        encoding = "ascii"

    file = Narrow()
    show_row(shown(make_record([("user", ["é漢"]), ("assistant", ["Y"])])), Console(file=file, width=60))
    assert file.getvalue().isascii()
    assert "\\xe9\\u6f22" in file.getvalue()


def test_long_text_is_abbreviated_and_secrets_are_hidden(shown, make_record):
    text = f"{'a' * LONGEST}{'b' * 900}"
    said = printed(shown(make_record([("user", [text]), ("assistant", ["https://me:hunter22@host/"])])))
    assert "[... 900 more characters ...]" in said
    assert said.count("b") < 320
    assert "hunter22" not in said
    assert "https://***@host/" in said


def test_a_row_that_is_wrong_and_one_that_can_not_be_shown(shown, make_record, make_image, place):
    def learn(batch):
        batch["labels"][0, 10] = batch["input_ids"][0, 10]

    record = make_record([("user", [0]), ("assistant", ["Y"])], [make_image("a.png", (30, 20))])
    assert "  WRONG: <|img|> is in the loss: token 10\n" in printed(shown(record, spoil=learn))
    bad = BadRow(0, "r0", "train.jsonl:4", "photos/a.png", "media_missing", "a.png is not there")
    said = printed(ShownRow(place, bad=bad))
    assert said.endswith("  not shown: photos/a.png: media_missing: a.png is not there\n")


@pytest.mark.parametrize("more", [0, 3])
def test_rejects_are_counted_and_the_first_are_named(more):
    rejects = [
        Reject("a.jsonl", number, None, f"id{number}", "media_missing", "no such file")
        for number in range(SHOWN_REJECTS + more)
    ]
    console = Console(file=io.StringIO(), width=60)
    show_rejects("training", rejects, console)
    said = console.file.getvalue()
    assert f"\n{SHOWN_REJECTS + more} rejected of training\n" in said
    assert said.count("media_missing: no such file") == SHOWN_REJECTS
    assert "  a.jsonl:0: media_missing: no such file\n" in said
    assert ("and 3 more" in said) is bool(more)
    show_rejects("evaluation", [], console)
    assert "evaluation" not in console.file.getvalue()
