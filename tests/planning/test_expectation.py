"""What a run says it expects, what it keeps of that, and when it is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from aria_finetune import planning, training
from aria_finetune.errors import UserError
from aria_finetune.material import prepare
from aria_finetune.memory import GIB
from aria_finetune.planning import Machine
from aria_finetune.recipe import Recipe, load_recipe
from aria_finetune.training import expect, train

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Recipe]:
    def make(*overrides: str) -> Recipe:
        file = tmp_path / "recipe.yaml"
        file.write_text(
            f"model: {{path: tiny, device: cpu}}\ndata: {{train: [{DATA}/chat.jsonl]}}\n"
            f"train: {{max_steps: 2, dataloader_num_workers: 0}}\noutput: {{dir: {tmp_path}/runs/one}}\n"
        )
        return load_recipe(file, overrides)

    return make


def test_a_run_keeps_its_plan_and_what_was_measured(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    said = io.StringIO()
    run = train(recipe_of(), Console(file=said, width=200))
    assert "expected: 0." in said.getvalue()
    kept = json.loads((run / "run.json").read_text())
    assert kept["plan"]["steps"] == kept["steps"] == 2
    assert kept["plan"]["phase"] in ("loss", "backward")
    assert 0.05 < kept["plan"]["peak_gib"] < 2
    assert 0 < kept["measured"]["peak_gib"] < 4, "little, where other tests of this process have run before"
    assert kept["measured"]["flops"] == kept["plan"]["flops"] > 0
    made = planning.make_plan(recipe_of(f"output.dir={tmp_path}/runs/two"), planning.choose_machine(recipe_of()))
    assert made.last is not None
    assert made.last.folder.resolve() == run.resolve()
    assert made.seconds == pytest.approx(kept["training_seconds"])


@pytest.mark.parametrize(("device", "refused"), [("cuda", True), ("cpu", False)])
def test_a_card_that_is_too_small_is_told_before_weights_are_read(
    device: str, refused: bool, recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "choose_machine", lambda _: Machine(device, "a small one", GIB // 100))  # type: ignore[arg-type]
    material, said = prepare(recipe_of(), tmp_path), io.StringIO()
    if refused:
        with pytest.raises(UserError, match=r"the run will not fit: .* of a small one"):
            expect(recipe_of(), material, Console(file=said))
    else:
        expect(recipe_of(), material, Console(file=said))
        assert "warning: that may not fit" in said.getvalue()
    expect(recipe_of(), material, Console(file=said), going_on=True)  # it fitted before


def test_rows_that_a_key_would_all_reject_save_nothing(recipe_of: Callable[..., Recipe]) -> None:
    made = planning.make_plan(recipe_of(), Machine("cuda", "a GPU", GIB))
    tighter = recipe_of("data.max_tokens=16")
    assert made.outlook.peak_of(tighter) == made.outlook.needed_bytes
    assert made.outlook.rows.pictures
