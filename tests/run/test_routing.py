"""Losses of routers in training, against plain transformers in fp64, and the account that a run keeps of routing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from torch.nn import functional
from transformers import AriaForConditionalGeneration
from transformers.models.aria.modeling_aria import AriaTextTopKRouter

from aria_finetune.data.chat import IGNORED
from aria_finetune.errors import UserError
from aria_finetune.material import Material, build_collator, prepare
from aria_finetune.model.lora import adapter_state
from aria_finetune.model.routing_losses import LossWeights
from aria_finetune.model.routing_watch import RoutingWatch
from aria_finetune.model.targets import linear_pattern, parameter_names
from aria_finetune.progress import ProgressReport
from aria_finetune.recipe import Recipe
from aria_finetune.run_folder import open_run_folder
from aria_finetune.tiny import CHECKPOINT
from aria_finetune.trainer import AriaTrainer
from aria_finetune.trainer.loader import real_tokens
from aria_finetune.training import build_model, build_trainer, dry_run, train

MakeRecipe = Callable[..., Recipe]
EXACT = ("model.experts=fp32", "model.dtype=float32")
ATTENTION = r"model\.language_model\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj)"
BALANCE, Z = 30.0, 0.1
"""Large, so that they make up much of the gradient."""
ROUNDING = 5e-6
"""Of the gradient of all of the tiny model in fp32 against fp64; that of the language loss alone is off by 2e-6."""
Gradients = dict[str, torch.Tensor]


@pytest.fixture
def begin(tmp_path: Path) -> Callable[[Recipe], tuple[AriaTrainer, Material]]:
    """A trainer whose adapters are not zero."""

    def make(recipe: Recipe) -> tuple[AriaTrainer, Material]:
        with open_run_folder(recipe.output_dir, overwrite=True) as run:
            material = prepare(recipe, tmp_path / "store")
            model, _ = build_model(recipe, run, material)
            generator = torch.Generator().manual_seed(7)
            for parameter in adapter_state(model).values():
                parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
            run.began = True
            return build_trainer(recipe, run, material, model, ProgressReport(run, Console(quiet=True))), material

    return make


def texts(material: Material) -> list[int]:
    """Eight rows without media."""
    rows = [row for row, plan in enumerate(material.train_rows.plans) if not plan.sights]
    return (rows * 8)[:8]


def ours(trainer: AriaTrainer, batches: list[dict[str, Any]]) -> tuple[Gradients, dict[str, float]]:
    """Gradients of an optimizer step, and what is logged of routing."""
    labels = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    trainer.model.train()
    trainer.model.zero_grad()
    for batch in batches:
        trainer.training_step(trainer.model, dict(batch), labels)
    gradients = {name: parameter.grad.double().clone() for name, parameter in adapter_state(trainer.model).items()}
    assert trainer._routing is not None
    return gradients, trainer._routing.take(1, lambda _: None)


class Reference:
    """Aria under PEFT in fp64, as its documentation would have it, without gradient checkpointing."""

    def __init__(self, adapters: Gradients) -> None:
        plain = AriaForConditionalGeneration.from_pretrained(
            CHECKPOINT, dtype=torch.float64, experts_implementation="eager"
        )
        config = LoraConfig(
            r=8,
            lora_alpha=32,
            lora_dropout=0.0,
            target_modules=linear_pattern(["attention"]),
            target_parameters=parameter_names(["router"]),
        )
        self.model: PeftModel = get_peft_model(plain, config).double()
        for name, parameter in adapter_state(self.model).items():
            parameter.data.copy_(adapters[name])

    def gradients(self, batches: list[dict[str, Any]], group: int) -> tuple[Gradients, list[float]]:
        """Of the language loss and the routers' losses as one sum; and the means of balance and z."""
        self.model.zero_grad()
        labels = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        means = torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            real_T = batch["attention_mask"].flatten().bool()
            with routed(self.model) as seen:
                logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss = (
                functional.cross_entropy(
                    logits[:, :-1].flatten(0, 1),
                    batch["labels"][:, 1:].flatten(),
                    ignore_index=IGNORED,
                    reduction="sum",
                )
                / labels
            )
            share = float(real_T.sum()) / tokens
            for logits_TE, index_TK in seen:
                balance, z = losses_by_hand(logits_TE[real_T], index_TK[real_T], group)
                loss = loss + share * (BALANCE * balance + Z * z)
                means += share * torch.stack([balance, z]).detach() / len(seen)
            loss.backward()
        return {name: p.grad.clone() for name, p in adapter_state(self.model).items()}, means.tolist()


@contextmanager
def routed(model: PeftModel) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Logits and choices of the routers, in the order of layers."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    routers = [module for module in model.modules() if isinstance(module, AriaTextTopKRouter)]
    hooks = [router.register_forward_hook(lambda _, __, out: seen.append((out[0], out[2]))) for router in routers]
    yield seen
    for hook in hooks:
        hook.remove()


def by_hand(trainer: AriaTrainer, batches: list[dict[str, Any]], group: int, *, layers: int | None = None) -> Gradients:
    """Gradients of our fp32 model with the losses of the first routers as a sum in fp64, written out behind its forward."""
    labels = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    tokens = sum(map(real_tokens, batches))
    trainer.model.gradient_checkpointing_disable()
    trainer.model.zero_grad()
    for batch in batches:
        real_T = batch["attention_mask"].flatten().bool() if "attention_mask" in batch else slice(None)
        with routed(trainer.model) as seen:
            loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=labels)
        for logits_TE, index_TK in seen[:layers]:
            balance, z = losses_by_hand(logits_TE.double()[real_T], index_TK[real_T], group)
            loss = loss + real_tokens(batch) / tokens * (BALANCE * balance + Z * z)
        loss.backward()
    assert trainer._routing is not None
    trainer._routing.take(0, lambda _: None)
    return {name: parameter.grad.double().clone() for name, parameter in adapter_state(trainer.model).items()}


def losses_by_hand(logits_TE: torch.Tensor, index_TK: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Balance and z in fp64."""
    tokens, experts = logits_TE.shape
    probability_TG = (logits_TE.exp() / logits_TE.exp().sum(-1, keepdim=True)).view(tokens, -1, group).sum(-1)
    shares = [float((index_TK // group == number).double().mean()) for number in range(experts // group)]
    balance = sum(
        (share * probability_TG[:, number].mean() for number, share in enumerate(shares)), torch.zeros(()).double()
    )
    return balance * len(shares), logits_TE.exp().sum(-1).log().square().mean()


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_losses_and_gradients_are_those_of_fp64(
    packing: bool, make_recipe: MakeRecipe, begin: Callable[..., tuple[AriaTrainer, Material]]
) -> None:
    recipe = make_recipe(*EXACT, f"moe.balance_loss={BALANCE}", f"moe.z_loss={Z}", f"data.packing={packing}")
    trainer, material = begin(recipe)
    rows = texts(material)
    collators = build_collator(recipe, material, packed=packing), build_collator(recipe, material)
    reference = Reference({name: value.double() for name, value in adapter_state(trainer.model).items()})
    assert trainer._routing is not None
    watch = trainer._routing.watch
    for accumulation in (1, 4, 8):
        size = len(rows) // accumulation
        cut = [[{"row": row} for row in rows[first : first + size]] for first in range(0, len(rows), size)]
        for group in (1, 8):
            watch.losses = LossWeights(0, 0, group)
            exact = by_hand(trainer, [collators[0](part) for part in cut], group)
            watch.losses = LossWeights(BALANCE, Z, group)
            due, means = reference.gradients([collators[1](part) for part in cut], group)
            for checkpointing in (True, False):
                if checkpointing:
                    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
                else:
                    trainer.model.gradient_checkpointing_disable()
                found, logged = ours(trainer, [collators[0](part) for part in cut])
                case = (accumulation, group, checkpointing)
                assert logged["balance_loss"] == pytest.approx(means[0], rel=1e-6), case
                assert logged["z_loss"] == pytest.approx(means[1], rel=1e-6), case
                assert off_by(found, exact) < 1e-6, case
                assert off_by(found, due) < ROUNDING, case
    watch.losses = LossWeights(0, 0, 8)
    without, _ = ours(trainer, [collators[0](part) for part in cut])
    assert off_by(without, due) > 0.5, "the routers' losses are no part of the gradient"


def off_by(found: Gradients, due: Gradients) -> float:
    """The norm of all differences over that of all gradients."""
    assert found.keys() == due.keys()
    difference = torch.stack([(found[name] - due[name]).norm() for name in due]).norm()
    return float(difference / torch.stack([value.norm() for value in due.values()]).norm())


def entries(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_run_keeps_an_account_by_step_and_layer(make_recipe: MakeRecipe) -> None:
    keys = ("moe.balance_loss=1e-2", "moe.balance_group=8", "train.max_steps=4", "train.logging_steps=2")
    folder = train(make_recipe(*EXACT, *keys), Console(quiet=True))
    lines = entries(folder, "routing.jsonl")
    assert [line["step"] for line in lines] == [2, 4]
    described = json.loads((folder / "run.json").read_text())
    assert sum(line["tokens"] for line in lines) == described["seen"]["tokens"]
    for line in lines:
        assert [sum(load) for load in line["load"]] == [line["tokens"] * 6] * 2, "six choices of every real token"
        assert all(len(load) == 64 for load in line["load"])
        assert all(0 < entropy <= 1 for entropy in line["entropy"])
        assert all(0 <= share <= 1 for share in line["changed"])
    # The first update changes routers that were those of the base until then.
    assert lines[0]["drift"][0] < lines[1]["drift"][0]
    logged = [entry for entry in entries(folder, "metrics.jsonl") if "loss" in entry]
    assert [entry["balance_loss"] for entry in logged] == [
        pytest.approx(sum(line["balance_loss"]) / 2) for line in lines
    ]
    assert {"z_loss", "expert_entropy", "dead_experts", "routing_changed", "router_drift"} <= logged[0].keys()
    assert (folder / "routing.png").read_bytes().startswith(b"\x89PNG")
    recipe = described["recipe"]["moe"]
    assert (recipe["balance_loss"], recipe["z_loss"]) == (0.01, 0.0)


def test_without_health_and_losses_there_is_no_account(make_recipe: MakeRecipe) -> None:
    folder = train(make_recipe("moe.health=false", "train.max_steps=1"), Console(quiet=True))
    assert not (folder / "routing.jsonl").exists()
    assert not (folder / "routing.png").exists()
    assert "expert_entropy" not in entries(folder, "metrics.jsonl")[0]


def test_without_health_the_losses_alone_are_logged(make_recipe: MakeRecipe) -> None:
    folder = train(make_recipe("moe.health=false", "moe.balance_loss=0.1", "train.max_steps=1"), Console(quiet=True))
    assert not (folder / "routing.jsonl").exists()
    assert not (folder / "routing.png").exists()
    logged = entries(folder, "metrics.jsonl")[0]
    assert logged["balance_loss"] > 0
    assert logged["z_loss"] > 0
    assert "expert_entropy" not in logged


def test_a_router_without_an_adapter_bends_nothing_before_it(
    make_recipe: MakeRecipe, begin: Callable[..., tuple[AriaTrainer, Material]]
) -> None:
    """The second layer is left out: its losses are logged, and the gradient is that of the first layer's by hand."""
    recipe = make_recipe(*EXACT, f"moe.balance_loss={BALANCE}", f"moe.z_loss={Z}", "lora.layers=[0]")
    trainer, material = begin(recipe)
    batch = build_collator(recipe, material, packed=True)([{"row": row} for row in texts(material)])
    found, logged = ours(trainer, [batch])
    assert trainer._routing is not None
    trainer._routing.watch.losses = LossWeights(0, 0, 8)
    due = by_hand(trainer, [batch], 8, layers=1)
    assert off_by(found, due) < 1e-6
    assert off_by(found, by_hand(trainer, [batch], 8)) > 1e-3, "the second layer's losses are nothing"
    with routed(trainer.model) as seen, torch.no_grad():
        trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=1)
    means = torch.tensor([losses_by_hand(logits_TE.double(), index_TK, 8) for logits_TE, index_TK in seen]).mean(0)
    assert [logged["balance_loss"], logged["z_loss"]] == pytest.approx(means.tolist(), rel=1e-6)


def test_looking_changes_no_bit(make_recipe: MakeRecipe) -> None:
    adapters = []
    for health in ("true", "false"):
        recipe = make_recipe(*EXACT, f"moe.health={health}", "train.max_steps=3", name=f"health-{health}")
        adapters.append((train(recipe, Console(quiet=True)) / "adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]


def test_the_language_loss_is_logged_apart(
    make_recipe: MakeRecipe, begin: Callable[..., tuple[AriaTrainer, Material]]
) -> None:
    recipe = make_recipe(*EXACT, "moe.balance_loss=10", "moe.z_loss=1")
    trainer, material = begin(recipe)
    batch = build_collator(recipe, material, packed=True)([{"row": row} for row in texts(material)])
    labels = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    trainer.model.train()
    with_losses = float(trainer.training_step(trainer.model, dict(batch), labels))
    RoutingWatch(trainer.model, LossWeights())
    assert float(trainer.training_step(trainer.model, dict(batch), labels)) == with_losses


def test_evaluation_neither_counts_nor_has_these_losses(make_recipe: MakeRecipe) -> None:
    keys = ("data.eval_fraction=0.3", "train.eval_steps=1", "train.max_steps=2", "moe.balance_loss=0.5")
    folder = train(make_recipe(*EXACT, *keys), Console(quiet=True))
    described = json.loads((folder / "run.json").read_text())
    assert sum(line["tokens"] for line in entries(folder, "routing.jsonl")) == described["seen"]["tokens"]


@pytest.mark.parametrize("keys", [("moe.balance_loss=0.1",), ("moe.z_loss=0.1", "moe.health=false"), ()])
def test_groups_that_do_not_divide_are_refused_before_weights_are_read(
    make_recipe: MakeRecipe, keys: tuple[str, ...]
) -> None:
    recipe = make_recipe(*keys, "moe.balance_group=7")
    with pytest.raises(UserError, match="64 experts can't be split into groups of 7") as raised:
        dry_run(recipe, Console(quiet=True))
    assert "moe.balance_group" in str(raised.value.where)
