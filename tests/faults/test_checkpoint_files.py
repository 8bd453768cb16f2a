"""Every file of a checkpoint absent, empty, cut or with a flipped bit: never used, an older one is, said aloud."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fault_runs import result
from forking import Forkery
from safetensors.torch import load, load_file

from aria_finetune.checkpoint.retention import newest_sealed

FILES = (
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "manifest.json",
    "processor_config.json",
    "base.json",
    "rope.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
    "training_state.json",
    "training_state.safetensors",
)
CUTS, FLIPS = 10, 20
ABSENT = None
Broken = tuple[str, bytes | None]
"""How a file was broken, and what it holds then; `ABSENT` for nothing at all."""


def damages(content: bytes, chance: random.Random) -> Iterator[Broken]:
    """Every damage of the brief: at random places, and at the first and the last."""
    yield "absent", ABSENT
    yield "empty", b""
    for length in [1, len(content) - 1, *(chance.randrange(2, len(content) - 1) for _ in range(CUTS - 2))]:
        yield f"cut to {length}", content[:length]
    places = [0, len(content) - 1, *(chance.randrange(len(content)) for _ in range(FLIPS))]
    for place in places:
        yield f"flipped at {place}", flipped(content, place, chance.randrange(8))


def flipped(content: bytes, place: int, bit: int) -> bytes:
    """The same bytes with one bit turned over."""
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def put(file: Path, content: bytes | None) -> None:
    """Write or remove a file."""
    if content is ABSENT:
        file.unlink()
    else:
        file.write_bytes(content)


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run as it would be, had it been killed before its adapter was written."""
    run = tmp_path / "runs" / "run"
    shutil.copytree(undisturbed, run)
    shutil.rmtree(run / "adapter")
    described = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**described, "status": "stopped"}))
    return run


def test_the_files_of_a_checkpoint_are_those_that_are_broken_here(undisturbed: Path) -> None:
    for step in (9, 12):
        folder = undisturbed / f"checkpoint-{step}"
        assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_with_a_damaged_file_is_never_chosen(run: Path, name: str) -> None:
    newest, older = run / "checkpoint-12", run / "checkpoint-9"
    content = (newest / name).read_bytes()
    tried = list(damages(content, random.Random(name)))
    assert len(tried) == 2 + CUTS + 2 + FLIPS
    for how, broken in tried:
        assert broken != content
        put(newest / name, broken)
        chosen, skipped = newest_sealed(run)
        assert chosen == older, how
        assert [(entry.folder, name in entry.reason) for entry in skipped] == [(newest, True)], how
        put(newest / name, content)
    assert newest_sealed(run) == (newest, [])


def test_without_seals_a_flipped_bit_would_be_trained_on(run: Path) -> None:
    """So that the tests here can fail: safetensors itself sees nothing wrong."""
    file = run / "checkpoint-12" / "adapter_model.safetensors"
    content = file.read_bytes()
    sound = load(content)
    file.write_bytes(flipped(content, len(content) - 1, 6))
    loaded = load_file(file)
    assert loaded.keys() == sound.keys()
    assert sum(not torch.equal(loaded[name], sound[name]) for name in sound) == 1


def examples(*, soak: bool) -> list[tuple[str, str]]:
    """Files and damages that are tried through the command line."""
    few = [("adapter_model.safetensors", "flipped"), ("training_state.safetensors", "absent"), ("manifest.json", "cut")]
    return [(name, how) for name in FILES for how in ("absent", "empty", "cut", "flipped")] if soak else few


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "how" in metafunc.fixturenames:
        metafunc.parametrize(("name", "how"), examples(soak=metafunc.config.getoption("--soak")))


def test_the_run_goes_on_from_the_older_one_and_says_so(
    forkery: Forkery, write_recipe: Callable[..., Path], undisturbed: Path, run: Path, name: str, how: str
) -> None:
    file = run / "checkpoint-12" / name
    chance = random.Random(name)
    put(file, chance.choice([broken for way, broken in damages(file.read_bytes(), chance) if way.startswith(how)]))
    reason = newest_sealed(run)[1][0].reason
    resumed = forkery.run("train", str(write_recipe(run.parents[1])), "--resume")
    assert resumed.code == 0, resumed.said
    assert f"skipped checkpoint-12: {reason}" in resumed.said
    assert "going on from checkpoint-9, sealed after step 9" in resumed.said
    assert result(run) == result(undisturbed)
    assert newest_sealed(run) == (run / "checkpoint-12", [])


def test_a_run_without_a_sound_checkpoint_starts_anew_and_keeps_the_new_ones(
    forkery: Forkery, write_recipe: Callable[..., Path], undisturbed: Path, run: Path
) -> None:
    """Broken ones of the right sizes are never kept in the place of a new one."""
    for step in (9, 12):
        file = run / f"checkpoint-{step}" / "adapter_model.safetensors"
        put(file, flipped(file.read_bytes(), 5000, 3))
    recipe = str(write_recipe(run.parents[1]))
    stopped = forkery.run("train", recipe, "--resume", strike={"at": "update", "count": 7, "signals": [signal.SIGTERM]})
    assert stopped.code == 128 + signal.SIGTERM, stopped.said
    for step in (9, 12):
        assert f"skipped checkpoint-{step}: adapter_model.safetensors was changed" in stopped.said
    assert "training starts at its beginning" in stopped.said
    assert newest_sealed(run) == (run / "checkpoint-7", [])
    assert (run / "checkpoint-6").exists()
    resumed = forkery.run("train", recipe, "--resume")
    assert resumed.code == 0, resumed.said
    assert result(run) == result(undisturbed)
