"""A copy of a safetensors file differs in the tensors that were changed, and in nothing else."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aria_finetune.adapter.shards import copy_shard
from aria_finetune.errors import UserError

TENSORS = {
    "z.weight": torch.randn(33, 7).bfloat16(),
    "a.weight": torch.randn(5, 64),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "ids": torch.arange(9),
    "flags": torch.tensor([True, False, True]),
    "half": torch.randn(4, 4).half(),
    "bytes": torch.arange(16, dtype=torch.uint8),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "source.safetensors", metadata={"format": "pt", "note": "ü"})
    return tmp_path / "source.safetensors"


def raw(file: Path) -> tuple[bytes, dict[str, bytes]]:
    """The header and the bytes of each tensor, read by the format's description."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entries = {name: entry["data_offsets"] for name, entry in json.loads(data[8:start]).items() if name[0] != "_"}
    assert len(data) == start + max(end for _, end in entries.values())
    return data[:start], {name: data[start + begin : start + end] for name, (begin, end) in entries.items()}


def test_with_nothing_changed_it_is_the_same_file(source: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    copy_shard(source, tmp_path / "copy", asked.append)
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert sorted(asked) == sorted(TENSORS)


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_one_changed_tensor(source: Path, tmp_path: Path, name: str) -> None:
    def double(tensor: torch.Tensor) -> list[torch.Tensor]:
        assert torch.equal(tensor, TENSORS[name])
        return [(tensor * 2).to(tensor.dtype)]

    copy_shard(source, tmp_path / "copy", lambda asked: double if asked == name else None)
    header, tensors = raw(tmp_path / "copy")
    old_header, old = raw(source)
    assert header == old_header
    assert {other for other in old if tensors[other] != old[other]} <= {name}
    assert torch.equal(load_file(tmp_path / "copy")[name], double(TENSORS[name])[0])


def test_all_changed_and_not_contiguous(source: Path, tmp_path: Path) -> None:
    def turned(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flip(0).T.contiguous().T if tensor.dim() == 2 else tensor

    copy_shard(source, tmp_path / "copy", lambda _: lambda tensor: [turned(tensor)])
    copied = load_file(tmp_path / "copy")
    assert all(torch.equal(copied[name], turned(tensor)) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("result", [torch.zeros(5, 63), torch.zeros(5, 64).bfloat16(), torch.zeros(5, 65)])
def test_a_result_of_another_size_is_a_defect(source: Path, tmp_path: Path, result: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"a\.weight"):
        copy_shard(source, tmp_path / "copy", lambda name: (lambda _: [result]) if name == "a.weight" else None)


def test_pieces_are_written_one_behind_the_other(source: Path, tmp_path: Path) -> None:
    sha256 = copy_shard(
        source, tmp_path / "copy", lambda name: (lambda tensor: iter(tensor.neg())) if name == "a.weight" else None
    )
    copied = load_file(tmp_path / "copy")
    assert torch.equal(copied["a.weight"], -TENSORS["a.weight"])
    assert sha256 == hashlib.sha256((tmp_path / "copy").read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"a\.weight"):
        copy_shard(source, tmp_path / "half", lambda name: (lambda tensor: tensor[:3]) if name == "a.weight" else None)


def test_other_names_for_the_same_tensors(source: Path, tmp_path: Path) -> None:
    copy_shard(source, tmp_path / "copy", lambda _: None, lambda name: f"a.longer.prefix.{name}")
    copied = load_file(tmp_path / "copy")
    assert set(copied) == {f"a.longer.prefix.{name}" for name in TENSORS}
    assert all(torch.equal(copied[f"a.longer.prefix.{name}"], tensor) for name, tensor in TENSORS.items())
    with safe_open(tmp_path / "copy", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "note": "ü"}
    copy_shard(tmp_path / "copy", tmp_path / "back", lambda _: None, lambda name: name.removeprefix("a.longer.prefix."))
    assert raw(tmp_path / "back")[1] == raw(source)[1]


@pytest.mark.parametrize("missing", [1, 500, 10**9])
def test_a_truncated_source(source: Path, tmp_path: Path, missing: int) -> None:
    data = source.read_bytes()
    source.write_bytes(data[: max(0, len(data) - missing)])
    with pytest.raises(UserError, match="can't be read") as caught:
        copy_shard(source, tmp_path / "copy", lambda _: None)
    assert caught.value.where == str(source)
    assert not (tmp_path / "copy").exists()


def test_a_target_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("precious")
    with pytest.raises(FileExistsError):
        copy_shard(source, tmp_path / "copy", lambda _: None)
    assert (tmp_path / "copy").read_text() == "precious"


MEASURED = """
import re, sys
from pathlib import Path
import torch
from aria_finetune.adapter.shards import copy_shard

def peak():  # not ru_maxrss, which a process inherits from its parent
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

torch.ones(1024) + 1
before = peak()
copy_shard(Path(sys.argv[1]), Path(sys.argv[2]), lambda name: (lambda tensor: [-tensor]) if name == "small" else None)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_large_file_needs_little_memory(tmp_path: Path) -> None:
    size = 200 * 2**20
    tensors = {"large": torch.arange(size // 8), "small": torch.arange(1000.0)}
    save_file(tensors, tmp_path / "source")
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "source"), str(tmp_path / "copy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40 * 2**20
    copied = load_file(tmp_path / "copy")
    assert torch.equal(copied["large"], tensors["large"])
    assert torch.equal(copied["small"], -tensors["small"])
