"""Checks between keys of a recipe: what each allows alone but not together. Knows the schema only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aria_finetune.recipe.schema import Recipe

Key = tuple[str, str]
"""Section and key."""

BARE_TARGETS = ("router", "experts")
"""Targets whose weights are no linears but bare parameters."""
SEEING_TARGETS = ("projector", "vision")
"""Targets that image features come from."""
_EVAL_DATA: tuple[Key, ...] = (("data", "eval"), ("data", "eval_fraction"))
_ADD_EVAL_DATA = "add data.eval or data.eval_fraction"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Keys that contradict each other; `key` is the one to point at, `reads` all that were looked at."""

    key: Key
    message: str
    reads: tuple[Key, ...]


def conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Every contradiction of a recipe whose keys are valid one by one."""
    yield from _precision(recipe)
    yield from _small_cards(recipe)
    yield from _adapters(recipe)
    yield from _routing(recipe)
    yield from _evaluation(recipe)
    yield from _best_model(recipe)


def _precision(recipe: Recipe) -> Iterator[Conflict]:
    wanted = {"fp32": "float32", "bf16": "bfloat16"}.get(recipe.model.experts)
    if wanted and recipe.model.compute_dtype != wanted:
        yield Conflict(
            ("model", "dtype"),
            f"{recipe.model.dtype} does not go with model.experts: {recipe.model.experts}; "
            f"write {wanted}, or leave dtype out",
            reads=(("model", "dtype"), ("model", "experts")),
        )


def _small_cards(recipe: Recipe) -> Iterator[Conflict]:
    if recipe.model.lm_head == "nf4" and recipe.model.experts != "nf4":
        yield Conflict(
            ("model", "lm_head"),
            f"nf4 needs model.experts: nf4, and it is {recipe.model.experts}; leave lm_head out",
            reads=(("model", "lm_head"), ("model", "experts")),
        )
    if recipe.train.activation_offloading and not recipe.train.gradient_checkpointing:
        yield Conflict(
            ("train", "activation_offloading"),
            "offloads what gradient checkpointing keeps; set train.gradient_checkpointing to true",
            reads=(("train", "activation_offloading"), ("train", "gradient_checkpointing")),
        )
    yield from _experts(recipe)


def _experts(recipe: Recipe) -> Iterator[Conflict]:
    moe = recipe.moe
    if "experts" in recipe.lora.targets and moe.implementation in ("eager", "grouped_mm"):
        yield Conflict(
            ("moe", "implementation"),
            f"{moe.implementation} knows experts as whole weights alone, and W + delta of a layer's experts, which experts in "
            "lora.targets would ask for, is as large as the layer; write grouped or lean, or leave implementation out",
            reads=(("moe", "implementation"), ("lora", "targets")),
        )
    if moe.experts_at_a_time is not None and moe.implementation not in ("auto", "grouped"):
        yield Conflict(
            ("moe", "experts_at_a_time"),
            f"only grouped computes some experts at a time, and moe.implementation is {moe.implementation}; leave one out",
            reads=(("moe", "experts_at_a_time"), ("moe", "implementation")),
        )
    if moe.experts_on != "host":
        return
    if recipe.model.experts != "nf4":
        yield Conflict(
            ("moe", "experts_on"),
            f"host needs model.experts: nf4, and it is {recipe.model.experts}; leave experts_on out",
            reads=(("moe", "experts_on"), ("model", "experts")),
        )
    if moe.implementation in ("eager", "grouped_mm"):
        yield Conflict(
            ("moe", "implementation"),
            f"{moe.implementation} takes all experts of a layer at once, which moe.experts_on: host keeps off the "
            "device; write grouped or lean, or leave implementation out",
            reads=(("moe", "implementation"), ("moe", "experts_on")),
        )


def _adapters(recipe: Recipe) -> Iterator[Conflict]:
    bare = [target for target in recipe.lora.targets if target in BARE_TARGETS]
    if recipe.lora.dora and bare:
        left = [target for target in recipe.lora.targets if target not in BARE_TARGETS]
        yield Conflict(
            ("lora", "dora"),
            f"scales the rows of linears, and PEFT has no DoRA for the bare weights of {', '.join(bare)}; "
            f"write lora.targets: [{', '.join(left) or 'attention'}], or leave dora out",
            reads=(("lora", "dora"), ("lora", "targets")),
        )

    seeing = [target for target in recipe.lora.targets if target in SEEING_TARGETS]
    if seeing and recipe.data.cache_image_features is not False:
        yield Conflict(
            ("data", "cache_image_features"),
            f"keeps what frozen parts make of pictures, and {' and '.join(seeing)} in lora.targets changes it with every update; "
            "leave one of them out",
            reads=(("data", "cache_image_features"), ("lora", "targets")),
        )
    if recipe.lora.layers is not None and len(seeing) == len(recipe.lora.targets):
        yield Conflict(
            ("lora", "layers"),
            f"names layers of the decoder, and {' and '.join(seeing)} in lora.targets {'is' if len(seeing) == 1 else 'are'} not in it; "
            "leave layers out, or add a target of the decoder",
            reads=(("lora", "layers"), ("lora", "targets")),
        )
    if recipe.lora.init == "loftq":
        yield from _loftq(recipe)


def _loftq(recipe: Recipe) -> Iterator[Conflict]:
    """What is packed must be adapted, and the start be such that it can be taken back."""
    key: Key = ("lora", "init")
    targets = recipe.lora.targets
    if recipe.model.experts != "nf4":
        yield Conflict(
            key,
            f"loftq makes up for what packing lost, and model.experts is {recipe.model.experts}; leave init out",
            reads=(key, ("model", "experts")),
        )
    if recipe.lora.dora:
        yield Conflict(
            key,
            "loftq takes its start back where the adapter meets the original weights, which DoRA's magnitudes would not "
            "survive; leave out init or dora",
            reads=(key, ("lora", "dora")),
        )
    if "experts" in targets or not {"attention", "shared_experts"} & set(targets):
        yield Conflict(
            key,
            "loftq starts from the packed linears of attention and shared_experts; "
            "write lora.targets with one of them and without experts, or leave init out",
            reads=(key, ("lora", "targets")),
        )


def _routing(recipe: Recipe) -> Iterator[Conflict]:
    """The losses of a router that is not trained would only bend what lies before it."""
    if "router" in recipe.lora.targets:
        return
    for key in ("balance_loss", "z_loss"):
        if getattr(recipe.moe, key):
            yield Conflict(
                ("moe", key),
                "is a loss of the router, which lora.targets leaves out; add router there, or leave it out here",
                reads=(("moe", key), ("lora", "targets")),
            )


def _evaluation(recipe: Recipe) -> Iterator[Conflict]:
    if recipe.data.eval and recipe.data.eval_fraction is not None:
        yield Conflict(("data", "eval_fraction"), "can't stand beside data.eval; keep one of the two", reads=_EVAL_DATA)
    if recipe.train.eval_strategy in ("steps", "epoch") and not recipe.data.has_eval:
        yield Conflict(
            ("train", "eval_strategy"),
            f"there is nothing to evaluate on; {_ADD_EVAL_DATA}, or leave eval_strategy out",
            reads=(("train", "eval_strategy"), *_EVAL_DATA),
        )


def _best_model(recipe: Recipe) -> Iterator[Conflict]:
    """The best checkpoint is known only where an evaluation stands beside every save."""
    train = recipe.train
    key: Key = ("train", "load_best_model_at_end")
    schedule: tuple[Key, ...] = (("train", "save_strategy"), ("train", "eval_strategy"), *_EVAL_DATA)
    intervals: tuple[Key, ...] = (("train", "save_steps"), ("train", "eval_steps"))
    if train.early_stopping_patience is not None:
        yield from _needs_evaluation(recipe, ("train", "early_stopping_patience"))
    if train.evaluate_generation:
        yield from _needs_evaluation(recipe, ("train", "evaluate_generation"))
    if not train.load_best_model_at_end:
        return
    yield from _needs_evaluation(recipe, key)
    if recipe.eval_strategy not in ("no", train.save_strategy):
        yield Conflict(
            key,
            f"needs evaluations and saves at the same time; set train.save_strategy to {recipe.eval_strategy} "
            f"as train.eval_strategy is",
            reads=(key, *schedule),
        )
    elif recipe.eval_strategy == "steps" and train.save_steps % recipe.eval_steps:
        yield Conflict(
            key,
            f"needs an evaluation at every save; make train.save_steps ({train.save_steps}) "
            f"a multiple of train.eval_steps ({recipe.eval_steps})",
            reads=(key, *schedule, *intervals),
        )


def _needs_evaluation(recipe: Recipe, key: Key) -> Iterator[Conflict]:
    reads = (key, ("train", "eval_strategy"), *_EVAL_DATA)
    if not recipe.data.has_eval:
        yield Conflict(key, f"needs data to evaluate on; {_ADD_EVAL_DATA}", reads)
    elif recipe.eval_strategy == "no":
        yield Conflict(key, "needs evaluations; set train.eval_strategy to steps or epoch", reads)
