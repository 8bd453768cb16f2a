"""Train a few steps of Aria at its real size, with random NF4 weights made in memory on the device.

    python benchmarks/full_size.py --layers 28 --tokens 32 --images 1 --device cpu --json

Nothing is read from a disk and nothing of 16 bit is made that a run would not hold. The steps are those of the project's own
trainer: the vision tower without gradient, NF4 experts, gradient checkpointing, labels scored by slices of the lm_head,
clipping, AdamW on fp32 adapters. Each row has `--tokens` text tokens, all of them in the loss but the first, and the images
before them, 490 px and 128 tokens each, as pixels or, with `--features`, as what the tower would make of them. Memory on a CPU is what no file backs, on a GPU what is allocated; both above the
process with everything imported. Exit code 1 if a loss is not finite or, from the second step on, an adapter has no gradient: in the first one B is
still zero, and so is the gradient of A.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from aria_finetune.libraries import prepare_libraries

prepare_libraries()

import meters  # noqa: E402
import ours  # noqa: E402
import torch  # noqa: E402
from random_aria import FIRST_TEXT_ID, TEXT_IDS, VOCABULARY, aria_config  # noqa: E402
from transformers import AriaConfig, PrinterCallback, TrainerCallback, TrainerState, TrainingArguments  # noqa: E402

from aria_finetune.data.dataset import EpochOrder  # noqa: E402
from aria_finetune.data.packing import MicroBatches  # noqa: E402
from aria_finetune.model.absent import leave_out  # noqa: E402
from aria_finetune.model.components import components  # noqa: E402
from aria_finetune.model.holding import Holding  # noqa: E402
from aria_finetune.model.hub_layout import open_checkpoint  # noqa: E402
from aria_finetune.model.loading import load_processor  # noqa: E402
from aria_finetune.model.lora import LoraPlan, adapter_state  # noqa: E402
from aria_finetune.model.offloading import LayerInputs  # noqa: E402
from aria_finetune.planner.architecture import Architecture  # noqa: E402
from aria_finetune.planner.resident import Adapter, adapter_bytes, model_components  # noqa: E402
from aria_finetune.planner.resident import Holding as PlannedHolding  # noqa: E402
from aria_finetune.planner.step import Batch, Execution, Setup  # noqa: E402
from aria_finetune.recipe import load_recipe  # noqa: E402
from aria_finetune.run_folder import RunFolder  # noqa: E402
from aria_finetune.trainer import AriaTrainer, Feed, NumberGuard, SkippedRows, Watching  # noqa: E402
from aria_finetune.training import build_arguments  # noqa: E402

HERE = Path(__file__).parent
RECIPE = HERE.parent / "recipes" / "tiny.yaml"
SIDE, IMAGE_TOKENS = 490, 128
GIB = 2**30


def main() -> int:
    """Build, train, print; 0 when the numbers are sound."""
    arguments = parse()
    config = aria_config(arguments.scale, arguments.layers, images=not arguments.features, whole_vocabulary=True)
    with meters.peak_memory(arguments.device) as building:
        began = time.monotonic()
        plan = LoraPlan(rank=arguments.rank, dropout=0.05)
        holding = Holding(
            arguments.lm_head, arguments.embedding, arguments.experts_on, experts_at_a_time=arguments.experts_at_a_time
        )
        model = ours.build(config, arguments.device, arguments.seed, plan, holding)
        if arguments.features:
            leave_out(model.get_base_model(), "vision")
        offloaded = LayerInputs(model) if arguments.offload else None
        seconds = time.monotonic() - began
        held = building.now()
    parts = components(model)
    print(f"built in {seconds:.0f} s, {held / GIB:.2f} GiB, at most {building.bytes / GIB:.2f} GiB", flush=True)
    for part in parts:
        print(
            f"  {part.name:18} {part.parameters:>15,} weights {part.dtype:18} {part.bytes / GIB:8.3f} GiB on {part.home}"
        )

    watcher = Watcher()
    with tempfile.TemporaryDirectory() as folder, meters.peak_memory(arguments.device) as training:
        trainer = build_trainer(model, arguments, Path(folder), watcher)
        with meters.allocated_on_cpu() if arguments.allocations else nullcontext(meters.Peak()) as allocated:
            trainer.train()
    peak = max(building.bytes, held + training.bytes)
    planned_bytes, planned_peak = plan_of(arguments, config)
    measured_bytes = {part.name: part.bytes for part in parts}
    tokens = arguments.tokens + arguments.images * IMAGE_TOKENS
    timed = watcher.seconds[1:] or watcher.seconds
    summary = {
        "layers": arguments.layers,
        "tokens": tokens,
        "images": arguments.images,
        "features": arguments.features,
        "lm_head": arguments.lm_head,
        "embedding": arguments.embedding,
        "experts_on": arguments.experts_on,
        "experts_at_a_time": arguments.experts_at_a_time,
        "offloaded_gib": round(offloaded.bytes / GIB, 4) if offloaded else 0.0,
        "device": arguments.device,
        "device_name": meters.device_name(arguments.device),
        "threads": torch.get_num_threads(),
        "parameters": sum(part.parameters for part in parts if part.name != "adapter"),
        "adapter_parameters": sum(part.parameters for part in parts if part.name == "adapter"),
        "built_seconds": round(seconds, 1),
        "loaded_gib": round(held / GIB, 3),
        "peak_gib": round(peak / GIB, 3),
        "allocated_gib": round(allocated.bytes / GIB, 5) if arguments.allocations else None,
        "seconds_per_step": round(sum(timed) / len(timed), 3),
        "tokens_per_second": round(tokens * len(timed) / sum(timed), 2),
        "losses": watcher.losses,
        "finite": all(map(math.isfinite, watcher.losses)),
        "all_gradients_nonzero": not watcher.without_gradient,
        "bytes": measured_bytes,
        "planned_gib": round(planned_peak / GIB, 3),
        "planned_off_by": round(planned_peak / peak - 1, 4),
        "bytes_off_by": max(abs(size / planned_bytes[name] - 1) for name, size in measured_bytes.items()),
        "on_host": [part.name for part in parts if part.home == "host"],
    }
    print(
        f"{tokens} tokens: {summary['seconds_per_step']} s a step, {summary['tokens_per_second']} tokens/s, peak "
        f"{summary['peak_gib']} GiB, {summary['planned_gib']} planned, losses {', '.join(f'{loss:.4f}' for loss in watcher.losses)}"
    )
    if watcher.without_gradient:
        print(f"without a gradient: {', '.join(watcher.without_gradient[:5])}")
    if arguments.save:
        save(summary)
    if arguments.json:
        print(json.dumps(summary))
    return 0 if summary["finite"] and summary["all_gradients_nonzero"] else 1


def parse() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description="Training steps of Aria at its real size, with random weights.")
    parser.add_argument("--layers", type=int, default=28, help="decoder layers; Aria has 28")
    parser.add_argument("--tokens", type=int, default=32, help="text tokens of a row")
    parser.add_argument("--images", type=int, default=0, help="in each row, 490 px and 128 tokens each")
    parser.add_argument(
        "--features", action="store_true", help="those of the images are given, as data.cache_image_features does"
    )
    parser.add_argument("--allocations", action="store_true", help="record what torch's allocator gives out, on a CPU")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lm-head", choices=["dense", "nf4"], default="dense", help="model.lm_head of a recipe")
    parser.add_argument("--embedding", choices=["device", "host"], default="device", help="model.embedding")
    parser.add_argument("--experts-on", choices=["device", "host"], default="device", help="moe.experts_on")
    parser.add_argument("--experts-at-a-time", type=int, help="moe.experts_at_a_time, on a GPU")
    parser.add_argument("--offload", action="store_true", help="train.activation_offloading")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", choices=["full", "small"], default="full", help="small is for trying this program")
    parser.add_argument("--gpu-memory", type=float, help="GiB that the GPU is taken to have, of those it has")
    parser.add_argument("--json", action="store_true", help="the last line of the output is one JSON object")
    parser.add_argument("--save", action="store_true", help=f"also write it to {HERE.name}/results")
    arguments = parser.parse_args()
    for name, least in (("layers", 1), ("tokens", 2), ("images", 0), ("steps", 1), ("rank", 1)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name} must be at least {least}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if arguments.allocations and arguments.device != "cpu":
        parser.error("--allocations needs --device cpu")
    if arguments.experts_at_a_time is not None and arguments.device == "cpu":
        parser.error("--experts-at-a-time needs --device cuda")
    if arguments.gpu_memory is not None:
        if arguments.device != "cuda":
            parser.error("--gpu-memory needs --device cuda")
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        torch.cuda.set_per_process_memory_fraction(min(1.0, arguments.gpu_memory / total))
    return arguments


def plan_of(arguments: argparse.Namespace, config: AriaConfig) -> tuple[dict[str, int], int]:
    """What `aria-finetune plan` reckons: bytes by component with the adapter, and the peak as it is measured here."""
    setup = Setup(
        Architecture.from_config(config.to_dict()),
        PlannedHolding(
            vision=not arguments.features,
            packed_head=arguments.lm_head == "nf4",
            embedding_on_host=arguments.embedding == "host",
            experts_on_host=arguments.experts_on == "host",
        ),
        Adapter(("attention", "router"), arguments.rank),
        Execution(
            arguments.device,
            "lean" if arguments.device == "cpu" else "grouped",
            offloading=arguments.offload,
            cached=arguments.features,
            experts_at_a_time=arguments.experts_at_a_time,
        ),
    )
    images = {SIDE: arguments.images} if arguments.images else {}
    tokens = arguments.tokens + arguments.images * IMAGE_TOKENS
    peak = setup.peak(Batch(1, tokens, arguments.tokens, images))
    runtime = peak.parts["runtime"] if arguments.device == "cuda" else 0  # torch does not allocate it
    adapter, *_ = adapter_bytes(setup.adapter, setup.architecture)
    parts = {part.name: part.bytes for part in model_components(setup.architecture, setup.holding)}
    return {**parts, "adapter": adapter}, peak.bytes - runtime


class Watcher(TrainerCallback):  # type: ignore[misc]
    """Keeps seconds, losses, and the adapters without a gradient from the second step on."""

    def __init__(self) -> None:
        self.model: Any = None
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.without_gradient: list[str] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """A step begins."""
        self._began = time.monotonic()

    def on_pre_optimizer_step(self, _: TrainingArguments, state: TrainerState, *__: Any, **___: Any) -> None:
        """Gradients are there."""
        if state.global_step:
            self.without_gradient += [
                name
                for name, parameter in adapter_state(self.model).items()
                if parameter.grad is None or not parameter.grad.abs().max() > 0
            ]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step has ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.monotonic() - self._began)

    def on_log(self, *_: Any, logs: Mapping[str, float], **__: Any) -> None:
        """A loss was logged."""
        if "loss" in logs:
            self.losses.append(logs["loss"])


def build_trainer(model: Any, arguments: argparse.Namespace, folder: Path, watcher: Watcher) -> AriaTrainer:
    """The trainer as a run has it; no checkpoint is saved, and the learning rate is the same from the first step on."""
    recipe = load_recipe(
        RECIPE,
        [
            f"output.dir={folder}", f"model.device={arguments.device}", f"train.max_steps={arguments.steps}",
            "train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=1", "train.logging_steps=1",
            "train.eval_strategy=no", "train.save_strategy=no", "train.warmup_ratio=0", "train.learning_rate=1e-3",
            "train.lr_scheduler_type=constant", "train.dataloader_num_workers=0",
        ],
    )  # fmt: skip
    watcher.model = model
    trainer = AriaTrainer(
        model,
        build_arguments(recipe, RunFolder(folder)),
        Rows(arguments),
        feed=Feed(arguments.steps, 0, MicroBatches(EpochOrder([range(arguments.steps)], [1.0], arguments.seed), 1, 1)),
        processor=load_processor(open_checkpoint("tiny")),
        watching=Watching(NumberGuard(str), SkippedRows(lambda _: None, print)),
        callbacks=[watcher],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class Rows:
    """Makes the row of a number: its images first, then text, whose ids take experts in turn."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._text, self._images, self._seed = arguments.tokens, arguments.images, arguments.seed
        self._hidden = 0
        if arguments.features:
            self._hidden = aria_config(arguments.scale, arguments.layers, images=False).text_config.hidden_size
        self._ids = min(TEXT_IDS, VOCABULARY[arguments.scale] - FIRST_TEXT_ID)

    def __call__(self, features: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
        """As the collator makes it."""
        (row,) = [feature["row"] for feature in features]
        generator = torch.Generator().manual_seed(self._seed * 1000 + row)
        ids = FIRST_TEXT_ID + (row * self._text + torch.randperm(self._text, generator=generator)) % self._ids
        image = torch.full((self._images * IMAGE_TOKENS,), 9)
        labels = torch.cat([torch.full_like(image, -100), ids])
        batch = {
            "input_ids": torch.cat([image, ids])[None],
            "labels": labels[None],
            "attention_mask": torch.ones(1, len(labels), dtype=torch.int64),
            "rows": torch.tensor([row]),
        }
        if self._images and self._hidden:
            shape = (self._images * IMAGE_TOKENS, self._hidden)
            features = torch.randn(shape, generator=generator, dtype=torch.bfloat16)
            batch |= {"features": features, "tile_order": torch.arange(self._images)}
        elif self._images:
            shape = (self._images, 3, SIDE, SIDE)
            batch |= {
                f"pixels_{SIDE}": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
                f"extents_{SIDE}": torch.full((self._images, 2), SIDE),
                "tile_order": torch.arange(self._images),
            }
        return batch


def save(summary: dict[str, Any]) -> None:
    """Write the summary to the results folder, under a name that says what was measured."""
    name = f"full_size-{summary['device']}-{summary['layers']}l-{summary['tokens']}t-{summary['images']}i"
    ways = {
        "features": summary["features"],
        "nf4-head": summary["lm_head"] == "nf4",
        "host-embedding": summary["embedding"] == "host",
        "host-experts": summary["experts_on"] == "host",
        f"{summary['experts_at_a_time']}-experts": summary["experts_at_a_time"] is not None,
        "offload": summary["offloaded_gib"] > 0,
    }
    file = HERE / "results" / ("-".join([name, *(way for way, taken in ways.items() if taken)]) + ".json")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"written to {file}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
