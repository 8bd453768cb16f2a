"""Which rows are asked and scored, by what, and what is made of the answers; no model answers here."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from html_pages import read_page
from rich.console import Console

from aria_finetune.data.rows import RowPlan
from aria_finetune.data_formats.record import Media, Message, Part, Record, Source
from aria_finetune.errors import UserError
from aria_finetune.evaluation.reporting import PAGE_ROWS, Report, chosen_rows, say, table, write
from aria_finetune.evaluation.scoring import NEEDS_CODE, NO_ANSWER, Asked, choose_rows, score_answers
from aria_finetune.generation import Reply
from aria_finetune.material import prepare_prompts
from aria_finetune.metrics import METRICS
from aria_finetune.recipe import Recipe

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"


def plan(
    question: str = "?",
    references: Sequence[str] = (),
    form: str = "messages",
    meta: dict[str, Any] | None = None,
    media: Sequence[Media] = (),
    name: str = "row",
) -> RowPlan:
    messages = (Message("user", (Part("text", question),)),)
    source = Source(form, "rows.json", 0, "1")
    record = Record(name, messages, tuple(media), tuple(references), None, json.dumps(meta or {}), source)
    return RowPlan(record, (), (), 1, 0)


def picture(name: str) -> Media:
    return Media("image", f"{name}.png", name * 64, "image/png", 640, 480)


CODE = plan("Add.", meta={"test_list": ["assert add(1, 2) == 3"]}, name="code")
PLANS = [
    plan("Colour?", ["red"], name="exact"),
    plan("Total?", ["$1,000"], "docvqa", name="anls"),
    plan("Is it?", ["yes"], "pope", name="yes"),
    plan("Unknown?", name="unknown"),
    CODE,
]


def names(asked: Asked) -> list[str | None]:
    return [metric.name if metric else None for metric in asked.metrics]


def test_each_row_by_its_own_metric() -> None:
    asked = choose_rows(PLANS, "auto", run_code=False)
    assert names(asked) == ["exact", "anls", "yes_no", None, None]
    assert asked.unscored == {NO_ANSWER: 1, NEEDS_CODE: 1}
    assert [metric.name for metric in asked.used] == ["exact", "anls", "yes_no"]
    assert names(choose_rows(PLANS, "auto", run_code=True))[4] == "code"


def test_all_rows_by_one_metric() -> None:
    asked = choose_rows(PLANS, "anls", run_code=False)
    assert names(asked) == ["anls", "anls", "anls", None, None]
    assert asked.unscored == {NO_ANSWER: 2}
    asked = choose_rows(PLANS, "yes_no", run_code=False)
    assert names(asked) == [None, None, "yes_no", None, None]
    assert asked.unscored == {"lacks what yes_no needs": 2, NO_ANSWER: 2}


@pytest.mark.parametrize(
    ("plans", "metric", "said"),
    [
        ([plan()], "auto", "no evaluation row has a known answer"),
        ([], "auto", "no evaluation row has a known answer"),
        ([CODE], "auto", "--run-code"),
        ([plan("?", ["x"])], "box", "lacks what box needs"),
    ],
)
def test_rows_of_which_none_can_be_scored(plans: list[RowPlan], metric: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose_rows(plans, metric, run_code=False).check("recipe.yaml")


def test_captions_of_one_picture_are_one_question() -> None:
    first, second = picture("a"), picture("b")
    plans = [
        plan("Describe the image.", ["a dog"], "coco-captions", media=[first]),
        plan("Describe the image.", ["a cat"], "coco-captions", media=[second]),
        plan("Describe the image.", ["a brown dog"], "coco-captions", media=[first]),
        plan("Describe the image.", ["a dog"], "coco-captions", media=[first]),
        plan("Who?", ["x"], media=[first]),
        plan("Who?", ["y"], media=[first]),
    ]
    asked = choose_rows(plans, "auto", run_code=False)
    assert [row.expected for row in asked.rows] == [("a dog", "a brown dog"), ("a cat",), ("x",), ("y",)]
    assert asked.joined == 2
    assert len(asked.plans) == 4


def replies(*texts: str) -> list[Reply]:
    return [Reply(text) for text in texts]


def scored_rows() -> tuple[Asked, dict[str, list[Reply]]]:
    asked = choose_rows(PLANS, "auto", run_code=True)
    said = {
        "base": replies("blue", "$1,000", "maybe", "x", "def add(a, b): return a - b"),
        "adapter": replies("Red.", "1000", "Yes", "y", "```python\ndef add(a, b):\n    return a + b\n```"),
    }
    return asked, said


def test_scores_figures_and_differences() -> None:
    asked, said = scored_rows()
    scored = score_answers(asked, said)
    assert [score and score.value for score in scored.scores["base"]] == [0, 1, 0, None, 0]
    assert [score and score.value for score in scored.scores["adapter"]] == [1, pytest.approx(4 / 6), 1, None, 1]
    assert scored.figures["base"]["accuracy"] == 0.25
    assert scored.figures["adapter"]["accuracy"] == pytest.approx((3 + 4 / 6) / 4)
    assert (scored.figures["base"]["correct"], scored.figures["base"]["unparsed"]) == (1, 1)
    assert set(scored.figures["base"]["metrics"]) == {"exact", "anls", "yes_no", "code"}
    assert scored.figures["adapter"]["metrics"]["anls"]["mean"] == pytest.approx(4 / 6)
    assert scored.differences["adapter"]["anls"]["difference"] == pytest.approx(-1 / 3)
    assert scored.differences["adapter"]["code"]["better"] == 1
    assert "base" not in scored.differences


def test_the_rows_of_a_page_that_is_full() -> None:
    """Changed ones first, then wrong ones, then the first of the rest; on the page in their order."""
    count = PAGE_ROWS + 100
    asked = choose_rows([plan("?", ["x"])] * count, "auto", run_code=False)
    base, adapter = replies(*["x"] * count), replies(*["x"] * count)
    base[-1] = base[-2] = adapter[-1] = Reply("no")
    chosen = chosen_rows(score_answers(asked, {"base": base, "adapter": adapter}))
    assert chosen == [*range(PAGE_ROWS - 2), count - 2, count - 1]


def test_what_is_written_and_said(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe(f"data.eval={DATA}/chat.jsonl")
    material = prepare_prompts(recipe, tmp_path / "store")
    asked, said = scored_rows()
    said["base"][2] = Reply("maybe", cut=True)
    report = Report(recipe, material, asked, score_answers(asked, said), Path("runs/x/adapter"), None, "auto", 1024)
    result = write(tmp_path / "out", report, [], seconds=1.5)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "evaluation.html", "evaluation.json", "predictions.jsonl"
    ]  # fmt: skip
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == result
    assert result["models"] == {"base": "tiny", "adapter": "runs/x/adapter"}
    assert (result["rows"], result["scored"], result["unscored"]) == (5, 4, {NO_ANSWER: 1})
    assert result["metrics"]["anls"]["rows"] == 1
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").open()]
    assert [line["id"] for line in lines] == ["exact", "anls", "yes", "unknown", "code"]
    assert lines[2] == {
        "id": "yes",
        "metric": "yes_no",
        "question": "Is it?",
        "expected": ["yes"],
        "answers": {"base": "maybe", "adapter": "Yes"},
        "scores": {"base": 0.0, "adapter": 1.0},
        "correct": {"base": False, "adapter": True},
        "parsed": {"base": False, "adapter": True},
        "cut": {"base": True, "adapter": False},
        "read": {"adapter": "yes"},
    }
    assert lines[3]["scores"] == {"base": None, "adapter": None}
    page = read_page((tmp_path / "out" / "evaluation.html").read_text(encoding="utf-8"))
    assert len(page.all("tr")) == 1 + 4 * 2
    assert METRICS["anls"].source.replace("<", "") in page.text
    console = Console(file=io.StringIO(), width=300)
    say(result, tmp_path / "out", console)
    told = console.file.getvalue()
    assert "base           yes_no 0.000, 95 % 0.000 to 0.793 (0 of 1 right; 1 unparsed)" in told
    assert "adapter        yes_no 1.000, 95 % 0.207 to 1.000 (1 of 1 right; +1.000 on base, p 1.0000)" in told
    assert (result["max_new_tokens"], result["base"]["cut"], result["adapter"]["cut"]) == (1024, 1, 0)
    assert "1 of 5 answers of base were cut at 1024 tokens; --max-new-tokens gives them more\n" in told
    assert "of adapter were cut" not in told
    assert "1 rows not scored: no known answer" in told
    assert table(result)[0][:2] == ("exact", "base")
