"""Load one source one way in this process, and print what was found as JSON; `loader.py` starts it.

The clock starts when there has been a batch from every worker, so that starting them and planning rows is not in it; the first
batch is told apart. CPU time is that of this process, of workers and of decoders, from the start of loading to the end of them
all.
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aria_finetune.libraries import prepare_libraries

prepare_libraries()

import av  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset, load_dataset  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from transformers import AriaProcessor  # noqa: E402

from aria_finetune.material import build_collator, prepare  # noqa: E402
from aria_finetune.model.hub_layout import open_checkpoint  # noqa: E402
from aria_finetune.model.loading import load_processor  # noqa: E402
from aria_finetune.recipe import load_recipe  # noqa: E402
from aria_finetune.training import batches_ahead  # noqa: E402

PATCH = 35
PR_SET_CHILD_SUBREAPER = 36
TURNS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A pattern."}]},
]
Batch = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What to load: `source` below `folder`, and how."""

    way: str
    source: str
    folder: str
    workers: int
    size: int
    batch: int
    frames: int
    device: str


def measure(job: Job) -> dict[str, Any]:
    """Rates, costs, and patches of the first record's first picture."""
    adopt_orphans()
    cpu, began = cpu_seconds(), time.perf_counter()
    loader, first_record, normalised = {"ours": ours, "stock": stock}[job.way](job)
    patches = torch.nn.functional.avg_pool2d(normalised(first_record())[:, : job.size // 2], PATCH)
    ends, images = [], []
    for batch in loader:
        taken = take(batch, job.device)
        if job.device == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
        images.append(count(taken, job))
    early = max(1, job.workers)
    seconds = ends[-1] - ends[early - 1]
    megabytes = sum(value.nbytes for value in taken.values() if isinstance(value, torch.Tensor)) / 1e6
    del loader, first_record, normalised
    gc.collect()
    wait_for_all()
    return {
        "images_per_second": sum(images[early:]) / seconds,
        "cpu_milliseconds": (cpu_seconds() - cpu) / sum(images) * 1e3,
        "seconds_to_first_batch": ends[0] - began,
        "megabytes_per_batch": megabytes,
        "patches": patches.tolist(),
    }


def adopt_orphans() -> None:
    """Become the parent of decoders whose worker has ended, so that their CPU time is told (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def wait_for_all() -> None:
    """Until every process below this one has ended."""
    with suppress(ChildProcessError):
        while True:
            os.wait()


def cpu_seconds() -> float:
    """Of this process and of all that has ended below it."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def take(batch: Batch, device: str) -> Batch:
    """The batch where a step would want it."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def count(batch: Batch, job: Job) -> int:
    """How many pictures there are in it."""
    return len(batch["tile_order"] if job.way == "ours" else batch["pixel_values"])


Way = tuple[DataLoader[Any], Callable[[], Batch], Callable[[Batch], torch.Tensor]]
"""A loader, the batch of record 0 alone, and its first picture in -1 to 1, (3, side, side)."""


def ours(job: Job) -> Way:
    """As training loads."""
    folder = Path(job.folder)
    recipe = load_recipe_of(job, folder)
    material = prepare(recipe, folder / f"store-{job.way}")
    collator = build_collator(recipe, material)
    order = material.train_rows.order(recipe.train.seed)
    rows = Dataset.from_dict({"row": list(range(len(material.train_rows.plans)))})
    loader = DataLoader(rows, job.batch, sampler=order, collate_fn=collator, **settings(job))  # type: ignore[arg-type]

    def normalised(batch: Batch) -> torch.Tensor:
        return (batch[f"pixels_{job.size}"][0] / 255 - 0.5) / 0.5

    return loader, lambda: collator([{"row": 0}]), normalised


def load_recipe_of(job: Job, folder: Path) -> Any:
    """A recipe on the source."""
    file = folder / "recipe.yaml"
    file.write_text(
        f"model: {{path: tiny, device: {job.device}}}\n"
        f"data: {{train: [{{path: {folder / job.source}}}], image_size: {job.size}, num_frames: {job.frames}, "
        "timestamps: false, max_tokens: 65536}\n"
        f"output: {{dir: {folder / 'run'}}}\n",
        encoding="utf-8",
    )
    return load_recipe(file, [])


def settings(job: Job) -> dict[str, Any]:
    """Of the loader, the same for both ways: those of training."""
    return {
        "num_workers": job.workers,
        "prefetch_factor": batches_ahead(job.workers, 8),
        "pin_memory": job.device == "cuda",
    }


class StockCollate:
    """Opens what records name and calls transformers' processor on it."""

    def __init__(self, job: Job, processor: AriaProcessor) -> None:
        self._job, self._processor = job, processor
        self._text = {
            images: processor.apply_chat_template(
                [{**TURNS[0], "content": [TURNS[0]["content"][0]] * images + TURNS[0]["content"][1:]}, TURNS[1]],
                tokenize=False,
            )
            for images in (1, job.frames)
        }

    def __call__(self, records: Sequence[Any]) -> Batch:
        """A batch of the processor's."""
        shown = [self._pictures(record) for record in records]
        batch = self._processor(
            text=[self._text[len(pictures)] for pictures in shown],
            images=[picture for pictures in shown for picture in pictures],
            images_kwargs={"max_image_size": self._job.size},
            padding=True,
            return_tensors="pt",
        )
        return dict(batch)

    def _pictures(self, record: Any) -> list[Image.Image]:
        if self._job.source == "video":
            return frames(record, self._job.frames)
        packed = isinstance(record, dict)
        return [Image.open(io.BytesIO(record["media"][0]["bytes"]) if packed else record).convert("RGB")]


def frames(path: str, wanted: int) -> list[Image.Image]:
    """The same frames as ours, decoded from the start as ours are: seeking takes twice as long."""
    with av.open(path) as clip:
        total = clip.streams.video[0].frames
        chosen = {int((number + 0.5) * total / wanted) for number in range(wanted)}
        return [frame.to_image() for number, frame in enumerate(clip.decode(video=0)) if number in chosen]


def stock(job: Job) -> Way:
    """A plain DataLoader: of paths, or of the rows of a Parquet file as `datasets` gives them, shuffled."""
    folder = Path(job.folder)
    processor = load_processor(open_checkpoint("tiny"))
    collate = StockCollate(job, processor)
    records: Any
    if job.source == "parquet":
        files = [str(path) for path in sorted((folder / "parquet").glob("*.parquet"))]
        records = load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "arrow"))
    elif job.source == "folder":
        records = sorted(str(path) for path in (folder / "raw").glob("*.jpg"))
    else:
        count_of = json.loads((folder / "raw" / "clips.json").read_text(encoding="utf-8"))
        records = [str(folder / "raw" / "clip.mp4")] * len(count_of)
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(records, job.batch, shuffle=True, generator=generator, collate_fn=collate, **settings(job))
    return loader, lambda: collate([records[0]]), lambda batch: batch["pixel_values"][0]


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))
