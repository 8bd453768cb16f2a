"""What the tests of trust plant, and the process they plant it in.

Canaries are files that leave a mark when somebody unpickles or imports them. They lie in a folder of their own and
are linked to wherever a run may look, so that one watch on each sees every opening, by whatever name and language.
Run as a script, this takes the steps of a plan one after the other in one process, as a user would type them.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

PICKLES = (
    "pytorch_model.bin", "adapter_model.bin", "optimizer.bin", "scheduler.bin", "training_args.bin",
    "model.pt", "optimizer.pt", "scheduler.pt", "scaler.pt", "weights.pth", "rng_state.pth", "rng_state_0.pth",
    "random_states_0.pkl", "model.ckpt",
)  # fmt: skip
MODULES = ("canary.py", "custom_generate/generate.py")
AUTO_MAPS = {
    "config.json": {
        "AutoConfig": "canary.Config",
        "AutoModel": "canary.Model",
        "AutoModelForImageTextToText": "canary.Model",
    },
    "tokenizer_config.json": {"AutoTokenizer": ["canary.Tokenizer", "canary.Tokenizer"]},
    "processor_config.json": {"AutoProcessor": "canary.Processor", "AutoImageProcessor": "canary.ImageProcessor"},
    "preprocessor_config.json": {"AutoImageProcessor": "canary.ImageProcessor"},
}
KERNELS = {
    "_attn_implementation": "kernels-community/canary",
    "_experts_implementation": "deepgemm",
}
"""Where transformers would fetch a kernel from the hub, or stop because `kernels` is not installed."""
IN_OPEN = 0x20

AUDIT = """
import json, os, sys

log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
names = {"open", "socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}

def note(event, arguments):
    if event in names:
        family = getattr(arguments[0], "family", None) if event.startswith("socket.") else None
        entry = [event, None if family is None else family.name, [str(a) for a in arguments]]
        os.write(log, json.dumps(entry).encode() + b"\\n")

sys.addaudithook(note)
"""
"""A `sitecustomize` that tells of every file and connection that Python opens, in every process it starts."""


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.makedirs, (str(self.mark),)


def make_canaries(folder: Path, marks: Path) -> list[Path]:
    """Write every canary to `folder`; the mark of each is a folder of its name in `marks`."""
    import torch  # noqa: PLC0415 (not at the start of the process that is watched)

    for name in PICKLES:
        folder.mkdir(exist_ok=True)
        torch.save({"state": Canary(marks / name)}, folder / name)
    for name in MODULES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"import os; os.makedirs({str(marks / name)!r})\n")
    return [folder / name for name in (*PICKLES, *MODULES)]


def bait(folder: Path, canaries: Path, *, configs: bool = True) -> None:
    """Link every canary into the folder of a model, an adapter or a checkpoint; have its JSON files name the modules.

    Without `configs` the JSON files stay as they are, as those of a sealed checkpoint must.
    """
    for name in (*PICKLES, *MODULES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(canaries / name, folder / name)
    if configs:
        for name, auto_map in AUTO_MAPS.items():
            _change(folder / name, {"auto_map": auto_map}, make=name == "preprocessor_config.json")
        _change(folder / "config.json", KERNELS)
        mapping = {"parent_library": "canary", "base_model_class": "Model"}
        _change(folder / "adapter_config.json", {"auto_mapping": mapping})


def reopen(run: Path) -> None:
    """Make a finished run one that stopped after its first checkpoint."""
    _change(run / "run.json", {"status": "stopped"})
    for name in ("adapter", "checkpoint-2"):
        shutil.rmtree(run / name)


def _change(file: Path, changes: dict[str, object], *, make: bool = False) -> None:
    if file.is_file() or make:
        config = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(config | changes))


class OpenWatch:
    """Sees every opening of some files on Linux, also those of compiled code, which audit hooks don't (inotify(7))."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        self._files = {self._libc.inotify_add_watch(self._descriptor, os.fsencode(f), IN_OPEN): f for f in files}
        assert min(self._files) > 0, os.strerror(ctypes.get_errno())

    def opened(self) -> set[Path]:
        """The files that were opened since the last call."""
        found = set()
        while data := self._read():
            while data:
                number, _, _, length = struct.unpack_from("iIII", data)
                found.add(self._files[number])
                data = data[struct.calcsize("iIII") + length :]
        return found

    def _read(self) -> bytes:
        try:
            return os.read(self._descriptor, 65536)
        except BlockingIOError:
            return b""


def main() -> None:
    """Take the steps of a plan: command lines to run, folders to bait or copy, a run to reopen."""
    from aria_finetune.cli import app  # noqa: PLC0415

    plan = json.loads(Path(sys.argv[1]).read_text())
    codes: list[int | str | None] = []
    for step in plan["steps"]:
        match step:
            case {"bait": folder, "configs": configs}:
                bait(Path(folder), Path(plan["canaries"]), configs=configs)
            case {"reopen": run}:
                reopen(Path(run))
            case {"copy": folder, "to": other}:
                shutil.copytree(folder, other)
            case {"run": arguments}:
                try:
                    app(arguments, prog_name="aria-finetune", standalone_mode=False)
                    codes.append(0)
                except SystemExit as end:
                    codes.append(end.code)
    from huggingface_hub.constants import HF_HUB_OFFLINE  # noqa: PLC0415 (as the commands left it)

    Path(plan["ended"]).write_text(json.dumps({"codes": codes, "offline": HF_HUB_OFFLINE}))


if __name__ == "__main__":
    main()
