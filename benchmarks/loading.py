"""Loading a checkpoint: ours, ours from an NF4 checkpoint, and the stock way, in a process each.

    python benchmarks/loading.py CHECKPOINT NF4_CHECKPOINT --json

The stock way reads the model with transformers' 4-bit quantiser and then packs the experts, which that leaves in 16 bit,
with bitsandbytes. Memory is anonymous resident memory on a CPU (what no file backs) and allocated memory on a GPU, above
that of the process with everything imported: when the model is there, and the most on the way. Our two ways must give
equal logits, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from aria_finetune.libraries import prepare_libraries

prepare_libraries()

import meters  # noqa: E402
import torch  # noqa: E402
from bitsandbytes.nn.parametrize import replace_parameter_4bit  # noqa: E402
from transformers import AriaForConditionalGeneration, BitsAndBytesConfig  # noqa: E402
from transformers.models.aria.modeling_aria import AriaExperts  # noqa: E402

from aria_finetune.model.components import components  # noqa: E402
from aria_finetune.model.loading import load_model  # noqa: E402
from aria_finetune.model.nf4 import EXPERT_TENSORS, UNQUANTISED  # noqa: E402

WAYS = ("ours", "nf4", "stock")
TOKENS = 16


def main() -> None:
    """Measure each way in a process of its own, print."""
    arguments = parse()
    if arguments.way:
        print(json.dumps(measure(arguments.way, str(arguments.checkpoint), arguments.device)))
        return
    folders = {"ours": arguments.checkpoint, "nf4": arguments.nf4, "stock": arguments.checkpoint}
    summary: dict[str, Any] = {"device": arguments.device, "threads": torch.get_num_threads()}
    for way in WAYS:
        if folders[way] is None or way in arguments.without:
            continue
        command = [sys.executable, __file__, str(folders[way]), "--way", way, "--device", arguments.device]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ, check=True)
        summary[way] = json.loads(done.stdout.splitlines()[-1])
        found = summary[way]
        print(
            f"{way:6} {found['seconds']:7.1f} s   model {gib(found['model_bytes'])}   anonymous memory when loaded "
            f"{gib(found['loaded_bytes'])}, at most {gib(found['peak_bytes'])}, above the loaded model "
            f"{gib(found['peak_bytes'] - found['loaded_bytes'])}",
            flush=True,
        )
    if "ours" in summary and "nf4" in summary:
        summary["nf4_share_of_seconds"] = round(summary["nf4"]["seconds"] / summary["ours"]["seconds"], 4)
        summary["equal_logits"] = summary["nf4"]["logits"] == summary["ours"]["logits"]
    if arguments.json:
        print(json.dumps(summary))
    sys.exit(0 if summary.get("equal_logits", True) else 1)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time and memory of loading a checkpoint.")
    parser.add_argument("checkpoint", type=Path, help="in the hub layout")
    parser.add_argument("nf4", type=Path, nargs="?", help="what `aria-finetune quantize` made of it")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--without", choices=WAYS, action="append", default=[], help="leave this way out")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(way: str, checkpoint: str, device: str) -> dict[str, Any]:
    """Load in this process."""
    held: list[AriaForConditionalGeneration] = []
    load = stock if way == "stock" else ours
    with meters.peak_memory(device) as peak:
        seconds = meters.seconds(device, lambda: held.append(load(checkpoint, device)))
        loaded = peak.now()
    model = held[0].eval()
    ids = torch.arange(20, 20 + TOKENS, device=device)[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits.float().cpu()
    return {
        "seconds": seconds,
        "model_bytes": sum(part.bytes for part in components(model)),
        "loaded_bytes": loaded,
        "peak_bytes": peak.bytes,
        "logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest(),
    }


def ours(checkpoint: str, device: str) -> AriaForConditionalGeneration:
    """As `train` loads it."""
    return load_model(checkpoint, device=device).model


def stock(checkpoint: str, device: str) -> AriaForConditionalGeneration:
    """With what the libraries have."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(UNQUANTISED),
    )
    model = AriaForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.bfloat16, device_map={"": device}, quantization_config=config
    )
    for module in model.modules():
        if isinstance(module, AriaExperts):
            for name in EXPERT_TENSORS:
                replace_parameter_4bit(module, name, compress_statistics=True, quant_type="nf4")
    loaded: AriaForConditionalGeneration = model
    return loaded


def gib(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB"


if __name__ == "__main__":
    main()
