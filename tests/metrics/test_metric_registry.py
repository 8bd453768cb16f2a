"""Which metric a record is scored by: as its converter writes it, in every format, and by what it says itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aria_finetune.data_formats.format import Context
from aria_finetune.data_formats.record import Draft, Record, Source
from aria_finetune.data_formats.registry import FORMATS
from aria_finetune.errors import UserError
from aria_finetune.metrics import METRICS, choose, metric_named, row_of

OF_FORMAT = {
    "chartqa": "relaxed",
    "docvqa": "anls",
    "dude": "anls",
    "ocr-qa": "anls",
    "humaneval": "code",
    "arc": "choice",
    "activitynet-captions": "moments",
    "textvqa": "anls",  # its example has three answers; with ten it is voted on, see below
    "mmlongbench-doc": "mmlongbench",
    "nlvr2": "yes_no",
    "pope": "yes_no",
    "mme": "yes_no",
    "activitynet-qa": "yes_no",  # its example is answered by yes
    "refcoco": "box",
    "qwen-vl": "box",  # its example is answered by a box
    **dict.fromkeys(("scienceqa", "vlmevalkit", "egoschema", "longvideobench", "nextqa", "tgif-qa", "tvqa"), "choice"),
    **dict.fromkeys(("mvbench", "lvbench", "video-mme"), "choice"),
    **dict.fromkeys(("charades-sta", "video-moments", "timechat", "qvhighlights"), "moments"),
    **dict.fromkeys(
        ("coco-captions", "coco-caption-results", "karpathy", "flickr-lines", "image-captions"), "captions"
    ),
    **dict.fromkeys(("caption-names", "msrvtt", "msrvtt-captions", "video-captions", "sharegpt4video"), "captions"),
}


def converted(name: str) -> list[Record]:
    """The example of a format as its converter writes it."""
    form = next(one for one in FORMATS if one.name == name)
    records = iter([form.example])
    unfolded = form.unfold(records, Context()) if form.unfold else records
    drafts = [draft for record in unfolded for draft in form.convert(record, Context()) if isinstance(draft, Draft)]
    source = Source(name, "rows.json", 0, "1")
    return [Record("id", one.messages, (), one.references, None, json.dumps(dict(one.meta)), source) for one in drafts]


@pytest.mark.parametrize("name", sorted(form.name for form in FORMATS))
def test_the_metric_of_every_format(name: str) -> None:
    records = converted(name)
    if name != "mantis-regression":  # its example names a file beside it
        assert records
    assert {choose(record) for record in records} <= {OF_FORMAT.get(name, "exact"), "captions"}
    for record in records:
        metric, row = METRICS[choose(record)], row_of(record)
        if row.expected and choose(record) != "mmlongbench":
            assert metric.score(row, row.expected[0]).value > 0.5, "the right answer is right"


def test_answers_of_several_people(make_record: Callable[..., Record]) -> None:
    assert choose(make_record(references=["x"] * 10, form="vqav2")) == "vqa"
    assert choose(make_record(references=list("abcdefghij"), form="textvqa")) == "vqa"
    assert choose(make_record(references=["x", "x", "x", "y"], form="image-qa")) == "vqa"
    assert choose(make_record(references=["yes"] * 6 + ["no"] * 4, form="image-qa")) == "vqa"
    assert choose(make_record(references=list("abcd"), form="image-qa")) == "exact"
    assert choose(make_record(references=["x", "x"], form="vqav2")) == "exact"
    assert choose(make_record(references=["x"], form="textvqa")) == "anls"


def test_what_a_record_says_itself(make_record: Callable[..., Record]) -> None:
    tests = {"test": "def check(candidate): pass", "entry_point": "f"}
    assert choose(make_record(meta=tests)) == "code"
    assert choose(make_record(meta={"test_list": ["assert f() == 1"]})) == "code"
    assert choose(make_record(references=["(1,2),(3,4)"])) == "box"
    assert choose(make_record(references=["<ref>a boat</ref><box>(1,2),(3,4)</box>"])) == "box"
    assert choose(make_record(references=["(100,250),(350,749)"], meta={"bbox": [1, 2, 3, 4], "hw": [9, 9]})) == "box"
    assert choose(make_record(references=["(1,2),(3,4), I think"])) == "exact"
    assert choose(make_record([("user", "Who?\nA. a cat\nB. a dog")], references=["B"])) == "choice"
    assert choose(make_record(references=["True"])) == "yes_no"
    assert choose(make_record([("user", "Describe the image.")], references=["A cat."])) == "captions"
    assert choose(make_record(references=["blue"])) == "exact"


def test_what_lacks_what_its_metric_needs_is_compared_word_for_word(make_record: Callable[..., Record]) -> None:
    assert choose(make_record(references=["5:40"], form="mmlongbench-doc")) == "exact"
    assert (
        choose(make_record(references=["[1, 2, 3, 4]"], form="refcoco", meta={"coordinates": "xywh pixels"})) == "exact"
    )
    assert choose(make_record(form="docvqa")) == "exact"


def test_metrics_by_name() -> None:
    assert all(metric_named(name) is metric for name, metric in METRICS.items())
    with pytest.raises(UserError, match="did you mean anls"):
        metric_named("anl")
    with pytest.raises(UserError, match="one of: auto, exact"):
        metric_named("qqqq")


def test_the_page_names_every_metric_with_its_source() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text()
    for name, metric in METRICS.items():
        assert f"| `{name}` |" in page
        assert metric.title
        assert metric.source
