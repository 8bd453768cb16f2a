"""The command line: its shape, its speed, and what a person reads when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from aria_finetune import __version__
from aria_finetune.cli import app

RECIPES = Path(__file__).parents[1] / "recipes"
ENTRY = "from aria_finetune.cli import app; app(prog_name='aria-finetune')"
FLAGS = {
    "train": {"recipe", "overrides", "--resume", "--dry-run"},
    "inspect": {"recipe", "overrides", "--rows", "--html", "--split"},
    "plan": {"recipe", "overrides", "--gpu-memory", "--card", "--json"},
    "evaluate": {
        "recipe", "overrides", "--adapter", "--merged", "--output", "--metric", "--run-code", "--blank-images",
        "--max-new-tokens", "--batch-size"
    },
    "generate": {
        "model", "prompt", "--adapter", "--image", "--video", "--document", "--system", "--from", "--output", "--resume",
        "--format", "--media-root", "--max-rejects", "--batch-size", "--max-new-tokens", "--temperature", "--top-p", "--top-k",
        "--seed", "--experts", "--experts-on", "--device", "--revision", "--image-size", "--num-frames"
    },
    "chat": {
        "model", "--adapter", "--system", "--max-new-tokens", "--temperature", "--top-p", "--top-k", "--seed", "--experts",
        "--experts-on", "--device", "--revision", "--image-size", "--num-frames"
    },
    "experts": {"recipe", "overrides", "--adapter", "--output", "--rows", "--threshold"},
    "convert": {
        "source", "output", "--format", "--media-root", "--max-rejects", "--verify", "--max-pixels", "--with", "--media",
        "--pack", "--workers", "--engine", "--column", "--answers", "--take", "--eval", "--encoding", "--converter", "--to"
    },
    "lengthen": {"recipe", "overrides", "--output"},
    "needles": {"recipe", "overrides", "--output", "--length", "--depth", "--rows"},
    "formats": {"name"},
    "quantize": {"model", "output", "--revision", "--device"},
    "merge": {
        "folders",
        "--adapter",
        "--base",
        "--revision",
        "--any-base",
        "--to",
        "--proof",
        "--device",
    },
    "export": {"source", "output", "--base", "--layout", "--license"},
    "recipes": {"name", "--copy"},
    "doctor": set(),
}  # fmt: skip


def run(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and everything printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_commands_and_flags_are_these() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = {
        name: {next((o for o in p.opts if o.startswith("--")), p.name) for p in command.params if p.name != "help"}
        for name, command in commands.items()
    }
    assert found == FLAGS


def test_help_answers_in_less_than_five_imports_of_typer() -> None:
    def seconds(code: str, *arguments: str) -> float:
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
            taken.append(time.perf_counter() - began)
        return min(taken)

    assert seconds(ENTRY, "--help") < 5 * seconds("import typer")


def test_version() -> None:
    assert run("--version") == (0, f"{__version__}\n")


def test_formats_and_recipes_are_listed() -> None:
    code, text = run("formats")
    assert code == 0
    assert {"aria", "llava", "messages"} <= {line.split()[0] for line in text.splitlines() if line}
    assert "traps" in run("formats", "llava")[1]
    assert run("formats", "lava")[0] == 2
    code, text = run("recipes")
    listed = [line.split()[0] for line in text.split("\n\n")[0].splitlines()]
    assert (code, listed) == (0, sorted(path.stem for path in RECIPES.glob("*.yaml")))
    assert run("recipes", "tiny") == (0, (RECIPES / "tiny.yaml").read_text())


def test_a_recipe_is_copied_with_its_data_and_runs_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("recipes", "tiny", "--copy")[0] == 0
    assert run("train", "tiny.yaml", "--dry-run")[0] == 0
    code, text = run("recipes", "tiny", "--copy")
    assert code == 2
    assert "here already" in text
    assert "did you mean tiny" in run("recipes", "tinny", "--copy")[1]
    assert "did you mean tiny" in run("recipes", "tinny")[1]
    assert run("recipes", "--copy")[0] == 2


def test_a_recipe_is_not_copied_over_data_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    code, text = run("recipes", "tiny", "--copy")
    assert code == 2
    assert "data/tiny" in text
    assert not (tmp_path / "tiny.yaml").exists()


def test_doctor_finds_nothing_fatal_here() -> None:
    code, text = run("doctor")
    assert code == 0, text
    assert "ok   4-bit" in text
    assert "ok   videos" in text


RECIPE = """
model: {path: tiny, device: cpu}
data: {train: [{path: data.jsonl}], image_size: 490}
train: {max_steps: 1}
"""


def question(**media: object) -> dict[str, object]:
    kind = "video" if media.get("video") else "image"
    content = [{"type": kind, "text": None}, {"type": "text", "text": "What?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "That."}]}
    return {"messages": [{"role": "user", "content": content}, answer], **media}


def text_as_image(folder: Path) -> None:
    (folder / "page.png").write_text("<html>404</html>")
    write(folder, question(images=["page.png"]))


def cut_image(folder: Path) -> None:
    Image.effect_noise((64, 64), 50).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:600])
    write(folder, question(images=["cut.png"]), question(images=["whole.png"]))


def zero_frames(folder: Path) -> None:
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.rate = 44100
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux([*stream.encode(frame), *stream.encode(None)])
    write(folder, question(video={"path": "sound.mp4", "num_frames": 2}))


def write(folder: Path, *records: object) -> None:
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


GOOD = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}

BAD_INPUT = {
    "unknown key": (lambda f: write(f, GOOD), ["train.learnin_rate=1"], 2, ["learnin_rate", "learning_rate"]),
    "wrong type": (lambda f: write(f, GOOD), ["train.max_steps=many"], 2, ["train.max_steps", "many"]),
    "missing data": (lambda _: None, [], 2, ["data.jsonl", "not found"]),
    "empty data": (lambda f: (f / "data.jsonl").write_text(""), [], 2, ["data.jsonl"]),
    "no format fits": (lambda f: write(f, {"colour": "red"}), [], 2, ["data.jsonl", "colour", "--format"]),
    "unknown format": (lambda f: write(f, GOOD), ["data.train=[{path: data.jsonl, format: lava}]"], 2, ["llava"]),
    "text named .png": (text_as_image, [], 3, ["media_unreadable", "data.jsonl:0", "max_rejects"]),
    "video without frames": (zero_frames, [], 3, ["no_video_stream", "data.jsonl:0"]),
    "too many rejects": (lambda f: write(f, GOOD, {"messages": []}), [], 3, ["1 record", "data.jsonl:1"]),
    "not Aria": (lambda f: write(f, GOOD), ["model.path=not-aria"], 2, ["not an Aria checkpoint", "llama"]),
    "no checkpoint": (lambda f: write(f, GOOD), ["model.path=./nowhere"], 2, ["no such checkpoint folder"]),
    "all too long": (lambda f: write(f, GOOD), ["data.max_tokens=16", "data.too_long=fail"], 2, ["data.jsonl:0"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
@pytest.mark.parametrize("dry", [True, False], ids=["dry-run", "train"])
def test_bad_input_is_one_message_and_leaves_nothing(
    case: str, dry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, overrides, expected, words = BAD_INPUT[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "not-aria").mkdir()
    (tmp_path / "not-aria" / "config.json").write_text('{"model_type": "llama"}')
    make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, text = run("train", "recipe.yaml", *overrides, *(["--dry-run"] if dry else []))
    assert code == expected, text
    assert "Traceback" not in text
    assert text.count("error:") == 1
    for word in words:
        assert word in text, text
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before and path != tmp_path / "runs"]
    assert left == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_cut_is_found_by_a_dry_run_and_named_in_training(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    cut_image(tmp_path)
    code, text = run("train", "recipe.yaml", "--dry-run")
    assert code == 3, text
    assert "data.jsonl:0: media_unreadable" in text
    # Headers are whole, so only the step that decodes it finds out; the run's folder stays for what it holds.
    code, text = run("train", "recipe.yaml", f"train.dataloader_num_workers={workers}", "train.max_steps=2")
    assert code == 2, text
    assert "data.jsonl:0" in text
    assert "cut.png" in text
    assert "Traceback" not in text


def test_a_missing_recipe_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    code, text = run("train", tmp_path / "mime.yaml")
    assert code == 2
    assert "mine.yaml" in text


def test_two_formats_that_fit_are_never_chosen_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    turns = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]
    write(tmp_path, {**GOOD, "conversations": turns})
    code, text = run("convert", "data.jsonl", "out")
    assert code == 2
    assert "--format" in text
    assert not (tmp_path / "out").exists()


def test_convert_accounts_for_every_record(tmp_path: Path) -> None:
    write(tmp_path, GOOD, GOOD, {"messages": []})
    code, text = run("convert", tmp_path / "data.jsonl", tmp_path / "out")
    assert code == 3
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["read"], report["written"], report["rejected"]) == (3, 2, 1)
    code, text = run("convert", tmp_path / "data.jsonl", tmp_path / "out", "--max-rejects", "1")
    assert code == 0
    assert "3 read, 2 written, 1 rejected" in text


def test_a_defect_of_ours_shows_its_traceback_and_exits_with_1() -> None:
    code = "import aria_finetune.format_help as h; h.describe = lambda name: 1 / 0\n" + ENTRY
    result = subprocess.run([sys.executable, "-c", code, "formats"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr


def test_quantize_and_what_it_refuses(tmp_path: Path) -> None:
    code, said = run("quantize", "tiny", tmp_path / "nf4")
    assert (code, said) == (0, f"the NF4 checkpoint is in {tmp_path / 'nf4'}/; name it as model.path\n")
    code, said = run("quantize", tmp_path / "nf4", tmp_path / "again")
    assert code == 2
    assert "the checkpoint is NF4 already" in said
    code, said = run("quantize", tmp_path / "nowhere", tmp_path / "out")
    assert code == 2
    assert "no such checkpoint folder" in said


GENERATE = {
    "nothing asked": ([], 2, ["nothing to answer"]),
    "two things asked": (["Hi.", "--from", "prompts.txt"], 2, ["prompt beside --from"]),
    "shares without draws": (["Hi.", "--top-p", "0.5"], 2, ["--temperature"]),
    "a picture that is not there": (["Hi.", "--image", "nowhere.png"], 2, ["media_missing", "nowhere.png"]),
    "an adapter that is not there": (["Hi.", "--adapter", "nowhere"], 2, ["adapter_config.json"]),
    "no such prompts": (["--from", "nowhere.txt"], 2, ["no such file", "nowhere.txt"]),
    "no prompt in it": (["--from", "empty.txt"], 2, ["no prompt in it"]),
    "an output of somebody else": (["--from", "prompts.txt", "--output", "mine"], 2, ["something at the output"]),
    "one to go on with": (
        ["--from", "prompts.txt", "--output", "mine", "--resume"],
        2,
        ["not a file that `generate` began"],
    ),
    "a prompt that can't be used": (
        ["--from", "bad.jsonl", "--max-new-tokens", "2"],
        3,
        ["bad.jsonl:1: bad_json", "--max-rejects"],
    ),
}


@pytest.mark.parametrize("case", GENERATE)
def test_what_generate_refuses(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, expected, words = GENERATE[case]
    monkeypatch.chdir(tmp_path)
    files = {"prompts.txt": "Hi.\n", "empty.txt": "\n", "mine": "mine\n", "bad.jsonl": '"Hi."\n{\n'}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    code, said = run("generate", "tiny", "--device", "cpu", *arguments)
    assert code == expected, said
    assert "Traceback" not in said
    assert all(word in said for word in words), said
    assert {name: (tmp_path / name).read_text() for name in files} == files
    written = {path.name for path in tmp_path.iterdir()} - files.keys()
    assert written == ({"answers.jsonl", "answers.jsonl.run.json"} if expected == 3 else set())
