"""Measure one way of laying out rows in this process and write what was found to a folder; `packing.py` starts it.

`stock` is the stock path on rows padded to the longest of a batch, `padded` ours on the same batches, `packed` ours on the
micro-batches of `data.packing`. Each goes once over the same rows, forward and backward of the decoder body; the features of
images are given, as if they were cached. Knows nothing of the other ways.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aria_finetune.libraries import prepare_libraries

prepare_libraries()

import meters  # noqa: E402
import ours  # noqa: E402
import stock  # noqa: E402
import torch  # noqa: E402
from mix import Row, mixed_rows  # noqa: E402
from one_path import PLAN, gradient, prepare_training  # noqa: E402
from peft import PeftModel  # noqa: E402
from random_aria import FIRST_TEXT_ID, TEXT_IDS, Scale, aria_config, generator_for  # noqa: E402
from report import EVIDENCE_FILE, RESULT_FILE  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AriaConfig  # noqa: E402

from aria_finetune.data.dataset import EpochOrder  # noqa: E402
from aria_finetune.data.packing import MicroBatches, Packing  # noqa: E402
from aria_finetune.model.documents import document_places  # noqa: E402
from aria_finetune.model.lora import adapter_state  # noqa: E402
from aria_finetune.model.vision import as_encoder_outputs  # noqa: E402

SHORTER: dict[Scale, float] = {"full": 1.0, "small": 1 / 16}
"""By how much rows are shortened at each scale."""
PAD_ID = 0


@dataclass(frozen=True)
class Job:
    """What to measure: `rows` rows, `batch_size` of them in an optimizer step."""

    path: str
    device: str
    scale: Scale
    layers: int
    rows: int
    batch_size: int
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Laid:
    """A batch on the device: what the forward takes, and which of its positions are tokens."""

    inputs: dict[str, Any]
    real: torch.Tensor


class Layout:
    """Turns row numbers into batches; a row has the same ids and features in every one."""

    def __init__(self, job: Job, config: AriaConfig) -> None:
        self.rows = mixed_rows(job.rows, job.seed, SHORTER[job.scale])
        self._job, self._config = job, config

    def batches(self) -> Iterator[Laid]:
        """Those of one pass over the rows."""
        job = self._job
        order = EpochOrder([range(job.rows)], [1.0], job.seed)
        if job.path != "packed":
            yield from (self._padded(batch) for batch in MicroBatches(order, job.batch_size, 1))
            return
        packing = Packing([row.tokens for row in self.rows], round(job.max_tokens * SHORTER[job.scale]))
        yield from (self._packed(batch) for batch in MicroBatches(order, 1, job.batch_size, packing) if batch)

    def _padded(self, batch: list[int]) -> Laid:
        width = max(self.rows[number].tokens for number in batch)
        ids = torch.full((len(batch), width), PAD_ID, device=self._job.device)
        mask = torch.zeros_like(ids)
        for place, number in enumerate(batch):
            tokens = self.rows[number].tokens
            ids[place, :tokens], mask[place, :tokens] = self._ids(number), 1
        return Laid({"input_ids": ids, "attention_mask": mask, **self._images(batch)}, mask.bool())

    def _packed(self, batch: list[int]) -> Laid:
        lengths = [self.rows[number].tokens for number in batch]
        ids = torch.cat([self._ids(number) for number in batch])[None]
        positions = torch.cat([torch.arange(length, device=ids.device) for length in lengths])[None]
        places = document_places(lengths, self._job.device)
        inputs = {"input_ids": ids, "position_ids": positions, **places, **self._images(batch)}
        return Laid(inputs, torch.ones_like(ids, dtype=torch.bool))

    def _ids(self, number: int) -> torch.Tensor:
        row: Row = self.rows[number]
        ids = FIRST_TEXT_ID + torch.randint(
            TEXT_IDS, (row.tokens,), generator=self._generator(number, "ids"), device=self._job.device
        )
        ids[: row.image_tokens] = self._config.image_token_index
        return ids

    def _images(self, batch: list[int]) -> dict[str, Any]:
        hidden = self._config.text_config.hidden_size
        seen = [
            torch.randn(
                self.rows[number].image_tokens,
                hidden,
                generator=self._generator(number, "images"),
                device=self._job.device,
            )
            for number in batch
        ]
        features = torch.cat(seen)[None].to(torch.bfloat16)
        return {"mm_encoder_outputs": as_encoder_outputs(features)} if features.numel() else {}

    def _generator(self, number: int, what: str) -> torch.Generator:
        return generator_for(self._job.device, self._job.seed, f"row {number} {what}")


def measure(job: Job) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What JSON can hold, and the gradients over all rows, which no layout may change."""
    config = aria_config(job.scale, job.layers, images=False)
    model: PeftModel = (stock if job.path == "stock" else ours).build(config, job.device, job.seed, PLAN)
    prepare_training(model, job.seed)
    base = model.get_base_model()
    probe_H1 = torch.randn(
        config.text_config.hidden_size, 1, generator=generator_for(job.device, job.seed, "probe"), device=job.device
    )
    probe_H1 = probe_H1.to(torch.bfloat16)
    layout = Layout(job, config)

    def step(batch: Laid) -> None:
        with torch.autocast(job.device, torch.bfloat16):
            hidden_BTH = base.model(use_cache=False, **batch.inputs).last_hidden_state
            loss = (hidden_BTH[batch.real] @ probe_H1).float().sum() / sum(row.tokens for row in layout.rows)
        loss.backward()

    laid = list(layout.batches())
    step(min(laid, key=lambda batch: batch.real.numel()))
    model.zero_grad(set_to_none=True)
    with meters.peak_memory(job.device) as peak:
        times = [meters.seconds(job.device, partial(step, batch)) for batch in laid]
    evidence = {f"gradient.{name}": gradient(name, parameter) for name, parameter in adapter_state(model).items()}
    return {
        "seconds": sum(times),
        "seconds_per_batch": times,
        "positions": [batch.real.numel() for batch in laid],
        "tokens": sum(row.tokens for row in layout.rows),
        "peak_bytes": peak.bytes,
        "experts_implementation": config.text_config._experts_implementation,  # noqa: SLF001
        "attention_implementation": config.text_config._attn_implementation,  # noqa: SLF001
        "threads": torch.get_num_threads(),
        "device_name": meters.device_name(job.device),
    }, evidence


def main() -> None:
    """Arguments: the job as JSON, and the folder for the result."""
    job, folder = Job(**json.loads(sys.argv[1])), Path(sys.argv[2])
    result, evidence = measure(job)
    save_file(evidence, folder / EVIDENCE_FILE)
    (folder / RESULT_FILE).write_text(json.dumps({**asdict(job), **result}), encoding="utf-8")


if __name__ == "__main__":
    main()
