"""A merge is there whole or not at all: killed, starved of disk or lied to, it replaces nothing, and goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aria_finetune import ADAPTER_FOLDER
from aria_finetune.adapter import merge as merging
from aria_finetune.adapter.files import adapter_hashes
from aria_finetune.adapter.merge import merge
from aria_finetune.adapter.saving import ADAPTER_WEIGHTS
from aria_finetune.checkpoint.sealing import sealed_folder
from aria_finetune.errors import UserError
from aria_finetune.model.base_identity import BASE_FILE
from aria_finetune.model.hub_layout import SINGLE
from aria_finetune.provenance import hash_file
from aria_finetune.quantization import quantize

MakeAdapter = Callable[..., Path]


@pytest.fixture(scope="module")
def base(odd_bases: dict[torch.dtype, Path]) -> Path:
    """In several files."""
    return odd_bases[torch.bfloat16]


@pytest.fixture(scope="module")
def trained(base: Path, make_adapter: MakeAdapter) -> Path:
    return make_adapter(base)


@pytest.fixture(scope="module")
def due(base: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an undisturbed merge leaves."""
    output = tmp_path_factory.mktemp("due") / "merged"
    merge(trained, output)
    return content(output)


def content(folder: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in folder.iterdir()}


KILLS = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from aria_finetune.adapter import merge as merging
adapter, output, wanted = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
copy, chance, cut_short = merging.copy_shard, random.Random(7), 0
def slow(*arguments):
    time.sleep(0.05)
    return copy(*arguments)
merging.copy_shard = slow
for _ in range(wanted):
    child = os.fork()
    if not child:
        merging.merge(adapter, output, say=print)
        os._exit(0)
    time.sleep(chance.uniform(0.05, 0.6))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    cut_short += not output.exists()
    shutil.rmtree(output, ignore_errors=True)
merging.merge(adapter, output, say=print)
print(cut_short)
"""


def test_kills_cost_nothing(trained: Path, due: dict[str, str], tmp_path: Path, soak: bool) -> None:
    output, wanted = tmp_path / "out", 60 if soak else 6
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLS, str(trained), str(output), str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= wanted // 2, "hardly any came in the middle"
    assert content(output) == due
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def stopped_after(files: int, adapter: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hidden folder of a merge that was stopped once some files were written."""
    copy, done = merging.copy_shard, 0

    def counted(*arguments: object) -> str:
        nonlocal done
        if done == files:
            raise KeyboardInterrupt
        done += 1
        return copy(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(merging, "copy_shard", counted)
        with pytest.raises(KeyboardInterrupt):
            merge(adapter, output)
    assert not output.exists()
    return output.with_name(f".{output.name}.merging")


def test_what_is_finished_is_kept_and_checked(
    trained: Path, due: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped_after(3, trained, tmp_path / "out", monkeypatch)
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(kept) == 3
    damaged = min(kept)
    data = bytearray((folder / damaged).read_bytes())
    data[-1] ^= 1
    (folder / damaged).write_bytes(data)
    said: list[str] = []
    merge(trained, tmp_path / "out", say=said.append)
    assert said == [f"{damaged} is damaged and is made again"]
    assert content(tmp_path / "out") == due
    after = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept}
    assert {name for name in kept if after[name] == kept[name]} == set(kept) - {damaged}


def test_another_adapter_begins_anew(
    base: Path, trained: Path, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_adapter(base, deviation=0.02)
    stopped_after(3, trained, tmp_path / "out", monkeypatch)
    merge(other, tmp_path / "out")
    merge(other, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_stop_before_the_first_file_leaves_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(0, trained, tmp_path / "out", monkeypatch)
    assert not list(tmp_path.iterdir())


def refusal(adapter: Path, output: Path, base: Path | None = None) -> UserError:
    """The error, after which everything beside the output is as it was."""
    there = {path: hash_file(path) for path in output.parent.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        merge(adapter, output, base=None if base is None else str(base))
    assert {path: hash_file(path) for path in output.parent.rglob("*") if path.is_file()} == there
    assert not output.exists()
    return caught.value


class TestDisk:
    def test_too_little_is_told_before_anything_is_written(
        self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("aria_finetune.checkpoint.space.free_bytes", lambda _: 1000)
        error = refusal(trained, tmp_path / "out")
        assert "what is still to be written of the merged checkpoint needs" in error.message
        assert "1,000 bytes) are free" in error.message
        assert not list(tmp_path.iterdir())

    def test_one_that_fills_up_while_it_is_written(
        self, base: Path, trained: Path, due: dict[str, str], tmp_path: Path
    ) -> None:
        """A real disk, which another process fills up once the space was found enough."""
        if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
            pytest.skip("this machine lets us mount nothing")
        size = 2 * sum(path.stat().st_size for path in base.iterdir()) + (4 << 20)
        script = """
import sys
from pathlib import Path
from aria_finetune.adapter import merge as merging
from aria_finetune.checkpoint.space import free_bytes
from aria_finetune.errors import UserError
disk, adapter = Path(sys.argv[1]), Path(sys.argv[2])
check = merging.require_space
def fill(*arguments):
    check(*arguments)
    with (disk / "filler").open("wb") as filler:
        filler.write(bytes(free_bytes(disk) - 1_500_000))
merging.require_space = fill
try:
    merging.merge(adapter, disk / "out")
except UserError as error:
    print(error)
print(sorted(path.name for path in disk.iterdir()))
(disk / "filler").unlink()
merging.require_space = check
merging.merge(adapter, disk / "out")
import hashlib, json
print(json.dumps({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (disk / "out").iterdir()}))
print(sorted(path.name for path in disk.iterdir()))
"""
        mount = 'mount -t tmpfs -o size="$1" tmpfs "$0" && shift && exec "$@"'
        command = ["unshare", "-rm", "sh", "-c", mount, str(tmp_path), str(size), sys.executable, "-c", script]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [*command, str(tmp_path), str(trained)], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
        told, fix, left, made, at_the_end = done.stdout.splitlines()
        assert "the disk ran full while the merged checkpoint" in told
        assert "what is finished stays in .out.merging, and the same command goes on" in told
        assert "free some space" in fix
        assert left == "['.out.merging', 'filler']"
        assert json.loads(made) == due
        assert at_the_end == "['out']"


class TestBase:
    def test_the_report_says_that_it_is_the_one(self, adapter: Path, tmp_path: Path) -> None:
        merge(adapter, tmp_path / "out")
        report = json.loads((tmp_path / "out" / "merge.json").read_text())
        assert report["base_identity"]["compared"] == ["the same"]
        assert report["base_identity"]["values"] == json.loads((adapter / BASE_FILE).read_text())["values"]
        assert report["sha256"] == {SINGLE: hash_file(tmp_path / "out" / SINGLE)}

    @pytest.fixture
    def changed(self, tiny_folder: Path, tmp_path: Path) -> Path:
        """Weights of the same shapes, of which one tensor that the adapter does not even change is another."""
        folder = Path(shutil.copytree(tiny_folder, tmp_path / "changed"))
        tensors = load_file(folder / SINGLE)
        tensors["language_model.model.layers.1.mlp.shared_experts.up_proj.weight"] *= 1.25
        save_file(tensors, folder / SINGLE, {"format": "pt"})
        return folder

    def test_another_is_refused(self, adapter: Path, changed: Path, tmp_path: Path) -> None:
        error = refusal(adapter, tmp_path / "out", changed)
        assert "not the weights that the adapter was trained on" in error.message
        assert "--any-base" in str(error.fix)

    def test_another_on_purpose(self, adapter: Path, changed: Path, tmp_path: Path) -> None:
        merge(adapter, tmp_path / "out", base=str(changed), any_base=True)
        report = json.loads((tmp_path / "out" / "merge.json").read_text())
        assert report["base_identity"]["compared"] == ["not compared"]

    def test_an_adapter_that_does_not_say(self, adapter: Path, changed: Path, tmp_path: Path) -> None:
        silent = Path(shutil.copytree(adapter, tmp_path / "silent"))
        (silent / BASE_FILE).unlink()
        merge(silent, tmp_path / "out", base=str(changed))
        report = json.loads((tmp_path / "out" / "merge.json").read_text())
        assert report["base_identity"]["compared"] == ["not recorded"]

    def test_one_that_knows_the_files_of_its_nf4_base(
        self, adapter: Path, changed: Path, tiny_folder: Path, tmp_path: Path
    ) -> None:
        told = Path(shutil.copytree(adapter, tmp_path / "told"))
        hashes = {SINGLE: hash_file(tiny_folder / SINGLE)}
        (told / BASE_FILE).write_text(json.dumps({"values": None, "sha256": hashes}))
        assert "not the weights" in refusal(told, tmp_path / "out", changed).message
        merge(told, tmp_path / "out", base=str(tiny_folder))


class TestAdapter:
    def flip(self, file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[-2] ^= 1
        file.write_bytes(data)

    def test_a_flipped_bit_in_a_run(self, adapter: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(adapter, run / ADAPTER_FOLDER)
        sha256 = hash_file(run / ADAPTER_FOLDER / ADAPTER_WEIGHTS)
        (run / "run.json").write_text(json.dumps({"adapter_sha256": sha256}))  # as older runs have it
        merge(run, tmp_path / "whole")
        self.flip(run / ADAPTER_FOLDER / ADAPTER_WEIGHTS)
        assert "its SHA-256 differs" in refusal(run, tmp_path / "out").message

    def test_another_alpha_in_a_run(self, adapter: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(adapter, run / ADAPTER_FOLDER)
        (run / "run.json").write_text(json.dumps({"adapter_sha256": adapter_hashes(run / ADAPTER_FOLDER)}))
        merge(run, tmp_path / "whole")
        self.quadruple_alpha(run / ADAPTER_FOLDER)
        assert "adapter_config.json was changed since it was written" in refusal(run, tmp_path / "out").message
        (run / "run.json").write_text(json.dumps({"adapter_sha256": None}))
        merge(run, tmp_path / "not recorded")

    def test_another_alpha_in_a_checkpoint(self, adapter: Path, tmp_path: Path) -> None:
        with sealed_folder(tmp_path / "checkpoint-3") as folder:
            shutil.copytree(adapter, folder, dirs_exist_ok=True)
        self.quadruple_alpha(tmp_path / "checkpoint-3")
        error = refusal(tmp_path / "checkpoint-3", tmp_path / "out")
        assert "adapter_config.json was changed since it was written" in error.message

    def quadruple_alpha(self, folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 4 * config["lora_alpha"]}))

    def test_a_flipped_bit_in_a_checkpoint(self, adapter: Path, tmp_path: Path) -> None:
        with sealed_folder(tmp_path / "checkpoint-3") as folder:
            shutil.copytree(adapter, folder, dirs_exist_ok=True)
        merge(tmp_path / "checkpoint-3", tmp_path / "whole")
        self.flip(tmp_path / "checkpoint-3" / ADAPTER_WEIGHTS)
        assert "its SHA-256 differs" in refusal(tmp_path / "checkpoint-3", tmp_path / "out").message
        self.flip(tmp_path / "checkpoint-3" / "manifest.json")
        assert "manifest.json" in refusal(tmp_path / "checkpoint-3", tmp_path / "out").message

    def test_a_file_that_ends_early(self, adapter: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
        data = (copy / ADAPTER_WEIGHTS).read_bytes()
        (copy / ADAPTER_WEIGHTS).write_bytes(data[: len(data) // 2])
        assert "can't be read" in refusal(copy, tmp_path / "out").message

    def test_one_half_of_a_pair(self, adapter: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
        tensors = load_file(copy / ADAPTER_WEIGHTS)
        del tensors[min(name for name in tensors if "lora_B" in name)]
        save_file(tensors, copy / ADAPTER_WEIGHTS)
        assert "not pairs of A and B" in refusal(copy, tmp_path / "out").message


def test_a_sum_that_its_dtype_cannot_hold(tiny_folder: Path, adapter: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    tensors = {name: tensor.half() for name, tensor in load_file(base / SINGLE).items()}
    tensors["language_model.model.layers.1.mlp.router.weight"][:] = 65504
    save_file(tensors, base / SINGLE, {"format": "pt"})
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    pairs = load_file(copy / ADAPTER_WEIGHTS)
    for name in pairs:
        if "layers.1.mlp.router" in name:
            pairs[name] = torch.full_like(pairs[name], 100.0)
    save_file(pairs, copy / ADAPTER_WEIGHTS)
    with pytest.raises(UserError, match=r"router\.weight would not be finite in torch\.float16"):
        merge(copy, tmp_path / "out", base=str(base), any_base=True)
    assert not (tmp_path / "out").exists()


class TestToNF4:
    def test_it_is_the_nf4_of_what_is_merged(self, adapter: Path, tmp_path: Path) -> None:
        merge(adapter, tmp_path / "out", to_nf4=True)
        merge(adapter, tmp_path / "merged")
        quantize(str(tmp_path / "merged"), tmp_path / "expected")
        for file in sorted((tmp_path / "expected").glob("*.safetensors")):
            assert hash_file(tmp_path / "out" / file.name) == hash_file(file)
        source = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["source"]
        assert source["sha256"] == {SINGLE: hash_file(tmp_path / "merged" / SINGLE)}
        assert "merged with" in source["name"]
        assert (tmp_path / "out" / "merge.json").is_file()
        assert {path.name for path in tmp_path.iterdir()} == {"out", "merged", "expected"}

    def test_the_disk_must_hold_both(self, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        merge(adapter, tmp_path / "merged")
        size = sum(path.stat().st_size for path in (tmp_path / "merged").iterdir())
        monkeypatch.setattr("aria_finetune.checkpoint.space.free_bytes", lambda _: size + (1 << 20))
        with pytest.raises(UserError, match="are free on its disk"):
            merge(adapter, tmp_path / "out", to_nf4=True)
        assert {path.name for path in tmp_path.iterdir()} == {"merged"}
