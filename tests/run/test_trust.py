"""Nothing is believed: pickles and foreign code stay shut, secrets stay inside, the network stays untouched.

One process trains, evaluates, merges, exports and fails in several ways among canaries and planted secrets; the
tests look at what it printed, wrote, opened and connected to.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import AUDIT, MODULES, PICKLES, OpenWatch, bait, make_canaries

from aria_finetune.tiny import CHECKPOINT

if sys.platform != "linux":
    pytest.skip("inotify is Linux's", allow_module_level=True)

ROOT = Path(__file__).parents[2]
DATA = ROOT / "recipes" / "data" / "tiny"
SECRETS = {
    "HF_TOKEN": "hf_" + "plantedPLANTEDplantedPLANTED012345",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYplanted",
    "MY_SERVICE_PASSWORD": 'correct "horse" battery',
}
URL_SECRETS = ("planted-user", "planted-pass", "plantedsignature", "plantedtoken")
URL = "https://planted-user:planted-pass@127.0.0.1:9/rows.jsonl?page=2&X-Amz-Signature=plantedsignature"
NO_REJECTS, ALL_REJECTS = "data.max_rejects=0", "data.max_rejects=100"


def row(**media: Any) -> dict[str, Any]:
    kind = "video" if "video" in media else "image"
    content = [{"type": kind, "text": None}, {"type": "text", "text": f"What? {SECRETS['HF_TOKEN']}"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": f"That. {URL}"}]}
    return {"messages": [{"role": "user", "content": content}, answer], **media}


def hostile(outside: Path) -> list[tuple[dict[str, Any], str]]:
    """Rows whose media must not be opened, and why they are rejected."""
    return [
        (row(images=[str(outside / "secret.png")]), "media_unsafe_path"),
        (row(images=["../outside/secret.png"]), "media_unsafe_path"),
        (row(images=[f"file://{outside}/secret.png"]), "media_unsafe_path"),
        (row(images=["good.png\0.png"]), "media_unsafe_path"),
        (row(images=[URL.replace("rows.jsonl", "x.png")]), "media_remote"),
        (row(images=["http://169.254.169.254/latest/meta-data?token=plantedtoken"]), "media_remote"),
        (row(video={"path": str(outside / "secret.mp4"), "num_frames": 2}), "media_unsafe_path"),
        (row(video={"path": "../outside/secret.mp4", "num_frames": 2}), "media_unsafe_path"),
        (row(video={"path": "rtsp://planted-user:planted-pass@127.0.0.1:9/x", "num_frames": 2}), "media_remote"),
        (row(images=[f"{SECRETS['MY_SERVICE_PASSWORD']}.png"]), "media_missing"),
        (row(images=["x" * 90 + SECRETS["AWS_SECRET_ACCESS_KEY"]]), "media_missing"),
    ]


@dataclass(frozen=True)
class Seen:
    """What the process did: exit codes by step, whether it asked libraries to stay offline, prints, openings, ..."""

    codes: list[int]
    offline: bool
    printed: str
    opened: set[Path]
    events: list[list[Any]]
    folder: Path
    output: Path

    def named(self, event: str) -> list[list[Any]]:
        return [entry for entry in self.events if entry[0] == event]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("trust")
    output = folder / "output"
    canaries = make_canaries(folder / "canaries", folder / "marks")
    outside = plant_data(folder)
    shutil.copytree(CHECKPOINT, base(folder))
    bait(base(folder), folder / "canaries")
    (folder / "recipe.yaml").write_text(recipe(folder, output / "run"))
    (folder / "plan.json").write_text(json.dumps(plan(folder, output)))
    watch = OpenWatch([*canaries, *outside])
    child = subprocess.run(
        [sys.executable, Path(__file__).with_name("planted.py"), folder / "plan.json"],
        cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    printed = child.stdout + child.stderr
    assert child.returncode == 0, printed
    ended = json.loads((folder / "ended.json").read_text())
    return Seen(ended["codes"], ended["offline"], printed, watch.opened(), events(folder), folder, output)


def plant_data(folder: Path) -> list[Path]:
    """Rows with good and with hostile media; returns the files that must not be opened."""
    inside, outside = folder / "data", folder / "outside"
    inside.mkdir()
    outside.mkdir()
    photo = next((DATA / "photos").glob("*.*"))
    shutil.copy(photo, inside / photo.name)
    shutil.copy(photo, outside / "secret.png")
    shutil.copy(DATA / "ball.mp4", outside / "secret.mp4")
    rows = [*(bad for bad, _ in hostile(outside)), *(row(images=[photo.name]) for _ in range(4))]
    (inside / "rows.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    return [outside / "secret.png", outside / "secret.mp4"]


def base(folder: Path) -> Path:
    """A place that says a secret, which then stands in recipe, model and adapter."""
    return folder / SECRETS["HF_TOKEN"] / "base"


def recipe(folder: Path, run: Path) -> str:
    return f"""
# fetched from {URL} with {SECRETS["HF_TOKEN"]}
model: {{path: {base(folder)}, device: cpu}}
data:
  train: [{{path: data/rows.jsonl}}]
  eval: [{{path: {DATA}/chat.jsonl}}]
  image_size: 490
  max_rejects: 100
train:
  max_steps: 2
  per_device_train_batch_size: 1
  gradient_accumulation_steps: 1
  dataloader_num_workers: 2
  eval_steps: 2
  save_steps: 1
output: {{dir: {run}}}
"""


def plan(folder: Path, output: Path) -> dict[str, Any]:
    # An adapter from elsewhere: beside its run.json one that was changed is refused.
    run, adapter = output / "run", output / "handed-on"
    elsewhere = f"output.dir={output}/failed"
    return {
        "canaries": str(folder / "canaries"),
        "ended": str(folder / "ended.json"),
        "steps": [
            {"run": ["train", "recipe.yaml"]},
            {"reopen": str(run)},
            {"bait": str(run / "checkpoint-1"), "configs": False},
            {"bait": str(run / "checkpoint-9"), "configs": True},
            {"run": ["train", "recipe.yaml", "--resume"]},
            {"copy": str(run / "adapter"), "to": str(adapter)},
            {"bait": str(adapter), "configs": True},
            {"run": ["evaluate", "recipe.yaml", f"--adapter={adapter}", f"--output={output}/scores", *SHORT]},
            {"run": ["merge", str(adapter), f"{output}/merged", f"--base={base(folder)}"]},
            {"run": ["export", str(adapter), f"{output}/exported", f"--base={URL}"]},
            {"run": ["convert", "data/rows.jsonl", f"{output}/converted", "--max-rejects=100"]},
            {"run": ["convert", "data/rows.jsonl", f"{output}/refused"]},
            {"run": ["train", "recipe.yaml", NO_REJECTS, elsewhere]},
            {"run": ["train", "recipe.yaml", f"data.train=[{{path: '{URL}'}}]", elsewhere]},
            {"run": ["--debug", "train", "recipe.yaml", f"data.train=[{{path: '{URL}'}}]", elsewhere]},
            {"run": ["train", "recipe.yaml", f"model.path={folder}/{SECRETS['HF_TOKEN']}", elsewhere]},
            {"run": ["evaluate", "recipe.yaml", f"--adapter={URL}", f"--output={output}/failed"]},
        ],
    }


SHORT = ("--max-new-tokens=2",)
CODES = [0, 0, 0, 0, 0, 0, 3, 3, 2, 2, 2, 2]


def environment(folder: Path) -> dict[str, str]:
    """Secrets and an audit from the start; the hub's clients are not told to stay offline, that is what is tested."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(AUDIT)
    kept = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    paths = [folder / "site", ROOT, folder / "canaries", os.environ.get("PYTHONPATH", "")]
    return {
        **kept,
        **SECRETS,
        "PYTHONPATH": os.pathsep.join(map(str, filter(None, paths))),
        "AUDIT_LOG": str(folder / "audit.jsonl"),
        "HF_HOME": str(folder / "hub"),
    }


def events(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def connections(entries: list[list[Any]]) -> list[list[Any]]:
    """All that is not between processes of this machine, as loader workers talk to each other."""
    return [entry for entry in entries if entry[0].startswith("socket.") and entry[1] != "AF_UNIX"]


@pytest.mark.parametrize("name", PICKLES)
def test_a_canary_sings_when_it_is_unpickled_and_when_it_is_opened(name: str, tmp_path: Path) -> None:
    make_canaries(tmp_path / "canaries", tmp_path / "marks")
    watch = OpenWatch([tmp_path / "canaries" / name])
    assert watch.opened() == set()
    torch.load(tmp_path / "canaries" / name, weights_only=False)  # noqa: TID251 (the danger itself)
    assert (tmp_path / "marks" / name).is_dir()
    assert watch.opened() == {tmp_path / "canaries" / name}


@pytest.mark.parametrize("name", MODULES)
def test_a_canary_sings_when_it_is_imported(name: str, tmp_path: Path) -> None:
    make_canaries(tmp_path / "canaries", tmp_path / "marks")
    spec = importlib.util.spec_from_file_location("canary", tmp_path / "canaries" / name)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert (tmp_path / "marks" / name).is_dir()


def test_every_step_ended_as_it_should(seen: Seen) -> None:
    assert seen.codes == CODES, seen.printed
    assert "going on from checkpoint-1" in seen.printed
    assert "skipped checkpoint-9" in seen.printed
    assert json.loads((seen.output / "run" / "run.json").read_text())["status"] == "finished"


def test_no_pickle_and_no_foreign_code_is_opened(seen: Seen) -> None:
    assert not (seen.folder / "marks").exists()
    assert seen.opened == set()
    assert "trust_remote_code" not in seen.printed
    files = [Path(entry[2][0]) for entry in seen.named("open")]
    assert len(files) > 1000
    assert [file for file in files if file.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}] == []


def test_a_connection_would_be_seen(tmp_path: Path) -> None:
    code = "import socket; socket.socket().connect_ex(('localhost', 9)); socket.getaddrinfo('localhost', 9)"
    subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), check=True)
    assert [entry[0] for entry in connections(events(tmp_path))] == ["socket.connect", "socket.getaddrinfo"]


def test_nothing_is_connected_to(seen: Seen) -> None:
    assert connections(seen.events) == []
    assert seen.offline


def test_hostile_media_are_rejected_by_reason(seen: Seen) -> None:
    expected = [(number, reason) for number, (_, reason) in enumerate(hostile(seen.folder / "outside"))]
    for file in ("run/rejects.jsonl", "converted/rejects.jsonl"):
        rejects = [json.loads(line) for line in (seen.output / file).read_text().splitlines()]
        assert [(reject["ordinal"], reject["reason"]) for reject in rejects] == expected


def test_no_secret_is_printed_or_written(seen: Seen) -> None:
    planted = [spelling.encode() for secret in (*SECRETS.values(), *URL_SECRETS) for spelling in spellings(secret)]
    written = [path for path in seen.output.rglob("*") if path.is_file() and not is_data(path)]
    assert len(written) > 30
    for path in written:
        assert [secret for secret in planted if secret in path.read_bytes()] == [], path
    assert [secret for secret in planted if secret in seen.printed.encode()] == [], seen.printed


def test_what_was_redacted_still_says_what_was_wrong(seen: Seen) -> None:
    assert "https:/***@127.0.0.1:9/rows.jsonl?page=2&X-Amz-Signature=***" in seen.printed
    assert "Traceback" in seen.printed
    assert json.loads((seen.output / "exported" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "https://***@127.0.0.1:9/rows.jsonl?page=2&X-Amz-Signature=***"
    )


def test_what_the_model_learns_from_is_left_as_it_is(seen: Seen) -> None:
    lines = (seen.output / "converted" / "data-00000.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert all(SECRETS["HF_TOKEN"] in line and URL in line for line in lines)


def spellings(secret: str) -> set[str]:
    return {secret, json.dumps(secret)[1:-1], secret.replace("/", "%2F"), secret.replace(" ", "%20")}


def is_data(path: Path) -> bool:
    return path.name.startswith("data-")


def test_a_defect_of_ours_does_not_print_a_secret_either() -> None:
    code = (
        "import os, aria_finetune.format_help as h\n"
        f"def describe(name): raise RuntimeError({URL!r} + os.environ['MY_SERVICE_PASSWORD'])\n"
        "h.describe = describe\n"
        "from aria_finetune.cli import app; app(prog_name='aria-finetune')"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, "formats"],
        env={**os.environ, **SECRETS}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 1
    assert "RuntimeError: https://***@127.0.0.1:9/rows.jsonl?page=2&X-Amz-Signature=***" in child.stderr
    assert not [secret for secret in (*SECRETS.values(), *URL_SECRETS) if secret in child.stderr + child.stdout]
