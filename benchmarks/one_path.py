"""Measure one path in this process and write what was found to a folder; `step.py` starts it.

A step is forward and backward of the decoder body under bf16 autocast with non-reentrant gradient
checkpointing; no lm_head and no optimiser, which both paths have alike. The first step warms up and is the one
whose memory is kept, and what it made of images; the others are timed. Gradients and routing are those of the first step, or with
images of one on as much text: how a path rounds in the vision tower is no difference of its decoder. Knows nothing of the other path.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from peft import PeftModel  # noqa: E402
from random_aria import Batch, Scale, aria_config, random_batch  # noqa: E402
from report import EVIDENCE_FILE, RESULT_FILE  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from aria_finetune.model.components import components  # noqa: E402
from aria_finetune.model.lora import LoraPlan, adapter_state  # noqa: E402

PATHS: dict[str, ModuleType] = {"stock": stock, "ours": ours}
PLAN = LoraPlan(rank=8, alpha=32, dropout=0.0)
ADAPTER_DEVIATION = 0.01
"""Of both LoRA matrices: B starts at zero, and then A would have no gradient to compare."""


@dataclass(frozen=True)
class Job:
    """What to measure: `steps` timed steps of one row of `tokens` tokens, with `images` of `tile` pixels; with `phases` one more under the profiler."""

    path: str
    device: str
    scale: Scale
    layers: int
    tokens: int
    images: int
    tile: int
    steps: int
    seed: int
    phases: bool = False


def measure(job: Job) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What JSON can hold, and the evidence that the paths do the same: gradients and routing by name."""
    path = PATHS[job.path]
    config = aria_config(job.scale, job.layers, images=job.images > 0)
    model: PeftModel = path.build(config, job.device, job.seed, PLAN)
    prepare_training(model, job.seed)

    def batch(number: int) -> Batch:
        return random_batch(config, job.tokens, job.images, job.tile, job.device, job.seed + number)

    step = make_step(path, model, job)
    first = batch(0)
    with (
        features_seen(model, first) as features,
        meters.routing(model) as chosen,
        meters.peak_memory(job.device) as peak,
    ):
        step(first)
    load = meters.expert_load(chosen, config.text_config.moe_num_experts)
    if job.images:
        first = random_batch(config, job.tokens, 0, job.tile, job.device, job.seed)
        model.zero_grad(set_to_none=True)
        with meters.routing(model) as chosen:
            step(first)
    evidence = {f"gradient.{name}": gradient(name, p) for name, p in adapter_state(model).items()}
    evidence |= {f"routing.{layer}": index for layer, index in chosen.items()}
    evidence |= features | expert_evidence(model, first, job)

    times, processor_times = [], []
    for number in range(1, job.steps + 1):
        inputs = batch(number)
        model.zero_grad(set_to_none=True)
        began = time.process_time()
        times.append(meters.seconds(job.device, partial(step, inputs)))
        processor_times.append(time.process_time() - began)
    model.zero_grad(set_to_none=True)
    return {
        "seconds": times,
        "processor_seconds": processor_times,
        "phases": phases.phases(model, job.device, partial(step, batch(0))) if job.phases else None,
        "peak_bytes": peak.bytes,
        "model_bytes": sum(part.bytes for part in components(model)),
        "expert_load": load,
        "experts_implementation": config.text_config._experts_implementation,  # noqa: SLF001
        "attention_implementation": config.text_config._attn_implementation,  # noqa: SLF001
        "adapter_dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in adapter_state(model).values()}),
        "threads": torch.get_num_threads(),
        "device_name": meters.device_name(job.device),
    }, evidence


def prepare_training(model: PeftModel, seed: int) -> None:
    """Training mode as TRL's trainer sets it up, and the same adapter values on both paths."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(adapter_state(model).items()):
        values = torch.randn(parameter.shape, generator=generator) * ADAPTER_DEVIATION
        parameter.data.copy_(values)
    model.train()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()


def make_step(path: ModuleType, model: PeftModel, job: Job) -> Callable[..., None]:
    """Forward and backward of one batch, the forward within a context if one is given; gradients stay in the adapters.

    The loss is the hidden states' mean product with one fixed random vector: next to no work, and unlike a sum
    of squares not made constant by the last norm.
    """
    base = model.get_base_model()
    generator = torch.Generator(job.device).manual_seed(job.seed)
    probe_H1 = torch.randn(base.config.text_config.hidden_size, 1, generator=generator, device=job.device)
    probe_H1 = probe_H1.to(torch.bfloat16)

    def step(batch: Batch, around: AbstractContextManager[None] | None = None) -> None:
        with around or nullcontext(), torch.autocast(job.device, torch.bfloat16):
            with phases.mark(phases.IMAGES):
                images = path.image_inputs(base, batch)
            hidden_BTH = base.model(input_ids=batch.input_ids, use_cache=False, **images).last_hidden_state
            loss = (hidden_BTH @ probe_H1).float().mean()
        loss.backward()

    return step


@contextmanager
def features_seen(model: PeftModel, batch: Batch) -> Iterator[dict[str, torch.Tensor]]:
    """What the decoder is given in the places of images, (tokens of images, hidden), fp32; without images nothing."""
    base, seen = model.get_base_model(), {}
    places_BT = batch.input_ids == base.config.image_token_index

    def look(_: nn.Module, __: object, inputs: dict[str, torch.Tensor]) -> None:
        if places_BT.any():
            seen["features"] = inputs["inputs_embeds"].detach()[places_BT].float().cpu()

    hook = base.model.language_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def gradient(name: str, parameter: torch.Tensor) -> torch.Tensor:
    """An adapter's gradient on the CPU, fp32.

    Raises:
        RuntimeError: the step left none, so it did not train this adapter.
    """
    if parameter.grad is None:
        raise RuntimeError(f"{name} got no gradient")
    return parameter.grad.float().cpu()


def expert_evidence(model: PeftModel, batch: Batch, job: Job) -> dict[str, torch.Tensor]:
    """Output and input gradient of the first layer's router and routed experts alone.

    In the gradients of the whole body a wrong one of the experts' input would show as 3 percent.
    """
    base = model.get_base_model()
    with torch.no_grad():
        embedding_TH = base.get_input_embeddings()(batch.input_ids)[0]
        input_TH = functional.rms_norm(embedding_TH, embedding_TH.shape[-1:])
    input_TH = input_TH.detach().requires_grad_()
    block = base.model.language_model.layers[0].mlp
    generator = torch.Generator(job.device).manual_seed(job.seed)
    upstream_TH = torch.randn(input_TH.shape, generator=generator, device=job.device, dtype=input_TH.dtype)
    with torch.autocast(job.device, torch.bfloat16):
        _, weights, index = block.router(input_TH)
        output_TH = block.experts(input_TH, index, weights)
    (gradient_TH,) = torch.autograd.grad(output_TH, input_TH, upstream_TH.to(output_TH.dtype))
    return {"experts.output": output_TH.detach().float().cpu(), "experts.input_gradient": gradient_TH.float().cpu()}


def main() -> None:
    """Arguments: the job as JSON, and the folder for the result."""
    job, folder = Job(**json.loads(sys.argv[1])), Path(sys.argv[2])
    result, evidence = measure(job)
    save_file(evidence, folder / EVIDENCE_FILE)
    (folder / RESULT_FILE).write_text(json.dumps({**asdict(job), **result}), encoding="utf-8")


if __name__ == "__main__":
    main()
