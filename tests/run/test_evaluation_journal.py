"""Answers that are kept: what is taken up again after a kill, and what is not because something else is asked."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from aria_finetune.errors import UserError
from aria_finetune.evaluation import EvaluationOptions, answering, evaluate
from aria_finetune.evaluation.answering import open_journal
from aria_finetune.evaluation.journal import Journal, fingerprint, kept_alone
from aria_finetune.generation import Reply
from aria_finetune.material import prepare_prompts
from aria_finetune.recipe import Recipe

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"


def test_answers_are_there_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out", "a")
    journal.add("base", [(3, Reply("x\n\u2028y")), (0, Reply(""))])
    journal.add("adapter", [(3, Reply("z", cut=True))])
    again = Journal(tmp_path / "out", "a")
    assert again.said == {"base": {3: Reply("x\n\u2028y"), 0: Reply("")}, "adapter": {3: Reply("z", cut=True)}}
    assert again.count == 3
    again.remove()
    assert list(tmp_path.iterdir()) == []
    again.remove()


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path / "out", "a")
    journal.add("base", [(0, Reply("first")), (1, Reply("second"))])
    journal.path.write_bytes(journal.path.read_bytes()[:-cut])
    again = Journal(tmp_path / "out", "a")
    assert again.said == {"base": {0: Reply("first")}}
    again.add("base", [(1, Reply("second"))])
    assert Journal(tmp_path / "out", "a").said == {"base": {0: Reply("first"), 1: Reply("second")}}


@pytest.mark.parametrize("left", ["", '{"fingerprint": "b"}\n{"who": "base", "row": 0, "answer": "x"}\n', '{"finger'])
def test_answers_to_something_else_are_not_taken(tmp_path: Path, left: str) -> None:
    (tmp_path / ".out.answers.jsonl").write_text(left)
    journal = Journal(tmp_path / "out", "a")
    assert journal.count == 0
    journal.add("base", [(0, Reply("y"))])
    assert Journal(tmp_path / "out", "a").said == {"base": {0: Reply("y")}}


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


@pytest.mark.parametrize(
    "damage",
    [
        '{"who": "base", "row": 0, "ans',
        "null",
        '{"who": "base"}',
        '{"who": "base", "row": 0, "answer": ""}',
        '{"who": "base", "row": "x", "answer": "", "cut": false}',
        "\xff",
    ],
)
def test_a_line_that_is_damaged_is_named(tmp_path: Path, damage: str) -> None:
    journal = Journal(tmp_path / "out", "a")
    journal.add("base", [(0, Reply("first")), (1, Reply("second"))])
    lines = journal.path.read_bytes().split(b"\n")
    lines[1] = damage.encode("latin-1")
    journal.path.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=r"damaged") as caught:
        Journal(tmp_path / "out", "a")
    assert f"{journal.path}:2" in str(caught.value)
    assert "remove the line" in str(caught.value)
    assert journal.path.read_bytes() == b"\n".join(lines)
    assert Journal(tmp_path / "out", "b").count == 0  # of something else: what it says does not matter


def test_models_are_known_by_their_own_files(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe(f"data.eval={DATA}/chat.jsonl")
    material = prepare_prompts(recipe, tmp_path / "store")
    run, merged = tmp_path / "run", tmp_path / "merged"
    for folder in (run / "adapter", merged):
        folder.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "adapter" / "adapter_config.json").write_text("{}")
    (merged / "config.json").write_text("{}")

    def mark(adapter: Path) -> str:
        return open_journal(recipe, material, EvaluationOptions(adapter, merged=merged), tmp_path / "out").mark

    marks = [mark(run)]
    assert marks == [mark(run)] == [mark(run / "adapter")]
    for weights in (run / "adapter" / "adapter_model.safetensors", merged / "model.safetensors"):
        for text in ("one", "three"):
            weights.write_text(text)
            marks.append(mark(run))
    assert len(set(marks)) == 5


def _other_may_lock(path: Path) -> bool:
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False).returncode == 0


def test_an_output_is_evaluated_to_by_one_at_a_time(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe(f"data.eval={DATA}/chat.jsonl")
    lock = tmp_path / ".out.lock"
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="another process evaluates") as caught:
            evaluate(recipe, tmp_path / "out", EvaluationOptions(), Console(quiet=True))
        assert "another --output" in str(caught.value)
        assert [path.name for path in tmp_path.iterdir() if "answers" in path.name] == []
        other.communicate(b"")
    with kept_alone(tmp_path / "out"):
        journal = Journal(tmp_path / "out", "a")
        journal.add("base", [(0, Reply("x"))])
        Journal(tmp_path / "out", "a").remove()
        assert not _other_may_lock(lock)
    assert not lock.exists()


def test_an_evaluation_that_was_cut_short_goes_on(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(f"data.eval=[{DATA}/photos.json, {DATA}/chat.jsonl]", "model.experts=fp32")
    options = EvaluationOptions(max_new_tokens=4, batch_size=1)
    console = Console(file=io.StringIO(), width=200)
    evaluate(recipe, tmp_path / "whole", options, Console(quiet=True))

    asked: list[int] = []
    real = answering.generate_answers

    def counted(model: object, collator: answering.Any, **settings: object) -> list[Reply]:
        if asked == [4]:
            raise KeyboardInterrupt
        asked.append(len(collator.plans))
        assert not _other_may_lock(tmp_path / ".cut.lock")
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
    lines = [json.loads(line) for line in whole.splitlines()]
    assert lines[0]["answers"]["base"]
    figures = json.loads((tmp_path / "cut" / "evaluation.json").read_text())
    assert figures["base"]["cut"] == sum(line["cut"]["base"] for line in lines) > 0
    assert not list(tmp_path.glob(".*.jsonl"))
    assert not list(tmp_path.glob(".*.lock"))
