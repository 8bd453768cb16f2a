"""Write a checkpoint of random weights in the hub layout, bf16, with Aria's dimensions and as many layers as wanted.

    python benchmarks/make_checkpoint.py OUTPUT --layers 4

A shard for each decoder layer (1.8 GB at full size) and one for the rest (2.2 GB), with an index; one layer at a time is
in memory. The tokenizer and the processor are the tiny Aria's, so that the whole tool runs on it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from aria_finetune.libraries import prepare_libraries

prepare_libraries()

from random_aria import aria_config, empty_model, generator_for, random_values  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from aria_finetune.model.hub_layout import INDEX, disk_name, open_checkpoint  # noqa: E402
from aria_finetune.model.loading import layer_of, load_processor  # noqa: E402
from aria_finetune.staging import staged_folder  # noqa: E402


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description="A checkpoint of random weights in the hub layout.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--layers", type=int, default=4, help="decoder layers; Aria has 28")
    parser.add_argument("--scale", choices=["full", "small"], default="full", help="small is for trying this program")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with staged_folder(arguments.output) as folder:
        write(folder, arguments.scale, arguments.layers, arguments.seed)
    size = sum(path.stat().st_size for path in arguments.output.iterdir())
    print(f"{arguments.output}: {arguments.layers} layers, {size / 1e9:.2f} GB")


def write(folder: Path, scale: str, layers: int, seed: int) -> None:
    """Write all files of the checkpoint."""
    config = aria_config(scale, layers, images=True, whole_vocabulary=True)  # type: ignore[arg-type]
    config.architectures = ["AriaForConditionalGeneration"]
    model = empty_model(config)
    names = {disk_name(name): parameter for name, parameter in model.named_parameters()}
    shards: dict[int | None, list[str]] = {}
    for name in names:
        shards.setdefault(layer_of(name), []).append(name)
    weight_map: dict[str, str] = {}
    for number, group in enumerate(shards.values(), 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(group, file)
        save_file(dict(values(group, names, config.text_config.hidden_size, seed)), folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": sum(2 * p.numel() for p in names.values())}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    load_processor(open_checkpoint("tiny")).save_pretrained(folder)
    config.save_pretrained(folder)


def values(
    group: list[str], names: dict[str, torch.nn.Parameter], hidden: int, seed: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a shard."""
    for name in group:
        yield name, random_values(name, names[name], 1 / math.sqrt(hidden), generator_for("cpu", seed, name))


if __name__ == "__main__":
    main()
