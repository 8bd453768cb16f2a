"""Measure whole training steps of one way in this process and write what was found to a folder; `whole_step.py` starts it.

A step is what a run does on one row: the images, the decoder body under bf16 autocast with non-reentrant gradient checkpointing,
the loss of the labels through the lm_head, the backward, clipping and AdamW on fp32 adapters. The first step warms up, and with the
building of the model it is the one whose memory is kept; the others are timed. Knows nothing of the other ways.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from aria_finetune.libraries import prepare_libraries

prepare_libraries()

import meters  # noqa: E402
import ours  # noqa: E402
import phases  # noqa: E402
import stock  # noqa: E402
import torch  # noqa: E402
from one_path import PLAN, gradient, prepare_training  # noqa: E402
from peft import PeftModel  # noqa: E402
from random_aria import Batch, Scale, aria_config, random_batch  # noqa: E402
from report import EVIDENCE_FILE, RESULT_FILE  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AriaConfig  # noqa: E402

from aria_finetune.model.head_loss import IGNORED  # noqa: E402
from aria_finetune.model.lora import adapter_state  # noqa: E402
from aria_finetune.model.vision import as_encoder_outputs, image_features  # noqa: E402
from aria_finetune.planner.architecture import Architecture  # noqa: E402
from aria_finetune.planner.work import row_work  # noqa: E402

LEARNING_RATE = 1e-4
MAX_NORM = 1.0
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """Whose code it is, what computes the experts where it is not what that takes by itself, and how they and images are held."""

    path: ModuleType
    experts: str | None = None
    dense: bool = False
    cached: bool = False


WAYS = {
    "stock": Way(stock),
    "eager": Way(stock, experts="eager"),
    "dense": Way(ours, dense=True),
    "ours": Way(ours),
    "cached": Way(ours, cached=True),
}
"""`stock` and `eager` are transformers' grouped_mm and its loop over experts; `dense` is ours on experts in bf16, and `cached`
ours on image features that were computed before."""


@dataclass(frozen=True)
class Job:
    """What to measure: `steps` timed steps of one row of `tokens` tokens, the last `labels` of which are in the loss."""

    path: str
    device: str
    scale: Scale
    layers: int
    tokens: int
    labels: int
    images: int
    tile: int
    steps: int
    seed: int
    phases: bool = False


def measure(job: Job) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What JSON can hold, and the gradients of the first step by name."""
    way = WAYS[job.path]
    config = aria_config(job.scale, job.layers, images=job.images > 0, whole_vocabulary=job.scale == "full")
    with meters.peak_memory(job.device) as building:
        model = build(way, config, job)
        held = building.now()
    prepare_training(model, job.seed)
    batches = [
        random_batch(config, job.tokens, job.images, job.tile, job.device, job.seed + n) for n in range(job.steps + 1)
    ]
    prepared = [prepare_images(way, model, batch) for batch in batches]
    step = make_step(way, model, job)
    with meters.peak_memory(job.device) as peak:
        losses = [step(batches[0], prepared[0])]
    # AdamW leaves gradients as they were clipped.
    evidence = {name: gradient(name, parameter) for name, parameter in adapter_state(model).items()}
    times = [
        meters.both_seconds(job.device, lambda one=one: losses.append(step(*one)))
        for one in zip(batches[1:], prepared[1:], strict=True)
    ]
    return {
        "seconds": [elapsed for elapsed, _ in times],
        "processor_seconds": [processor for _, processor in times],
        "losses": [float(loss) for loss in losses],
        "built_bytes": held,
        "peak_bytes": max(building.bytes, held + peak.bytes),
        "operations": operations(config, job, seen=not way.cached),
        "phases": phases.phases(model, job.device, partial(step, batches[0], prepared[0])) if job.phases else None,
        "experts_implementation": config.text_config._experts_implementation,  # noqa: SLF001
        "attention_implementation": config.text_config._attn_implementation,  # noqa: SLF001
        "threads": torch.get_num_threads(),
        "device_name": meters.device_name(job.device),
    }, evidence


def build(way: Way, config: AriaConfig, job: Job) -> PeftModel:
    """The model with adapters, on the device."""
    if way.path is stock:
        config.text_config._experts_implementation = way.experts  # noqa: SLF001 (as transformers' own loading sets it)
        return stock.build(config, job.device, job.seed, PLAN)
    return ours.build(config, job.device, job.seed, PLAN, put=ours.put_dense_experts if way.dense else None)


def prepare_images(way: Way, model: PeftModel, batch: Batch) -> Inputs:
    """What is known of the images of a batch before its step: where features are kept, those, in pinned memory as a loader has them."""
    if not way.cached or batch.pixels is None:
        return {}
    given = ours.tiles(batch.pixels)
    features = image_features(model.get_base_model(), given)
    if features is None:
        raise RuntimeError("images have no features")
    on_host = features[0].cpu()
    return {"tile_order": given["tile_order"], "features": on_host.pin_memory() if features.is_cuda else on_host}


def make_step(way: Way, model: PeftModel, job: Job) -> Callable[[Batch, Inputs], torch.Tensor]:
    """A whole step on a batch; gradients stay until the next one. Returns the mean loss of its labels."""
    base = model.get_base_model()
    adapters = list(adapter_state(model).values())
    optimizer = torch.optim.AdamW(adapters, lr=LEARNING_RATE, weight_decay=0.0, fused=job.device == "cuda")
    head_VH = base.lm_head.weight

    def images_of(batch: Batch, prepared: Inputs) -> Inputs:
        if not prepared:
            return way.path.image_inputs(base, batch)  # type: ignore[no-any-return]
        on_device = {**prepared, "features": prepared["features"].to(job.device, non_blocking=True)}
        features = image_features(base, on_device)
        return {} if features is None else {"mm_encoder_outputs": as_encoder_outputs(features)}

    def step(batch: Batch, prepared: Inputs) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        labels_BS = batch.input_ids.clone()
        labels_BS[:, : -job.labels] = IGNORED
        with torch.autocast(job.device, torch.bfloat16):
            with phases.mark(phases.IMAGES):
                images = images_of(batch, prepared)
            hidden_BSH = base.model(input_ids=batch.input_ids, use_cache=False, **images).last_hidden_state
            with phases.mark(phases.HEAD):
                loss = way.path.summed_loss(hidden_BSH, labels_BS, head_VH) / job.labels
        loss.backward()
        with phases.mark(phases.OPTIMIZER):
            torch.nn.utils.clip_grad_norm_(adapters, MAX_NORM)
            optimizer.step()
        return loss.detach()

    return step


def operations(config: AriaConfig, job: Job, *, seen: bool) -> float:
    """Floating-point operations of a step as `aria-finetune plan` counts them, the recomputed forward among them."""
    tiles = {job.tile: job.images} if job.images and seen else {}
    return row_work(Architecture.from_config(config.to_dict()), job.tokens, job.labels, tiles).total


def main() -> None:
    """Arguments: the job as JSON, and the folder for the result."""
    job, folder = Job(**json.loads(sys.argv[1])), Path(sys.argv[2])
    result, evidence = measure(job)
    save_file(evidence, folder / EVIDENCE_FILE)
    (folder / RESULT_FILE).write_text(json.dumps({**asdict(job), **result}), encoding="utf-8")


if __name__ == "__main__":
    main()
