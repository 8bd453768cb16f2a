"""Whether a checkpoint belongs to a recipe: what may differ, what may not, what is said."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aria_finetune.errors import UserError
from aria_finetune.recipe.problems import SECTIONS
from aria_finetune.resumption import BATCH_KEYS, EVALUATION_KEYS, FREE_KEYS, check_identity

SAVED: dict[str, Any] = {
    "recipe": {
        "model.path": "a", "data.train.0.path": "x", "data.train.0.weight": 1.0, "data.eval": [],
        "train.learning_rate": 1e-4, "train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 4,
        "train.eval_steps": 5, "train.load_best_model_at_end": False, "train.early_stopping_patience": None,
        "train.seed": 1,
    },
    "rows": "r", "base": "b", "versions": {"torch": "2.13.0"},
}  # fmt: skip


def compare(*, rows: str = "r", base: str = "b", versions: dict[str, str] | None = None, **recipe: Any) -> str:
    said = io.StringIO()
    changed = {**SAVED["recipe"], **{key.replace("__", "."): value for key, value in recipe.items()}}
    now = {"recipe": changed, "rows": rows, "base": base, "versions": versions or SAVED["versions"]}
    check_identity(SAVED, now, Path("checkpoint-3"), Console(file=said, width=200))
    return said.getvalue()


def test_the_same_run_goes_on_without_a_word() -> None:
    assert compare() == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"model__path": "elsewhere"},
        {"data__train__0__path": "moved", "data__train__0__media_root__0": "there"},
        {"train__save_steps": 7, "train__eval_steps": 9},
        {"model__device": "cuda"},
    ],
)
def test_what_changes_no_update_may_differ(changes: dict[str, Any]) -> None:
    assert compare(**changes) == ""


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train__learning_rate": 2e-4}, "train.learning_rate was 0.0001 and is 0.0002"),
        ({"data__train__0__weight": 2.0}, "data.train.0.weight was 1.0 and is 2.0"),
        ({"data__train__1__path": "more"}, None),
        ({"train__seed": 2}, "train.seed was 1 and is 2"),
        ({"train__gradient_accumulation_steps": 8}, "train.gradient_accumulation_steps was 4 and is 8"),
    ],
)
def test_what_changes_updates_is_refused_and_named(changes: dict[str, Any], line: str | None) -> None:
    if line is None:  # another source shows in the rows
        with pytest.raises(UserError, match="the rows of"):
            compare(rows="other", **changes)
        return
    with pytest.raises(UserError, match="the recipe is not the one") as raised:
        compare(**changes)
    assert raised.value.message.splitlines()[1:] == [f"  {line}"]
    assert raised.value.where == "checkpoint-3"


def test_evaluations_that_decide_may_not_move() -> None:
    deciding = {**SAVED, "recipe": {**SAVED["recipe"], "train.early_stopping_patience": 2}}
    now = {**deciding, "recipe": {**deciding["recipe"], "train.eval_steps": 9}}
    with pytest.raises(UserError, match=r"train\.eval_steps was 5 and is 9"):
        check_identity(deciding, now, Path("checkpoint-3"), Console())


def test_rows_and_weights_are_compared_themselves() -> None:
    with pytest.raises(UserError, match=r"the rows of data\.train and data\.eval are not those"):
        compare(rows="other")
    with pytest.raises(UserError, match="the base model's weights are not those"):
        compare(base="other")


def test_what_may_move_last_digits_is_said() -> None:
    said = compare(
        versions={"torch": "2.14.0"},
        train__per_device_train_batch_size=1,
        train__gradient_accumulation_steps=8,
    )
    assert "train.per_device_train_batch_size was 2 and is 1; the last digits may differ" in said
    assert "torch was 2.13.0 and is 2.14.0; the last digits may differ" in said


def test_every_key_named_is_a_key() -> None:
    known = {f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields}
    assert set(BATCH_KEYS) | FREE_KEYS | EVALUATION_KEYS <= known
