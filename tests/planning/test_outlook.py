"""What a plan says of a recipe on real rows: against what training counts, and as keys change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aria_finetune.errors import UserError
from aria_finetune.material import prepare
from aria_finetune.memory import GIB
from aria_finetune.model.loading import load_model
from aria_finetune.model.vision import TILES_AT_A_TIME
from aria_finetune.planner import step
from aria_finetune.planner.step import Batch
from aria_finetune.planning import Machine, Plan, choose_machine, make_plan, refuse_unfit
from aria_finetune.planning.past import PastRun
from aria_finetune.planning.setup import largest_batch
from aria_finetune.recipe import Recipe, load_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
GPU = Machine("cuda", "a GPU", 24 * GIB, 165e12)


@pytest.fixture(scope="module")
def recipe_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recipe]:
    runs = tmp_path_factory.mktemp("runs")
    return lambda *overrides: load_recipe(RECIPE, [f"output.dir={runs / 'run'}", *overrides])


@pytest.fixture(scope="module")
def plan(recipe_of: Callable[..., Recipe]) -> Plan:
    return make_plan(recipe_of(), GPU)


def test_rows_tokens_and_pictures_are_those_of_training(
    plan: Plan, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    material = prepare(recipe_of(), tmp_path)
    rows = plan.outlook.rows
    assert rows.training.counts() == material.train_rows.counts()
    assert rows.evaluation.counts() == material.eval_rows.counts()
    found = plan.as_dict()["rows"]["tokens"]
    assert found["most"] == max(row.tokens for row in material.train_rows.plans)
    assert sum(part["rows"] for part in plan.as_dict()["rows"]["histogram"]) == len(material.train_rows.plans)


def test_the_byte_table_is_that_of_the_loaded_model(plan: Plan) -> None:
    loaded = {part.name: part.bytes for part in load_model("tiny", implementation="eager").components}
    assert plan.as_dict()["bytes"] == loaded


def test_it_is_plain_json(plan: Plan) -> None:
    said = json.loads(json.dumps(plan.as_dict(), allow_nan=False))
    assert said["fits"] is True
    assert said["peak"]["bytes"] == max(phase["bytes"] for phase in said["phases"])
    assert all(sum(phase["parts"].values()) == phase["bytes"] for phase in said["phases"])
    assert {knob["setting"].partition("=")[0] for knob in said["knobs"]} >= {"data.max_tokens", "model.lm_head"}


def test_knobs_save_what_the_changed_recipe_takes_less(plan: Plan, recipe_of: Callable[..., Recipe]) -> None:
    checked = 0
    for saving in plan.savings:
        changed = make_plan(recipe_of(*saving.knob.setting.split()), GPU).outlook.peak.bytes
        assert saving.bytes == plan.outlook.peak.bytes - changed, saving.knob.setting
        checked += saving.bytes > 0
    assert checked >= 3


def test_the_longest_row_is_the_last_that_fits(plan: Plan) -> None:
    small = replace(plan.outlook, machine=Machine("cuda", "small", 600 * 2**20))
    longest = small.longest_row()
    peaks = [small.setup.peak(Batch(1, tokens, tokens)).bytes for tokens in (longest, longest + 1)]
    assert peaks[0] <= small.machine.memory < peaks[1]
    assert replace(small, machine=Machine("cuda", "none", 2**20)).longest_row() == 0


def test_what_does_not_fit_is_refused_with_the_keys_that_change_it(plan: Plan) -> None:
    peak = plan.outlook.peak.bytes
    least = peak - sum(max(saving.bytes, 0) for saving in plan.savings[:1])
    with pytest.raises(UserError, match="will not fit") as raised:
        refuse_unfit(replace(plan.outlook, machine=Machine("cuda", "small", least)))
    assert "train.per_device_train_batch_size=1" in str(raised.value)
    with pytest.raises(UserError, match="use a larger card"):
        refuse_unfit(replace(plan.outlook, machine=Machine("cuda", "none", 2**20)))
    refuse_unfit(replace(plan.outlook, machine=Machine("cuda", "close", int(peak / 1.05))), tolerance=0.1)


def test_work_is_that_of_all_epochs(plan: Plan, recipe_of: Callable[..., Recipe]) -> None:
    once, twice = (replace(plan.outlook, recipe=recipe_of(f"train.num_train_epochs={epochs}")) for epochs in (1, 2))
    assert twice.work.total == pytest.approx(2 * once.work.total)
    assert replace(plan.outlook, recipe=recipe_of("train.max_steps=1")).work.total < plan.outlook.work.total / 10


def test_time_follows_the_card_or_the_last_run(plan: Plan) -> None:
    seconds = plan.outlook.seconds()
    assert seconds == pytest.approx(plan.outlook.work.total / (0.3 * 165e12))
    last = PastRun(Path("runs/one"), "a GPU", 25, 1.0, 0.9, flops=1e12, seconds=10, planned_seconds=None)
    assert plan.outlook.seconds(last) == pytest.approx(plan.outlook.work.total / 1e11)
    assert replace(plan.outlook, machine=Machine("cuda", "unknown", GIB)).seconds() is None


def test_the_largest_micro_batch_has_the_most_of_everything(plan: Plan) -> None:
    plans = plan.outlook.rows.training.plans
    batch = largest_batch(plans, 3)
    assert batch.tokens == max(row.tokens for row in plans)
    assert batch.labels == 3 * max(row.labels for row in plans)
    assert batch.positions == 3 * batch.tokens
    assert set(batch.tiles) == {sight.tile for row in plans for sight in row.sights}


@pytest.mark.parametrize(
    ("options", "due"),
    [
        ({"gpu_memory": 24.0}, Machine("cuda", "a GPU with 24 GiB", 24 * GIB)),
        ({"card": "4090"}, Machine("cuda", "RTX 4090", int(23.5 * GIB), 165e12)),
        ({"card": "h100", "gpu_memory": 40.0}, Machine("cuda", "H100", 40 * GIB, 989e12)),
    ],
)
def test_cards_that_are_not_there(
    options: dict[str, float | str], due: Machine, recipe_of: Callable[..., Recipe]
) -> None:
    assert choose_machine(recipe_of(), **options) == due  # type: ignore[arg-type]


def test_this_machine(recipe_of: Callable[..., Recipe]) -> None:
    machine = choose_machine(recipe_of("model.device=cpu"))
    assert (machine.device, machine.name) == ("cpu", "cpu")
    assert machine.memory > GIB
    assert machine.flops_per_second is not None
    assert machine.flops_per_second > 1e8


def test_tiles_at_a_time_are_those_of_the_vision_tower() -> None:
    assert step.TILES_AT_A_TIME == TILES_AT_A_TIME
