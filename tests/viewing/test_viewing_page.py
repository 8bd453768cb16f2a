"""The page: what it shows, that nothing on it runs or is fetched, and that it can be read by everybody."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from html_pages import Element, picture, read_page, row_text

from aria_finetune.conversion import Reject
from aria_finetune.data.collation import BadRow
from aria_finetune.data.rows import Viewing
from aria_finetune.viewing import page
from aria_finetune.viewing.drawing import OPEN_CHARACTERS, OPEN_PICTURES, draw_row
from aria_finetune.viewing.page import LISTED_REJECTS, Overview, compose
from aria_finetune.viewing.rows import ShownRow

CSS = (Path(page.__file__).parent / "page.css").read_text(encoding="utf-8")
COUNTS = {"rows": 1203, "tokens": 10, "labels": 5, "images": 3, "videos": 1, "rejected": 2}
HOSTILE = (
    "<script>alert(1)</script></style><!-- <img src=x onerror=alert(1)> ]]> &lt; \"' </article> \x00\x1b[2J \u202e"
)


def composed(*rows: ShownRow, **changes: object) -> tuple[str, Element]:
    overview = Overview("my.yaml", [("model", "tiny")], {"training": COUNTS}, {"training": []}, "All.", None)
    text = compose(replace(overview, **changes), [draw_row(row) for row in rows])
    return text, read_page(text)


def test_a_row_with_its_texts_kinds_and_counts(shown, make_record, make_image):
    said = [("user", ["Hi ", 0, "What is it?\nSay."]), ("assistant", ["A cat of some kind."])]
    row = shown(make_record(said, [make_image("cat.png", (60, 30))]))
    _, html = composed(row)
    article = html.one("article")
    assert row_text(article) == (
        "<|im_start|>user\nHi <fim_prefix>[image 1: 128 tokens, 490 px, cat.png]<fim_suffix>What is it?\nSay.<|im_end|>\n"
        "<|im_start|>assistant\nA cat of some kind.<|im_end|>\n"
    )
    runs = [(run.classes - {"run"}, run.text) for run in article.all("span", "run")]
    assert runs[1] == ({"text"}, "Hi ")
    assert runs[2][0] == {"image"}
    assert runs[-2] == ({"loss"}, "A cat of some kind.")
    assert runs[-1] == ({"loss"}, "<|im_end|>↵")
    assert runs[0] == ({"role"}, "<|im_start|>user\n")
    facts = [element.text for element in article.all("dd")]
    assert facts == [
        "messages:train.jsonl:4",
        "data/train.jsonl, weight 2",
        f"{row.tokens}, of which {row.in_loss} in the loss and 128 image tokens",
    ]
    assert article.one("p", "where").text == "train.jsonl:4"
    assert [turn.text for turn in article.all("h4")] == [
        f"user{6 + 3 + 130 + 16 + 2} tokens0 in the loss",
        f"assistant{11 + 19 + 2} tokens21 in the loss",
    ]
    bars = article.one("svg").all("rect")
    assert sum(int(bar.attributes["width"]) for bar in bars) == row.tokens
    assert [bar.attributes["class"] for bar in bars] == [
        "role",
        "text",
        "image",
        "text",
        "role",
        "role",
        "loss",
        "loss",
    ]


def test_each_token_is_an_element_of_its_own(shown, make_record):
    _, html = composed(shown(make_record([("user", ["A question with é and 漢, long."]), ("assistant", ["Yes."])])))
    run = html.one("article").all("span", "text")[0]
    assert [one.text for one in run.all("i")] == list("A question with é and 漢, long.")


def test_thumbnails_are_the_tiles(shown, make_record, make_image, make_video, make_pdf):
    media = [
        make_image("wide.png", (1000, 500), "red"), make_video("a.mp4", 20), make_pdf("c.pdf", ["lime", "blue"]),
        make_image("other.png", (60, 60), "yellow"),
    ]  # fmt: skip
    viewing = Viewing(split_images=True, image_size=490, num_frames=2, max_tokens=65536)
    _, html = composed(shown(make_record([("user", [0, 1, 2, 3]), ("assistant", ["Y"])], media), viewing))
    images = html.all("img")
    assert [image.attributes["alt"] for image in images] == [
        "[image 1: 384 tokens, 490 px, overview and 2 crops, wide.png], overview",
        "[image 1: 384 tokens, 490 px, overview and 2 crops, wide.png], crop 1",
        "[image 1: 384 tokens, 490 px, overview and 2 crops, wide.png], crop 2",
        "[frame 1: 128 tokens, 490 px, a.mp4 at 0.500 s]",
        "[frame 2: 128 tokens, 490 px, a.mp4 at 1.500 s]",
        "[page 1: 128 tokens, 490 px, c.pdf]",
        "[page 2: 128 tokens, 490 px, c.pdf]",
        *(f"[image 2: 640 tokens, 490 px, overview and 4 crops, other.png], {part}"
          for part in ("overview", "crop 1", "crop 2", "crop 3", "crop 4")),
    ]  # fmt: skip
    colours = [(255, 0, 0)] * 3 + [(20, 20, 20), (60, 60, 60), (0, 255, 0), (0, 0, 255)] + [(255, 255, 0)] * 5
    for image, colour in zip(images, colours, strict=True):
        drawn = picture(image)
        assert drawn.size == (int(image.attributes["width"]), int(image.attributes["height"]))
        assert np.abs(np.asarray(drawn, int) - colour).max() < 16
    # 1000 x 500 in a tile is 490 x 336, no side below 336; its crops are square.
    assert [picture(image).size for image in images[:2]] == [(384, 263), (384, 384)]
    assert [grid.attributes["class"] for grid in html.all("div", "crops")] == ["crops columns-2", "crops columns-2"]
    assert [figure.classes for figure in html.all("figure")][1] == {"picture", "frame"}


def test_what_data_hold_is_text_wherever_it_stands(shown, make_record, make_image, place):
    media = make_image("a.png", (60, 30))
    media.origin = f"x/{HOSTILE.replace('/', '_')}"
    row = shown(make_record([("user", [HOSTILE, 0, HOSTILE * 30]), ("assistant", [HOSTILE])], [media]))
    row = replace(row, place=replace(place, where=HOSTILE, id=HOSTILE, source=HOSTILE), faults=(HOSTILE,))
    bad = ShownRow(replace(place, number=2), bad=BadRow(0, HOSTILE, HOSTILE, HOSTILE, "media_missing", HOSTILE))
    reject = Reject(HOSTILE, 0, None, HOSTILE, "bad_json", HOSTILE)
    text, html = composed(
        row, bad, title=HOSTILE, facts=[("model", HOSTILE)], rejects={"training": [reject]}, shown=HOSTILE,
        refusal=HOSTILE,
    )  # fmt: skip
    safe = HOSTILE.replace("\x00", "\\x00").replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert text.count("<script") == 0
    assert {element.tag for element in html.all()} <= {
        "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "h4", "p", "div", "table", "tr", "th", "td",
        "dl", "dt", "dd", "ul", "li", "span", "i", "input", "label", "main", "section", "nav", "a", "article", "svg",
        "rect", "small", "strong", "code", "figure", "figcaption", "img", "details", "summary",
    }  # fmt: skip
    for element in html.all():
        assert not any(name.startswith("on") or name == "style" for name in element.attributes)
        assert element.attributes.get("href", "#").startswith("#")
        assert element.attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
    assert html.one("title").text == f"{safe}: what the model sees"
    first, second = html.all("article")
    assert f"user\n{safe}<fim_prefix>" in row_text(first)
    assert f"<fim_suffix>{safe * 30}<|im_end|>" in row_text(first)
    assert [item.text for item in first.one("ul", "faults").all("li")] == [f"WRONG: {safe}"]
    assert second.one("p", "bad").text == f"not shown: {safe}: media_missing: {safe}"
    assert html.one("p", "verdict").text == safe
    assert [cell.text for cell in html.all("table")[1].all("td")] == [f"{safe}:0", "bad_json", safe, safe]


def test_nothing_is_allowed_but_its_own_style_and_pictures(shown, make_record):
    text, html = composed(shown(make_record([("user", ["a"]), ("assistant", ["b"])])))
    assert text.startswith(page.MARK)
    ET.fromstring(text)  # noqa: S314 (a page that is read by a strict parser is read alike by all)
    policies = [meta for meta in html.all("meta") if meta.attributes.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(html.one("style").text.encode()).digest()).decode()
    assert [policy.attributes["content"] for policy in policies] == [
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    ]
    head = [child.tag for child in html.one("head").children if isinstance(child, Element)]
    assert head.index("meta") < head.index("style"), "a policy holds for what follows it"
    assert not re.search(r"@import|url\(|https?:", html.one("style").text)
    assert "<link" not in text


def test_a_secret_is_hidden_also_where_tokens_cut_it(shown, make_record, place):
    said = [("user", ["See https://me:hunter22@example.org/ there."]), ("assistant", ["Yes."])]
    row = replace(shown(make_record(said)), place=replace(place, source="https://me:hunter22@example.org/x"))
    text, html = composed(row)
    assert "hunter22" not in re.sub(r"<[^>]*>", "", text)
    assert "hunter22" not in text
    run = next(run for run in html.all("span", "run") if "See" in run.text)
    assert run.text == "See https://***@example.org/ there."
    assert "a secret in it is hidden" in run.attributes["title"]


def test_long_text_and_many_pictures_are_folded_and_whole(shown, make_record, make_video):
    words = " ".join(f"word{number}" for number in range(1000))
    frames = OPEN_PICTURES + 5
    said = [("user", [words, 0, "?"]), ("assistant", [words])]
    viewing = Viewing(num_frames=frames, max_tokens=65536)
    _, html = composed(shown(make_record(said, [make_video("a.mp4", frames)]), viewing))
    told = row_text(html.one("article"))
    assert told.count(words) == 2
    summaries = [one.text for one in html.all("summary")]
    assert summaries[0].endswith(" more characters")
    assert summaries[1].startswith("5 more pictures, ")
    begin, rest = (run.text for run in html.one("article").all("span", "loss")[:2])
    assert (len(begin), begin + rest) == (OPEN_CHARACTERS, words)
    assert len(html.all("img")) == frames
    assert len(html.all("details")[1].all("img")) == 5
    # Times of frames stand in a line with them: their line breaks are marks.
    assert "↵[00:00]" in [run.text for run in html.all("span", "text")]


def test_a_text_of_one_piece_is_folded_too(shown, make_record):
    """As one that held a secret is."""
    text = f"https://me:hunter22@example.org/ {'x' * 2 * OPEN_CHARACTERS}"
    _, html = composed(shown(make_record([("user", [text]), ("assistant", ["Y"])])))
    assert (
        html.one("summary").text == f"{len(text) - len('me:hunter22') + len('***') - OPEN_CHARACTERS:,} more characters"
    )
    assert text.replace("me:hunter22", "***") in row_text(html.one("article"))


def test_wrong_rows_stand_out(shown, make_record, make_image, place):
    def learn(batch):
        batch["labels"][0, 10:13] = batch["input_ids"][0, 10:13]

    record = make_record([("user", [0]), ("assistant", ["Y"])], [make_image("a.png", (30, 20))])
    _, html = composed(shown(record, spoil=learn), shown(record))
    wrong, sound = html.all("article")
    assert wrong.all("li")[0].text == "WRONG: <|img|> is in the loss: token 10 and 2 more"
    assert "fault" in wrong.one("figure").classes
    assert wrong.one("figure").one("small").text == " 3 of its tokens are in the loss"
    assert sound.all("ul", "faults") == []
    assert [(jump.text, jump.classes) for jump in html.one("nav").all("a")] == [("1 !", {"wrong"}), ("1", set())]
    assert {jump.attributes["href"] for jump in html.one("nav").all("a")} == {"#row-1"}
    assert wrong.attributes["id"] == "row-1"


def test_figures_and_rejected_rows(shown, make_record):
    rejects = [
        Reject("a.jsonl", number, None, f"id{number}", "media_missing" if number % 3 else "bad_json", "no such file")
        for number in range(LISTED_REJECTS + 20)
    ]
    _, html = composed(rejects={"training": rejects, "evaluation": rejects[:2]}, refusal="too many\n  fix: less")
    figures = html.one("header").one("table")
    assert [cell.text for cell in figures.all("td")] == ["1,203", "10", "5", "3", "1", "2"]
    assert html.one("p", "verdict").text == "too many\n  fix: less"
    _, training, evaluation = html.all("table")
    assert len(training.all("tr")) == 1 + LISTED_REJECTS
    assert [cell.text for cell in training.all("td")[:4]] == ["a.jsonl:0", "bad_json", "no such file", "id0"]
    assert len(evaluation.all("tr")) == 3
    said = [paragraph.text for paragraph in html.all("p")]
    assert "120 of training: 80 media_missing, 40 bad_json" in said
    assert "and 20 more" in said
    assert html.all("nav") == []


def test_the_legend_has_every_kind_and_no_kind_is_told_by_its_colour_alone() -> None:
    _, html = composed()
    kinds = [one.one("span").classes - {"run"} for one in html.one("ul", "legend").all("li")]
    assert kinds == [{"role"}, {"text"}, {"loss"}, {"image"}, {"frame"}]
    rules = dict(re.findall(r"^\.run\.(\w+) \{(.*?)\}", CSS, re.MULTILINE))
    assert "underline" in rules["loss"]
    assert "dashed" in rules["image"]
    assert "dotted" in rules["frame"]
    assert "italic" in rules["role"]
    assert "solid" in rules["fault"]


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read(scheme: int) -> None:
    """Contrast of at least 4.5 : 1, which WCAG 2.2 asks of text (level AA)."""
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", CSS.split("@media (prefers-color-scheme: dark)")[scheme]))
    pairs = [("ink", "paper"), ("ink", "card"), ("faint", "paper"), ("faint", "card")]
    pairs += [(kind, f"{kind}-ground") for kind in ("loss", "image", "frame", "role", "fault")]
    for front, back in pairs:
        light, dark = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back)


def test_the_style_sheet_has_every_class_of_the_page_and_ships_with_the_package(shown, make_record, make_image) -> None:
    record = make_record([("user", [0]), ("assistant", ["word " * 400])], [make_image("a.png", (30, 20))])
    _, html = composed(shown(record, Viewing(split_images=True)), refusal="no")
    used = {name for element in html.all() for name in element.classes}
    assert {name for name in used if not re.search(rf"\.{name}\b", CSS)} <= {"text", "more", "image"}
    pyproject = (Path(page.__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"aria_finetune.viewing" = ["*.css"]' in pyproject
    assert CSS.count("{") == CSS.count("}")
