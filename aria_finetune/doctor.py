"""What this machine has and what is missing: versions, GPU, 4-bit arithmetic, decoders, disk.

Each finding says what to do about it. Changes nothing.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from aria_finetune.kernels.language import triton
from aria_finetune.memory import GIB

REAL_NF4_GIB, REAL_BF16_GIB = 13.5, 47.2
"""Aria's weights in memory with NF4 experts, and on disk in bf16."""
PACKAGE = "aria-finetune"


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `fatal` if training can't work; `fix` if there is something to do."""

    topic: str
    detail: str
    good: bool = True
    fatal: bool = False
    fix: str = ""

    def describe(self) -> str:
        """One or two lines for people."""
        mark = "ok  " if self.good else ("FAIL" if self.fatal else "note")
        return f"{mark} {self.topic}: {self.detail}" + (f"\n       {self.fix}" if self.fix else "")


def examine() -> list[Finding]:
    """Look at everything; a check that breaks is a finding, not an end."""
    findings: list[Finding] = []
    for check in (_python, _packages, _gpu, _four_bit, _expert_kernels, _images, _videos, _trackers, _hub, _disk):
        findings += _guarded(check)
    return findings


def _guarded(check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 (whatever breaks here is what the user wants to know)
        topic = check.__name__.strip("_").replace("_", " ")
        return [Finding(topic, f"{type(error).__name__}: {error}", good=False, fatal=True)]


def _python() -> list[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return [Finding("python", found, good=good, fatal=not good, fix="" if good else "use Python 3.11 or later")]


def _packages() -> list[Finding]:
    """Every run-time dependency that our metadata names, against the range it names."""
    try:
        needed = [Requirement(line) for line in requires(PACKAGE) or []]
    except PackageNotFoundError:
        return [Finding("packages", f"{PACKAGE} is not installed", good=False, fix="pip install aria-finetune")]
    findings = []
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
            good = requirement.specifier.contains(found, prereleases=True)
        except PackageNotFoundError:
            found, good = "not installed", False
        fix = "" if good else f"pip install '{requirement.name}{requirement.specifier}'"
        findings.append(Finding(requirement.name, found, good=good, fatal=not good, fix=fix))
    return findings


def _gpu() -> list[Finding]:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        detail = f"none; torch is built for {'CUDA ' + built if built else 'CPU'}"
        fix = "the tiny Aria trains without; for the real one use a GPU with 24 GB and a CUDA build of torch"
        return [Finding("gpu", detail, good=False, fix=fix)]
    properties = torch.cuda.get_device_properties(0)
    gib = properties.total_memory / GIB
    capability = f"sm{properties.major}{properties.minor}"
    enough = gib > REAL_NF4_GIB + 2
    fix = "" if enough else f"the real Aria needs {REAL_NF4_GIB} GiB for its weights alone"
    return [Finding("gpu", f"{properties.name}, {gib:.1f} GiB, {capability}", good=enough, fix=fix)]


def _four_bit() -> list[Finding]:
    """Quantise and dequantise with bitsandbytes where training would."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # noqa: PLC0415 (a failing import is a finding)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.linspace(-1, 1, 4096, device=device).view(64, 64)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    error = (dequantize_4bit(packed, state) - weight).abs().max().item()
    good = error < 0.2  # the widest gap between NF4 levels is 0.30 of a block's largest value
    return [Finding("4-bit", f"NF4 on {device}, largest error {error:.3f} of 1", good=good, fatal=not good)]


def _expert_kernels() -> list[Finding]:
    good = hasattr(torch.nn.functional, "grouped_mm")
    fix = "" if good else "install torch 2.10 or later, or set moe.implementation: eager"
    findings = [Finding("grouped_mm", "there" if good else "missing from torch", good=good, fix=fix)]
    if torch.cuda.is_available():
        good = triton is not None
        fix = "" if good else "pip install triton (Linux); without it the experts' kernels run in torch, slower"
        findings.append(Finding("triton", triton.__version__ if good else "missing", good=good, fix=fix))
    return findings


def _images() -> list[Finding]:
    from PIL import Image, features  # noqa: PLC0415

    Image.open(_small_png()).load()
    missing = [name for name in ("jpg", "webp", "avif", "jpg_2000") if not features.check(name)]
    fix = "install Pillow from PyPI's wheels" if missing else ""
    detail = f"Pillow decodes PNG{'' if not missing else ', but not ' + ', '.join(missing)}"
    return [
        Finding(
            "images",
            detail if missing else "Pillow decodes PNG, JPEG, WebP, AVIF, JPEG 2000",
            good=not missing,
            fix=fix,
        )
    ]


def _small_png() -> io.BytesIO:
    from PIL import Image  # noqa: PLC0415

    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "png")
    file.seek(0)
    return file


def _videos() -> list[Finding]:
    import av  # noqa: PLC0415

    missing = [name for name in ("h264", "hevc", "vp9", "av1", "mpeg4") if name not in av.codecs_available]
    detail = "PyAV decodes H.264, HEVC, VP9, AV1, MPEG-4" if not missing else f"PyAV lacks {', '.join(missing)}"
    return [Finding("videos", detail, good=not missing, fix="install av from PyPI's wheels" if missing else "")]


def _trackers() -> list[Finding]:
    findings = []
    for package in ("tensorboard", "wandb"):
        try:
            findings.append(Finding(package, version(package)))
        except PackageNotFoundError:
            fix = f"only for train.report_to: {package}: pip install 'aria-finetune[{package}]'"
            findings.append(Finding(package, "not installed", good=False, fix=fix))
    return findings


def _hub() -> list[Finding]:
    from huggingface_hub import constants, get_token  # noqa: PLC0415

    signed_in = "a token is set" if get_token() else "no token (the real Aria needs none)"
    offline = "offline" if constants.HF_HUB_OFFLINE else "online"
    return [Finding("hub", f"{offline}, {signed_in}, cache in {constants.HF_HUB_CACHE}")]


def _disk() -> list[Finding]:
    from huggingface_hub import constants  # noqa: PLC0415

    places = (("disk for runs", Path.cwd(), 1.0), ("disk for the model", Path(constants.HF_HUB_CACHE), REAL_BF16_GIB))
    findings = []
    for topic, wanted, needed in places:
        folder = next(place for place in (wanted, *wanted.parents) if place.exists())
        free = shutil.disk_usage(folder).free / GIB
        good = free > needed and os.access(folder, os.W_OK)
        fix = "" if good else f"{needed:.0f} GiB are wanted there"
        findings.append(Finding(topic, f"{free:.0f} GiB free in {folder}", good=good, fix=fix))
    return findings
