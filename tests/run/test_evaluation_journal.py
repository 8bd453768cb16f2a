"""Answers that are kept: what is taken up again after a kill, and what is not because something else is asked."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from aria_finetune.evaluation import EvaluationOptions, answering, evaluate
from aria_finetune.evaluation.journal import Journal, fingerprint
from aria_finetune.recipe import Recipe

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"


def test_answers_are_there_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out", "a")
    journal.add("base", [(3, "x\n\u2028y"), (0, "")])
    journal.add("adapter", [(3, "z")])
    again = Journal(tmp_path / "out", "a")
    assert again.said == {"base": {3: "x\n\u2028y", 0: ""}, "adapter": {3: "z"}}
    assert again.count == 3
    again.remove()
    assert list(tmp_path.iterdir()) == []
    again.remove()


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path / "out", "a")
    journal.add("base", [(0, "first"), (1, "second")])
    journal.path.write_bytes(journal.path.read_bytes()[:-cut])
    again = Journal(tmp_path / "out", "a")
    assert again.said == {"base": {0: "first"}}
    again.add("base", [(1, "second")])
    assert Journal(tmp_path / "out", "a").said == {"base": {0: "first", 1: "second"}}


@pytest.mark.parametrize("left", ["", '{"fingerprint": "b"}\n{"who": "base", "row": 0, "answer": "x"}\n', '{"finger'])
def test_answers_to_something_else_are_not_taken(tmp_path: Path, left: str) -> None:
    (tmp_path / ".out.answers.jsonl").write_text(left)
    journal = Journal(tmp_path / "out", "a")
    assert journal.count == 0
    journal.add("base", [(0, "y")])
    assert Journal(tmp_path / "out", "a").said == {"base": {0: "y"}}


def test_a_fingerprint_is_of_what_files_hold(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_text("one")
    before = fingerprint({"a": 1}, [tmp_path / "adapter"], "x")
    assert before == fingerprint({"a": 1}, [tmp_path / "adapter"], "x")
    assert before != fingerprint({"a": 2}, [tmp_path / "adapter"], "x")
    (tmp_path / "adapter" / "weights").write_text("three")
    assert before != fingerprint({"a": 1}, [tmp_path / "adapter"], "x")
    with pytest.raises(TypeError):
        fingerprint(object())


def test_an_evaluation_that_was_cut_short_goes_on(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(f"data.eval=[{DATA}/photos.json, {DATA}/chat.jsonl]", "model.experts=fp32")
    options = EvaluationOptions(max_new_tokens=4, batch_size=1)
    console = Console(file=io.StringIO(), width=200)
    evaluate(recipe, tmp_path / "whole", options, Console(quiet=True))

    asked: list[int] = []
    real = answering.generate_answers

    def counted(model: object, collator: answering.Any, **settings: object) -> list[str]:
        if asked == [4]:
            raise KeyboardInterrupt
        asked.append(len(collator.plans))
        return real(model, collator, **settings)

    monkeypatch.setattr(answering, "generate_answers", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(recipe, tmp_path / "cut", options, Console(quiet=True))
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(answering, "generate_answers", real)
    evaluate(recipe, tmp_path / "cut", options, console)
    assert "4 answers are known from before" in console.file.getvalue()
    whole, cut = ((tmp_path / name / "predictions.jsonl").read_text() for name in ("whole", "cut"))
    assert whole == cut
    assert json.loads(whole.splitlines()[0])["answers"]["base"]
    assert not list(tmp_path.glob(".*.jsonl"))
