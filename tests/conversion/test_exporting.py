"""A converted set in other forms, read back as what it was; what a form can't hold is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from aria_finetune.conversion import ConversionOptions, convert, read_dataset
from aria_finetune.conversion.exporting import export
from aria_finetune.errors import TooManyRejects, UserError

BALL = Path(__file__).parents[2] / "recipes/data/tiny/ball.mp4"


def dataset(folder: Path, *records: dict[str, object]) -> Path:
    source = folder / "source"
    source.mkdir()
    for number in range(3):
        Image.new("RGB", (20 + number, 30), (number * 40, 0, 0)).save(source / f"{number}.png")
    (source / "ball.mp4").write_bytes(BALL.read_bytes())
    (source / "chat.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    convert(source / "chat.jsonl", folder / "set", ConversionOptions(max_rejects=0))
    return folder / "set"


def turns(question: str, **media: object) -> dict[str, object]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "This."}], **media}


IMAGES = turns("<image> and <image>\nwhat?", image=["0.png", "1.png"])
VIDEO = turns("<video>What?", video="ball.mp4")
TEXT = turns("What?")
AGAIN = turns("a<image>b", image="0.png")


def shown(folder: Path) -> list[object]:
    return [
        ([(m.role, [(part.type, part.text, part.media) for part in m.content]) for m in record.messages],
         [(medium.kind, medium.sha256, medium.num_frames) for medium in record.media])
        for record in read_dataset(folder)
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["aria", "webdataset"])
def test_there_and_back(tmp_path: Path, form) -> None:
    made = dataset(tmp_path, IMAGES, VIDEO, TEXT, AGAIN)
    report = export(made, tmp_path / form, form)
    assert (report.read, report.written, report.rejected) == (4, 4, 0)
    convert(tmp_path / form, tmp_path / "back", ConversionOptions(format=form))
    assert shown(tmp_path / "back") == shown(made)


def test_what_arias_form_can_not_hold(tmp_path: Path) -> None:
    made = dataset(
        tmp_path,
        TEXT,
        turns("Hi.", system="Be short."),
        turns("<image><video>What?", image="0.png", video="ball.mp4"),
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0},
                           {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    )  # fmt: skip
    with pytest.raises(TooManyRejects, match="3 records can't be held by aria"):
        export(made, tmp_path / "aria", "aria")
    rejects = [json.loads(line) for line in (tmp_path / "aria/rejects.jsonl").read_text().splitlines()]
    assert [(reject["ordinal"], reject["reason"]) for reject in rejects] == [
        (1, "bad_roles"),
        (2, "unsupported_modality"),
        (3, "bad_schema"),
    ]
    report = json.loads((tmp_path / "aria/report.json").read_text())
    assert (report["read"], report["written"], report["rejected"]) == (4, 1, 3)
    assert len((tmp_path / "aria/train.jsonl").read_text().splitlines()) == 1


def test_system_turns_and_flags_go_into_webdataset(tmp_path: Path) -> None:
    made = dataset(tmp_path, turns("Hi.", system="Be short."), AGAIN)
    assert export(made, tmp_path / "tars", "webdataset").written == 2
    convert(tmp_path / "tars", tmp_path / "back", ConversionOptions())
    assert shown(tmp_path / "back") == shown(made)


def test_only_a_converted_set_can_be_exported(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}")
    with pytest.raises(UserError, match="no converted data set"):
        export(tmp_path / "x.jsonl", tmp_path / "out", "aria")
