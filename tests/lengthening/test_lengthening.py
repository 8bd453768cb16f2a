"""Short rows joined into long ones: each once or told, of the length asked for, and every part to be found again."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from aria_finetune.conversion import ConversionOptions, convert, read_dataset
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Media, Record
from aria_finetune.errors import UserError
from aria_finetune.lengthening import lengthen
from aria_finetune.lengthening.joining import join, question_of_all
from aria_finetune.lengthening.parts import part_of
from aria_finetune.material import prepare
from aria_finetune.recipe import Recipe, load_recipe

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"
MakeRecord = Callable[..., Record]
MakeImage = Callable[..., Media]


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Recipe]:
    def make(*sources: Path | str, tokens: int = 2048, **changes: object) -> Recipe:
        file = tmp_path / "recipe.yaml"
        listed = "".join(f"    - path: {source}\n" for source in sources)
        file.write_text(
            f"model: {{path: tiny, device: cpu}}\ndata:\n  train:\n{listed}  image_size: 490\n  max_tokens: {tokens}\n"
        )
        return load_recipe(file, [f"{key.replace('__', '.')}={value}" for key, value in changes.items()])

    return make


def made(recipe: Recipe, output: Path) -> tuple[dict[str, Any], list[Record]]:
    said = io.StringIO()
    report = lengthen(recipe, output, Console(file=said, width=300))
    assert json.loads((output / "report.json").read_text()) == report
    assert f"{report['read']:,} rows read, {report['used']:,} joined into {report['written']:,}" in said.getvalue()
    return report, list(read_dataset(output, verify=True))


def test_every_image_is_shown_once_and_named_on_both_sides(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    """192 drawings, each asked the same; 2048 tokens hold 14 or 15 of them at 128 tokens and some words."""
    recipe = recipe_of(DATA / "warmth-train.jsonl")
    report, records = made(recipe, tmp_path / "long")
    source = {record["images"][0]: record["messages"][1]["content"][0]["text"] for record in map(
        json.loads, (DATA / "warmth-train.jsonl").read_text().splitlines())}  # fmt: skip
    assert report["read"] == report["used"] == sum(len(record.media) for record in records) == len(source)
    assert (report["left_over"], report["rejected"]) == (0, 0)
    seen = Counter[str]()
    for record in records:
        user, assistant = record.messages
        order = [part.media for part in user.content if part.media is not None]
        assert order == list(range(len(record.media)))
        before = "".join(part.text or "<image>" for part in user.content)
        assert re.findall(r"Image (\d+): <image>\n", before) == [str(n + 1) for n in order]
        assert before.endswith(
            f"Is the colour of the shape warm or cool?\nAnswer for each of the {len(order)} images in order."
        )
        answers = re.findall(r"^Image (\d+): (\w+)$", assistant.content[0].text or "", re.MULTILINE)
        parts = json.loads(record.meta)["parts"]
        assert len(answers) == len(parts) == len(order)
        for (number, answer), part, medium in zip(answers, parts, record.media, strict=True):
            assert answer == source[medium.origin], "the answer to a picture is the one that it had"
            assert part["source"]["file"] == "warmth-train.jsonl"
            assert list(source)[part["source"]["ordinal"]] == medium.origin
            assert int(number) == medium_number(record, medium)
            seen[medium.origin] += 1
    assert set(seen.values()) == {1}
    assert set(seen) == set(source)


def medium_number(record: Record, medium: Media) -> int:
    return next(place for place, other in enumerate(record.media, 1) if other is medium)


@pytest.mark.parametrize("tokens", [700, 2048, 8192])
def test_rows_are_as_long_as_they_may_be_and_as_they_say(
    recipe_of: Callable[..., Recipe], tmp_path: Path, tokens: int
) -> None:
    report, records = made(recipe_of(DATA / "warmth-train.jsonl", tokens=tokens), tmp_path / "long")
    again = recipe_of(tmp_path / "long", tokens=tokens)
    material = prepare(again, tmp_path / "store")
    assert not material.train_rows.rejects
    lengths = [plan.tokens for plan in material.train_rows.plans]
    assert lengths == [json.loads(record.meta)["tokens"] for record in records]
    assert report["tokens"] == {"least": min(lengths), "most": max(lengths), "all": sum(lengths)}
    assert max(lengths) <= tokens
    *full, _last = lengths
    assert min(full) > tokens - 160, "no further part had room: one takes about 150 tokens"


def test_the_seed_alone_decides(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        made(recipe_of(DATA / "warmth-train.jsonl", train__seed=seed), folder)
    first, same, other = ((folder / "data-00000.jsonl").read_bytes() for folder in folders)
    assert first == same != other


def test_what_can_not_be_joined_is_told(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    """Two of four photographs, and one row of the chat, are asked one thing about one picture."""
    recipe = recipe_of(DATA / "photos.json", DATA / "chat.jsonl", DATA / "clip.jsonl")
    report, records = made(recipe, tmp_path / "long")
    chat, clips = (len((DATA / name).read_text().splitlines()) for name in ("chat.jsonl", "clip.jsonl"))
    assert report["read"] == 4 + chat + clips == report["used"] + report["left_over"] + report["rejected"]
    lines = [json.loads(line) for line in (tmp_path / "long" / "rejects.jsonl").open()]
    assert len(lines) == report["left_over"]
    assert {line["reason"] for line in lines} == {"not_joined"} == set(report["reasons"])
    assert {(line["file"], line["ordinal"]) for line in lines} >= {("photos.json", 0), ("chat.jsonl", 0)}
    (photos,) = [record for record in records if record.source.file == "image"]
    text = "".join(part.text or "<image>" for part in photos.messages[0].content)
    assert "What is in the cup?" in text
    assert "What is on the pad?" in text
    assert text.endswith("Answer the question about each of the 3 images in order.")
    answers = dict(re.findall(r"^Image (\d): (.+)$", photos.messages[1].content[0].text or "", re.MULTILINE))
    for number, answer in answers.items():
        due = {"A rocket.": "What is on the pad?", "Coffee.": "What is in the cup?"}
        question = due.get(answer, "Is there a dog in this picture?")
        assert f"Image {number}: <image>\n{question}\n" in text
    assert len(answers) == 3


def test_videos_show_as_many_frames_as_the_recipe_says(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    for frames in (4, 12):
        _, records = made(recipe_of(DATA / "clip.jsonl", data__num_frames=frames), tmp_path / f"long-{frames}")
        clips = [medium for record in records for medium in record.media]
        assert {medium.kind for medium in clips} == {"video"}
        assert min(medium.num_frames or 0 for medium in clips) >= frames
        material = prepare(recipe_of(tmp_path / f"long-{frames}", data__num_frames=1), tmp_path / "store")
        assert sum(len(plan.sights) for plan in material.train_rows.plans) >= min(frames, 8) * len(clips)


def test_pages_of_a_document_follow_each_other(make_record: MakeRecord) -> None:
    pdf = [Media("document", "/a.pdf", "0", "application/pdf", 600, 800, frames=9, page=page) for page in (3, 4)]
    pages = [
        part_of(make_record([("user", [0, "Write out the text of the document."]), ("assistant", [text])], [page]))
        for page, text in zip(pdf, ("three", "four"), strict=True)
    ]
    record = join(pages, 0)
    text = "".join(part.text or "<page>" for part in record.messages[0].content)
    assert text == "Page 3: <page>\nPage 4: <page>\nWrite out the text of each of the 2 pages in order."
    assert record.messages[1].content[0].text == "Page 3: three\nPage 4: four"
    assert [medium.page for medium in record.media] == [3, 4]


def pdf(pages: Sequence[str]) -> bytes:
    """A document of pages with one line of text each, written by the format's description."""
    kids = " ".join(f"{4 + 2 * place} 0 R" for place in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} /MediaBox [0 0 200 100] >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for place, text in enumerate(pages):
        content = f"BT /F1 12 Tf 10 50 Td ({text}) Tj ET"
        resources = "/Resources << /Font << /F1 3 0 R >> >>"
        objects += [
            f"<< /Type /Page /Parent 2 0 R {resources} /Contents {5 + 2 * place} 0 R >>",
            f"<< /Length {len(content)} >> stream\n{content}\nendstream",
        ]
    out, offsets = "%PDF-1.4\n", []
    for number, data in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{data}\nendobj\n"
    table = "0000000000 65535 f \n" + "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    end = f"xref\n0 {size}\n{table}trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return (out + end).encode()


@pytest.mark.parametrize(("tokens", "lengths"), [(4096, [12, 3]), (1024, [6, 6, 3])])
def test_a_folder_of_pdfs_page_by_page(
    recipe_of: Callable[..., Recipe], tmp_path: Path, tokens: int, lengths: list[int]
) -> None:
    """Twelve pages and three: a long document goes on in another record, and no two share one."""
    folder = tmp_path / "pdfs"
    folder.mkdir()
    texts = {"a": [f"This is page {n} of a" for n in range(1, 13)], "b": ["First of b", "second", "third"]}
    for name, pages in texts.items():
        (folder / f"{name}.pdf").write_bytes(pdf(pages))
    report, records = made(recipe_of(folder, tokens=tokens), tmp_path / "long")
    assert (report["read"], report["used"], report["left_over"]) == (2, 2, 0)
    assert report["parts"] == {"page": 15}
    assert [len(record.media) for record in records] == lengths
    said = [line for record in records for line in (record.messages[1].content[0].text or "").splitlines()]
    assert said == [f"Page {n}: {text}" for pages in texts.values() for n, text in enumerate(pages, 1)]
    assert [medium.page for record in records for medium in record.media] == [*range(1, 13), 1, 2, 3]
    material = prepare(recipe_of(tmp_path / "long", tokens=tokens), tmp_path / "store")
    assert [len(plan.sights) for plan in material.train_rows.plans] == lengths


@pytest.mark.parametrize(
    ("questions", "due"),
    [
        (["Describe the image."] * 3, ("Describe each of the 3 images in order.", True)),
        (["", ""], ("Describe each of the 2 images in order.", True)),
        ([""], ("Describe each of the 1 image in order.", True)),
        (["A {brace}?"] * 2, ("A {brace}?\nAnswer for each of the 2 images in order.", True)),
        (["a", "b"], ("Answer the question about each of the 2 images in order.", False)),
    ],
)
def test_the_question_of_all(questions: list[str], due: tuple[str, bool]) -> None:
    assert question_of_all(questions, "image") == due


def test_records_that_are_no_part(make_record: MakeRecord, make_image: MakeImage) -> None:
    image = make_image("a.png", (40, 30))
    whole = [("user", [0, "What?"]), ("assistant", ["This."])]
    assert part_of(make_record(whole, [image])).answer == "This."
    for messages, train in (
        ([("user", ["What?"]), ("assistant", ["This."])], None),
        ([("user", [0, 0, "What?"]), ("assistant", ["This."])], None),
        ([*whole, ("user", ["And?"]), ("assistant", ["That."])], None),
        ([("system", ["Be short."]), *whole], None),
        ([("user", ["Draw."]), ("assistant", [0])], None),
        (whole, [None, False]),
    ):
        with pytest.raises(RecordError, match="not_joined"):
            part_of(make_record(messages, [image], train=train))


def test_images_in_parquet_and_a_part_without_room(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    lines = []
    for number, words in enumerate((3, 900, 4)):
        Image.new("RGB", (60 + number, 50), (50 * number, 0, 90)).save(source / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "word " * words}]
        lines.append(json.dumps({"image": f"{number}.png", "conversations": turns}))
    (source / "data.jsonl").write_text("\n".join(lines))
    convert(source / "data.jsonl", tmp_path / "packed", ConversionOptions(pack="parquet"))
    report, (record,) = made(recipe_of(tmp_path / "packed", tokens=1024), tmp_path / "long")
    assert (report["read"], report["used"], report["left_over"], report["reasons"]) == (3, 2, 1, {"too_long": 1})
    assert sorted(Image.open(medium.path or "").size for medium in record.media) == [(60, 50), (62, 50)]


def test_what_is_refused_leaves_nothing(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text((DATA / "chat.jsonl").read_text().splitlines()[0])
    chat = recipe_of(tmp_path / "chat.jsonl")
    with pytest.raises(UserError, match="no row can be a part of a longer one"):
        lengthen(chat, tmp_path / "long", Console(file=io.StringIO()))
    assert not (tmp_path / "long").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(UserError, match="something at the output"):
        lengthen(recipe_of(DATA / "warmth-train.jsonl"), tmp_path / "used", Console(file=io.StringIO()))
