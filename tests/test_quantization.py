"""An NF4 checkpoint gives the model that packing on the fly gives, whatever interrupts its making."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aria_finetune import quantization
from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import INDEX, open_checkpoint
from aria_finetune.model.loading import load_model
from aria_finetune.model.nf4_checkpoint import source_of
from aria_finetune.provenance import hash_file
from aria_finetune.quantization import plan_parts, quantize


@pytest.fixture(scope="module")
def nf4(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Aria, quantised."""
    output = tmp_path_factory.mktemp("quantised") / "nf4"
    quantize(str(tiny_folder), output)
    return output


@pytest.fixture
def copied(nf4: Path, tmp_path: Path) -> Path:
    """A copy of it that may be written to."""
    shutil.copytree(nf4, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(10, 700, (2, 40), generator=torch.Generator().manual_seed(0))


def content(folder: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_same_model_as_packed_on_the_fly(
    nf4: Path, tiny_folder: Path, ids: torch.Tensor, dtype: torch.dtype
) -> None:
    stored, fresh = (load_model(str(folder), dtype=dtype).model for folder in (nf4, tiny_folder))
    ours, theirs = dict(stored.named_parameters()), dict(fresh.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name
    with torch.no_grad():
        assert torch.equal(stored(input_ids=ids).logits, fresh(input_ids=ids).logits)


def test_its_parts_take_the_same_bytes(nf4: Path, tiny_folder: Path) -> None:
    assert load_model(str(nf4)).components == load_model(str(tiny_folder)).components


def test_weights_stay_in_the_file(nf4: Path) -> None:
    """On a CPU what is loaded is a view of the file, which the system reads when it is needed."""
    model = load_model(str(nf4)).model
    experts = model.model.language_model.layers[0].mlp.experts.parametrizations.gate_up_proj.original
    maps = Path("/proc/self/maps").read_text()
    of_file = [line.split()[0].split("-") for line in maps.splitlines() if str(nf4) in line]
    assert any(int(start, 16) <= experts.data_ptr() < int(end, 16) for start, end in of_file)


def test_the_layout(nf4: Path, tiny_folder: Path) -> None:
    checkpoint, source = open_checkpoint(str(nf4)), open_checkpoint(str(tiny_folder))
    assert checkpoint.shards == [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    for layer in (0, 1):
        names = {name for name in checkpoint.stored if name.startswith(f"language_model.model.layers.{layer}.")}
        assert {checkpoint.files[name] for name in names} == {f"model-{layer + 2:05d}-of-00003.safetensors"}
    assert source.stored.keys() <= checkpoint.stored.keys()
    weight = "language_model.model.layers.0.mlp.experts.fc1.weight"
    assert {name.removeprefix(weight) for name in checkpoint.stored if name.startswith(weight)} == {
        "", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4",
    }  # fmt: skip
    assert checkpoint.stored[weight].dtype == "U8"
    config = json.loads((nf4 / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "aria_nf4"
    assert config == source.config
    copied = {path.name for path in tiny_folder.iterdir() if path.suffix in {".json", ".jinja"}}
    assert copied | {INDEX, *checkpoint.shards} == {path.name for path in nf4.iterdir()}
    index = json.loads((nf4 / INDEX).read_text())
    assert index["metadata"]["sha256"] == {shard: hash_file(nf4 / shard) for shard in checkpoint.shards}


def test_it_says_what_it_was_made_of(nf4: Path, tiny_folder: Path) -> None:
    found = source_of(open_checkpoint(str(nf4)))
    assert (found.name, found.revision) == (str(tiny_folder.resolve()), None)
    assert found.sha256 == {"model.safetensors": hash_file(tiny_folder / "model.safetensors")}


def test_the_same_bytes_twice(nf4: Path, tiny_folder: Path, tmp_path: Path) -> None:
    quantize(str(tiny_folder), tmp_path / "again")
    assert content(tmp_path / "again") == content(nf4)


def test_a_tensor_that_is_too_large_gets_a_file_of_its_own(
    nf4: Path, tiny_folder: Path, tmp_path: Path, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "MOST_DENSE_BYTES", 50_000)
    parts = plan_parts(open_checkpoint(str(tiny_folder)))
    assert len(parts) > 5
    quantize(str(tiny_folder), tmp_path / "out")
    with torch.no_grad():
        logits = [load_model(str(folder)).model(input_ids=ids).logits for folder in (tmp_path / "out", nf4)]
    assert torch.equal(*logits)


CHILD = """
import sys, time
from pathlib import Path
from aria_finetune import quantization
from aria_finetune.quantization import quantize
slow = quantization.save_file
def save(*arguments):
    time.sleep(0.05)
    slow(*arguments)
quantization.save_file = save
print("ready", flush=True)
quantize(sys.argv[1], Path(sys.argv[2]), say=print)
"""


def test_kills_cost_nothing(nf4: Path, tiny_folder: Path, tmp_path: Path, soak: bool) -> None:
    output, kills, chance = tmp_path / "out", 0, random.Random(5)
    due = 20 if soak else 4
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    while kills < due or not output.exists():
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tiny_folder), str(output)], stdout=subprocess.PIPE, env=environment
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            if kills < due:
                time.sleep(chance.uniform(0, 0.35))
                process.send_signal(signal.SIGKILL)
                kills += 1
            else:
                process.wait()
        if kills < due and output.exists():
            assert content(output) == content(nf4)
            shutil.rmtree(output)
    assert content(output) == content(nf4)
    assert not list(tmp_path.glob(".*"))


def stopped_after(files: int, tiny_folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a making that was stopped once some files were written."""
    write, done = quantization._write_part, 0

    def counted(*arguments: object) -> str:
        nonlocal done
        if done == files:
            raise KeyboardInterrupt
        done += 1
        return write(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(quantization, "_write_part", counted)
        with pytest.raises(KeyboardInterrupt):
            quantize(str(tiny_folder), output)
    return output.with_name(f".{output.name}.quantizing")


def test_what_is_finished_is_kept(
    nf4: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped_after(2, tiny_folder, tmp_path / "out", monkeypatch)
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(times) == 2
    quantize(str(tiny_folder), tmp_path / "out")
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in times} == times
    assert content(tmp_path / "out") == content(nf4)


def test_what_was_damaged_is_named_and_made_again(
    nf4: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped_after(2, tiny_folder, tmp_path / "out", monkeypatch)
    flip(folder / "model-00002-of-00003.safetensors")
    said: list[str] = []
    quantize(str(tiny_folder), tmp_path / "out", say=said.append)
    assert said == ["model-00002-of-00003.safetensors is damaged and is made again"]
    assert content(tmp_path / "out") == content(nf4)


def test_other_weights_begin_anew(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_folder, source)
    stopped_after(2, source, tmp_path / "out", monkeypatch)
    weights = load_file(source / "model.safetensors")
    weights["language_model.model.layers.0.self_attn.q_proj.weight"] *= 2
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    quantize(str(source), tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "nothing", ignore_errors=True)
    quantize(str(source), tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def refusal(folder: Path, **options: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load_model(str(folder), **options)  # type: ignore[arg-type]
    return caught.value


class TestBadCheckpoints:
    def test_a_flipped_bit(self, copied: Path) -> None:
        flip(copied / "model-00003-of-00003.safetensors")
        assert "damaged: model-00003-of-00003.safetensors" in refusal(copied).message

    def test_a_missing_file(self, copied: Path) -> None:
        (copied / "model-00002-of-00003.safetensors").unlink()
        assert "missing: model-00002-of-00003.safetensors" in refusal(copied).message

    def test_a_cut_file(self, copied: Path) -> None:
        path = copied / "model-00002-of-00003.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
        assert refusal(copied).where == str(path)

    def test_missing_scales(self, copied: Path) -> None:
        index = json.loads((copied / INDEX).read_text())
        del index["weight_map"]["language_model.model.layers.1.mlp.experts.fc2.weight.nested_absmax"]
        (copied / INDEX).write_text(json.dumps(index))
        told = "1 missing keys: model.language_model.layers.1.mlp.experts.down_proj.nested_absmax"
        assert told in refusal(copied).message

    def test_another_shape(self, copied: Path) -> None:
        config = json.loads((copied / "config.json").read_text())
        config["text_config"]["intermediate_size"] = 32
        (copied / "config.json").write_text(json.dumps(config))
        assert "gate_up_proj (262144, 1) instead of (131072, 1)" in refusal(copied).message

    def test_hashes_that_are_gone(self, copied: Path) -> None:
        index = json.loads((copied / INDEX).read_text())
        del index["metadata"]["sha256"]
        (copied / INDEX).write_text(json.dumps(index))
        assert "lacks hashes" in refusal(copied).message

    def test_dense_experts_are_not_in_it(self, copied: Path) -> None:
        assert "the checkpoint is NF4, and model.experts is bf16" in refusal(copied, experts="bf16").message

    def test_another_quantisation(self, copied: Path) -> None:
        config = json.loads((copied / "config.json").read_text())
        config["quantization_config"]["quant_method"] = "gptq"
        (copied / "config.json").write_text(json.dumps(config))
        assert "can't be read here (gptq)" in refusal(copied).message


class TestBadSources:
    def test_nf4_again(self, nf4: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="NF4 already"):
            quantize(str(nf4), tmp_path / "out")

    def test_something_at_the_output(self, tiny_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("x")
        with pytest.raises(UserError, match="there is something at the output"):
            quantize(str(tiny_folder), tmp_path / "out")

    def test_another_process(self, tiny_folder: Path, tmp_path: Path) -> None:
        held = (
            "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
        )
        (tmp_path / ".out.quantizing").mkdir()
        command = [sys.executable, "-c", held, str(tmp_path / ".out.quantizing" / ".lock")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(UserError, match="another process is making it"):
                quantize(str(tiny_folder), tmp_path / "out")
            process.communicate(b"\n")

    def test_a_disk_that_is_too_small(self, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("aria_finetune.checkpoint.space.free_bytes", lambda _: 1000)
        with pytest.raises(UserError, match=r"needs 1\.\d MiB .* and 0\.0 MiB \(1,000 bytes\) are free"):
            quantize(str(tiny_folder), tmp_path / "out")

    def test_a_missing_weight(self, tiny_folder: Path, tmp_path: Path) -> None:
        shutil.copytree(tiny_folder, tmp_path / "source")
        weights = load_file(tiny_folder / "model.safetensors")
        del weights["language_model.model.layers.0.mlp.experts.fc1.weight"]
        save_file(weights, tmp_path / "source" / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=r"1 missing keys: .*layers\.0\.mlp\.experts\.gate_up_proj"):
            quantize(str(tmp_path / "source"), tmp_path / "out")
        assert not list(tmp_path.glob(".out*"))

    def test_a_file_that_is_not_what_the_cache_says(self, tiny_folder: Path, tmp_path: Path) -> None:
        """The hub's cache names files by their SHA-256 and links to them."""
        source = tmp_path / "snapshots" / "abc"
        shutil.copytree(tiny_folder, source)
        blob = tmp_path / ("0" * 64)
        (source / "model.safetensors").rename(blob)
        (source / "model.safetensors").symlink_to(blob)
        with pytest.raises(UserError, match=r"model\.safetensors is damaged: its SHA-256 is [0-9a-f]{64}, not 0{64}"):
            quantize(str(source), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_the_bytes_that_are_asked_for_are_those_that_are_written(nf4: Path, tiny_folder: Path) -> None:
    source = open_checkpoint(str(tiny_folder))
    for part in plan_parts(source):
        with safe_open(nf4 / part.file, "pt") as opened:
            written = sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118
        assert written <= quantization.part_bytes(part, source) <= 1.1 * written
