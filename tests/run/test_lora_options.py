"""What `lora` and `train` can change about adapters: each trains as defined, and stopped it goes on bit for bit."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from run_values import metrics, steady_metrics
from safetensors.torch import load_file
from stopping import stop_at
from transformers import AriaForConditionalGeneration

from aria_finetune.adapter.files import hub_name
from aria_finetune.adapter.merge import merge
from aria_finetune.checkpoint.retention import checkpoints
from aria_finetune.errors import UserError
from aria_finetune.evaluation import EvaluationOptions, evaluate
from aria_finetune.material import build_collator, load_base, prepare
from aria_finetune.model.lora import adapter_state, load_adapter, saved_names
from aria_finetune.model.vision import as_encoder_outputs, image_features, normalise
from aria_finetune.progress import ProgressReport
from aria_finetune.quantization import quantize
from aria_finetune.recipe import Recipe
from aria_finetune.run_folder import open_run_folder
from aria_finetune.trainer import AriaTrainer
from aria_finetune.training import build_model, build_trainer, dry_run, train

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"
MakeRecipe = Callable[..., Recipe]
EXACT = ("model.experts=fp32", "model.dtype=float32")
SHORT = ("train.max_steps=4", "train.save_strategy=steps", "train.save_steps=4", "lora.dropout=0.1")
LORAPLUS = "lora.loraplus_lr_ratio=16"
NEFTUNE = "train.neftune_noise_alpha=5"
DORA = ("lora.dora=true", "lora.targets=[attention, shared_experts]")
OPTIONS = {
    "LoRA+": (LORAPLUS,),
    "LoRA+, fused": (LORAPLUS, "train.optim=adamw_torch_fused"),
    "LoRA+, 8 bit": (LORAPLUS, "train.optim=adamw_8bit"),
    "LoRA+, paged": (LORAPLUS, "train.optim=paged_adamw_8bit"),
    "LoftQ": ("lora.init=loftq",),
    "LoftQ, rank-stabilised": ("lora.init=loftq", "lora.rslora=true"),
    "NEFTune": (NEFTUNE,),
    "DoRA": DORA,
    "DoRA, LoRA+": (*DORA, LORAPLUS),
    "projector": ("lora.targets=[projector]",),
    "vision": ("lora.targets=[vision]", "train.gradient_checkpointing=false"),
    "DoRA, all that sees": ("lora.targets=[attention, projector, vision]", "lora.dora=true"),
    "rank-stabilised": ("lora.rslora=true", "lora.rank=16"),
}
TOGETHER = {
    "DoRA, all that sees, LoRA+, rank-stabilised": (*OPTIONS["DoRA, all that sees"], LORAPLUS, "lora.rslora=true"),
    "LoftQ, rank-stabilised, LoRA+, 8 bit": (*OPTIONS["LoftQ, rank-stabilised"], *OPTIONS["LoRA+, 8 bit"]),
    "LoRA+, fused, NEFTune": (*OPTIONS["LoRA+, fused"], NEFTUNE),
    "LoRA+, paged": OPTIONS["LoRA+, paged"],
}
"""The same options in fewer runs."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Resume with every option alone under `--soak`, else with several at once."""
    if "resumed" in metafunc.fixturenames:
        cases = OPTIONS if metafunc.config.getoption("--soak") else TOGETHER
        metafunc.parametrize("resumed", cases.values(), ids=list(cases))


def begin(recipe: Recipe, store: Path) -> AriaTrainer:
    """A trainer that has not begun."""
    with open_run_folder(recipe.output_dir, overwrite=True) as run:
        material = prepare(recipe, store)
        model, _ = build_model(recipe, run, material)
        run.began = True
        return build_trainer(recipe, run, material, model, ProgressReport(run, Console(quiet=True)))


def test_a_stopped_run_goes_on_bit_for_bit(
    resumed: tuple[str, ...], make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*SHORT, *resumed)
    whole = train(make_recipe(*keys, name="whole"), Console(quiet=True))
    recipe = make_recipe(*keys, name="stopped")
    stop_at(monkeypatch, recipe, 3)
    assert list(checkpoints(recipe.output_dir)) == [2]
    run = train(recipe, Console(file=io.StringIO()), resume=True)
    shutil.rmtree(run / "checkpoint-2")  # the signal's own
    assert steady_metrics(run) == steady_metrics(whole)
    for file in ("adapter/adapter_model.safetensors", "checkpoint-4/training_state.safetensors"):
        one, other = load_file(run / file), load_file(whole / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items()), file


ADAPTERS = {
    name: OPTIONS[name]
    for name in ("rank-stabilised", "DoRA", "DoRA, LoRA+", "projector", "vision", "DoRA, all that sees")
}
"""Those that change what an adapter is, and not only how it learns."""


@pytest.mark.parametrize("option", ADAPTERS)
def test_saved_reloaded_and_merged_it_says_what_was_trained(
    option: str, make_recipe: MakeRecipe, fp32_folder: Path, tmp_path: Path
) -> None:
    """On an fp32 base, pictures included: ours loaded again to the bit, plain PEFT and the merged weights within 1e-5."""
    keys = (*EXACT, f"model.path={fp32_folder}", "train.max_steps=3", "train.learning_rate=1e-2", "lora.dropout=0.1")
    recipe = make_recipe(*keys, *ADAPTERS[option])
    trainer = begin(recipe, tmp_path / "store")
    trainer.train()
    trainer.write_adapter(tmp_path / "adapter")
    material = prepare(recipe, tmp_path / "store")
    collator = build_collator(recipe, material)
    batches = [collator([{"row": row}]) for row in (0, 4, 6)]
    assert sum("tile_order" in batch for batch in batches) == 2

    trained = [ours(trainer.model, batch) for batch in batches]
    again = load_adapter(load_base(recipe).model, str(tmp_path / "adapter"))
    assert all(torch.equal(ours(again, batch), logits) for batch, logits in zip(batches, trained, strict=True))

    plain = AriaForConditionalGeneration.from_pretrained(fp32_folder, dtype=torch.float32).eval()
    without = [theirs(plain, batch) for batch in batches]
    live = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    together = [theirs(live, batch) for batch in batches]
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = AriaForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    alone = [theirs(merged, batch) for batch in batches]
    changed = []
    for one, other, folded, base in zip(trained, together, alone, without, strict=True):
        scale = float(one.abs().max())
        assert (one - other).abs().max() < 1e-5 * scale
        assert (folded - other).abs().max() < 1e-5 * scale
        changed.append(float((one - base).abs().max()) / scale)
    seen = [number for number, batch in enumerate(batches) if "tile_order" in batch]
    assert all(changed[number] > 1e-2 for number in seen), "the adapter does nothing"
    if "sees" not in option and option not in ("projector", "vision"):
        assert min(changed) > 1e-2, "nor does it on text"


@pytest.mark.parametrize("option", ["LoftQ", "LoftQ, rank-stabilised"])
def test_loftq_is_saved_reloaded_on_nf4_and_merged_into_the_original_weights(
    option: str, make_recipe: MakeRecipe, fp32_folder: Path, tmp_path: Path
) -> None:
    keys = ("model.dtype=float32", f"model.path={fp32_folder}", "train.max_steps=3", "train.learning_rate=1e-2")
    recipe = make_recipe(*keys, *OPTIONS[option])
    trainer = begin(recipe, tmp_path / "store")
    start = {name: tensor.clone() for name, tensor in saved_names(trainer.model).items()}
    trainer.train()
    trainer.write_adapter(tmp_path / "adapter")
    material = prepare(recipe, tmp_path / "store")
    batch = build_collator(recipe, material)([{"row": 0}])

    # On the NF4 base: to the bit what was trained.
    again = load_adapter(load_base(recipe).model, str(tmp_path / "adapter"))
    assert torch.equal(ours(again, batch), ours(trainer.model, batch))
    # On the original weights: what was learned since the start, in plain PEFT and merged.
    plain = AriaForConditionalGeneration.from_pretrained(fp32_folder, dtype=torch.float32).eval()
    live = theirs(PeftModel.from_pretrained(plain, tmp_path / "adapter").eval(), batch)
    merge(tmp_path / "adapter", tmp_path / "merged")
    folded = theirs(
        AriaForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval(), batch
    )
    assert (folded - live).abs().max() < 1e-5 * float(live.abs().max())
    before, after = (load_file(folder / "model.safetensors") for folder in (fp32_folder, tmp_path / "merged"))
    scaling = 32 / (8**0.5 if recipe.lora.rslora else 8)
    now = saved_names(trainer.model)
    for name in (name for name in now if ".lora_A." in name):
        a, b, a_start, b_start = (
            each[key].detach().double() for each in (now, start) for key in (name, name.replace("lora_A", "lora_B"))
        )
        change = scaling * (b @ a - b_start @ a_start)
        hub = hub_name(name.removesuffix(".lora_A.weight"))
        assert change.abs().max() > 1e-3
        assert (after[hub].double() - before[hub].double() - change).abs().max() < 1e-6, hub


def ours(model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits as the trainer computes them."""
    model.eval()
    with torch.no_grad():
        features = image_features(model.get_base_model(), batch)
        pictures = {} if features is None else {"mm_encoder_outputs": as_encoder_outputs(features)}
        logits: torch.Tensor = model(input_ids=batch["input_ids"], **pictures).logits
    return logits


def theirs(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of plain transformers, from pixels with padding and its mask; a row has tiles of one size, in their order."""
    pictures = {}
    if "tile_order" in batch:
        assert batch["tile_order"].tolist() == list(range(len(batch["tile_order"])))
        mask = torch.zeros(len(batch["extents_490"]), 490, 490, dtype=torch.bool)
        for tile, (height, width) in zip(mask, batch["extents_490"].tolist(), strict=True):
            tile[:height, :width] = True
        pictures = {"pixel_values": normalise(batch["pixels_490"], torch.float32), "pixel_mask": mask}
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=batch["input_ids"], **pictures).logits
    return logits


def test_loftq_needs_the_weights_that_were_packed(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    quantize("tiny", tmp_path / "nf4")
    with pytest.raises(UserError, match="this checkpoint has the packed weights alone") as caught:
        dry_run(make_recipe(f"model.path={tmp_path / 'nf4'}", "lora.init=loftq"), Console(quiet=True))
    assert "name the original weights as model.path" in str(caught.value.fix)


class TestSeeing:
    def test_packed_or_alone_it_is_the_same_update(self, make_recipe: MakeRecipe) -> None:
        keys = (*EXACT, "lora.targets=[attention, projector, vision]", "train.max_steps=2", "train.learning_rate=5e-5")
        runs = [
            train(make_recipe(*keys, f"data.packing={packing}", name=packing), Console(quiet=True))
            for packing in ("true", "false")
        ]
        one, other = (load_file(run / "adapter/adapter_model.safetensors") for run in runs)
        assert any("vision_tower" in name for name in one)
        for name, tensor in one.items():
            assert (tensor - other[name]).abs().max() < 1e-6, name

    def test_a_micro_batch_of_text_alone_teaches_the_tower_nothing(self, make_recipe: MakeRecipe) -> None:
        keys = (
            "lora.targets=[projector]",
            "data.packing=false",
            "train.gradient_checkpointing=false",
            "train.max_steps=6",
        )
        alone = ("train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=1", "train.warmup_ratio=0")
        sources = f"data.train=[{{path: {DATA}/chat.jsonl}}, {{path: {DATA}/warmth-train.jsonl, weight: 0.01}}]"
        logged = metrics(train(make_recipe(*keys, *alone, sources), Console(quiet=True)))
        norms = [entry["grad_norm"] for entry in logged if "loss" in entry]
        assert len(norms) == 6
        assert 0 < sum(norm == 0 for norm in norms) < 6

    def test_a_checkpoint_before_the_first_picture_is_saved(self, make_recipe: MakeRecipe) -> None:
        """Adapters of the tower have not changed by then, and that is no fault."""
        keys = ("lora.targets=[attention, vision]", "data.packing=false", "train.max_steps=6", "train.warmup_ratio=0")
        alone = ("train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=1")
        saves = ("train.save_strategy=steps", "train.save_steps=1", "train.seed=1")
        sources = f"data.train=[{{path: {DATA}/chat.jsonl}}, {{path: {DATA}/warmth-train.jsonl, weight: 0.01}}]"
        run = train(make_recipe(*keys, *alone, *saves, sources), Console(quiet=True))
        shown = [entry["images_per_second"] for entry in metrics(run) if "loss" in entry]
        assert shown[0] == 0 < max(shown), "the first row has a picture, or none has"

    @pytest.mark.parametrize("target", ["projector", "vision"])
    def test_without_a_picture_there_is_nothing_to_learn_from(
        self, make_recipe: MakeRecipe, target: str, tmp_path: Path
    ) -> None:
        turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
        (tmp_path / "text.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
        recipe = make_recipe(f"lora.targets=[attention, {target}]", f"data.train=[{{path: {tmp_path}/text.jsonl}}]")
        with pytest.raises(UserError, match=f"lora.targets has {target}, and no training row has a picture"):
            dry_run(recipe, Console(quiet=True))

    def test_evaluation_sees_with_the_adapter(self, make_recipe: MakeRecipe, tmp_path: Path) -> None:
        keys = ("lora.targets=[vision]", "train.max_steps=3", "train.learning_rate=1e-2", "data.eval_fraction=0.2")
        recipe = make_recipe(*keys)
        run = train(recipe, Console(quiet=True))
        said = Console(file=io.StringIO())
        report = evaluate(
            recipe, tmp_path / "scores", EvaluationOptions(adapter=run / "adapter", max_new_tokens=4), said
        )
        assert {"base", "adapter"} <= set(report)


class TestLoraPlus:
    def test_updates_are_those_of_adam_with_two_learning_rates(self, make_recipe: MakeRecipe, tmp_path: Path) -> None:
        """In fp64 by hand (arXiv 1711.05101, algorithm 2), from the gradients that the run had."""
        keys = ("train.max_steps=4", "train.warmup_ratio=0", "train.weight_decay=0.1", "train.max_grad_norm=0")
        trainer = begin(make_recipe(*EXACT, *keys, LORAPLUS), tmp_path / "store")
        start = {name: tensor.detach().double() for name, tensor in adapter_state(trainer.model).items()}
        gradients: list[dict[str, torch.Tensor]] = []
        rates: list[float] = []

        def look(*_: Any) -> None:
            state = adapter_state(trainer.model)
            gradients.append({name: tensor.grad.double().clone() for name, tensor in state.items()})
            rates.append(trainer._get_learning_rate())

        trainer.create_optimizer()
        trainer.optimizer.register_step_pre_hook(look)
        trainer.train()
        assert len(rates) == 4
        assert rates[0] == 1e-3, "what is logged is the rate of A"
        assert rates[-1] < 5e-4, "and follows the schedule"
        for name, tensor in adapter_state(trainer.model).items():
            ratio = 16 if ".lora_B." in name else 1
            due = by_hand(
                start[name], [(each[name], ratio * rate) for each, rate in zip(gradients, rates, strict=True)]
            )
            moved = (due - start[name]).abs().max()
            assert moved > 1e-4
            assert (tensor.detach().double() - due).abs().max() < 1e-4 * moved, name


def by_hand(weight: torch.Tensor, steps: list[tuple[torch.Tensor, float]]) -> torch.Tensor:
    """AdamW with the betas, epsilon and decay of the recipe."""
    first = second = torch.zeros_like(weight)
    for number, (gradient, rate) in enumerate(steps, 1):
        weight = weight * (1 - rate * 0.1)
        first = 0.9 * first + 0.1 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        weight = weight - rate * (first / (1 - 0.9**number)) / ((second / (1 - 0.95**number)).sqrt() + 1e-8)
    return weight


class TestDora:
    def test_magnitudes_are_not_pulled_to_zero(self, make_recipe: MakeRecipe, tmp_path: Path) -> None:
        trainer = begin(make_recipe(*DORA), tmp_path / "store")
        without = {
            id(parameter)
            for group in trainer.create_optimizer().param_groups
            if not group["weight_decay"]
            for parameter in group["params"]
        }
        magnitudes = {id(p) for name, p in trainer.model.named_parameters() if "lora_magnitude_vector" in name}
        assert without == magnitudes
        assert len(magnitudes) == 2 * 7


class TestNeftune:
    def losses(self, recipe: Recipe) -> list[float]:
        return [entry["loss"] for entry in metrics(train(recipe, Console(quiet=True))) if "loss" in entry]

    def test_packing_batches_and_workers_change_nothing_but_rounding(self, make_recipe: MakeRecipe) -> None:
        keys = (*EXACT, NEFTUNE, "train.max_steps=3")
        ways = {
            "packed": (),
            "padded": ("data.packing=false",),
            "alone": (
                "data.packing=false",
                "train.per_device_train_batch_size=1",
                "train.gradient_accumulation_steps=4",
            ),
            "workers": ("train.dataloader_num_workers=2",),
        }
        found = {way: self.losses(make_recipe(*keys, *more, name=way)) for way, more in ways.items()}
        assert found["packed"] == found["workers"]
        assert found["packed"] == pytest.approx(found["padded"], rel=1e-6)
        assert found["packed"] == pytest.approx(found["alone"], rel=1e-6)
        without = self.losses(make_recipe(*EXACT, "train.max_steps=3", name="without"))
        assert all(abs(one - other) > 1e-5 * one for one, other in zip(found["packed"], without, strict=True))

    def test_it_differs_by_seed_and_epoch(self, make_recipe: MakeRecipe) -> None:
        """Of two epochs over the same rows, with a learning rate too small to tell."""
        keys = (
            *EXACT,
            NEFTUNE,
            "data.train=[{path: DATA/chat.jsonl}]",
            "train.max_steps=4",
            "train.learning_rate=1e-7",
        )
        chat = [key.replace("DATA", str(DATA)) for key in keys]
        batch = ("train.per_device_train_batch_size=5", "train.gradient_accumulation_steps=1")
        losses = self.losses(make_recipe(*chat, *batch))
        assert len(set(losses)) == 4
        without = self.losses(make_recipe(*chat, *batch, "train.neftune_noise_alpha=null", name="without"))
        assert max(without) - min(without) < 0.1 * (max(losses) - min(losses))

    def test_evaluation_has_none(self, make_recipe: MakeRecipe) -> None:
        """The base model is evaluated before an update that matters."""
        keys = (
            *EXACT,
            "data.eval_fraction=0.3",
            "train.eval_steps=1",
            "train.max_steps=1",
            "train.learning_rate=1e-12",
        )
        found = [
            next(
                entry["eval_loss"]
                for entry in metrics(train(make_recipe(*keys, key, name=name), Console(quiet=True)))
                if "eval_loss" in entry
            )
            for key, name in ((NEFTUNE, "with"), ("train.neftune_noise_alpha=null", "without"))
        ]
        assert found[0] == pytest.approx(found[1], rel=1e-7)
