"""README and docs say what is so: their blocks run, their tables match the code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from browsing import browse, needs_chromium, picture_sizes
from command_server import commands_in

from aria_finetune.cli import app
from aria_finetune.data_formats.errors import REASONS
from aria_finetune.inspection import PAGE_ROWS, TERMINAL_ROWS
from aria_finetune.planner.architecture import Architecture, VisionTower
from aria_finetune.planner.cards import find_card
from aria_finetune.planner.step import Batch
from aria_finetune.planning.setup import setup_of
from aria_finetune.recipe import Recipe, load_recipe
from aria_finetune.recipe.schema import SourceSection

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment whose `aria-finetune` and `python` are this checkout's, without network access for the hub."""
    with commands_in(tmp_path_factory.mktemp("bin")) as folder:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        yield {
            **os.environ,
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "HF_HUB_OFFLINE": "1",
        }


def run(command: str, folder: Path, shell: dict[str, str]) -> str:
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=shell, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


STEPS = re.findall(
    r"^```bash\n(.*?)^```\n\n```text\n(.*?)^```",
    (ROOT / "docs/first-run.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)
"""Each command of the page, and what it prints there."""


@dataclass(frozen=True)
class Followed:
    """The folder, empty before, in which all blocks of the README were run, and what each command of the first printed."""

    folder: Path
    printed: list[str]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory, shell: dict[str, str]) -> Followed:
    folder = tmp_path_factory.mktemp("readme")
    first, *others = blocks("bash")
    printed = [run(command, folder, shell) for command in first.splitlines()]
    for block in others:
        run(block, folder, shell)
    for block in blocks("python"):
        (folder / "block.py").write_text(block)
        run("python block.py", folder, shell)
    return Followed(folder, printed)


def test_the_first_run_prints_what_the_docs_show(followed: Followed) -> None:
    """Numbers aside, and lines that `...` stands for."""
    assert [command for command, _ in STEPS] == blocks("bash")[0].splitlines(keepends=True)
    for (command, due), printed in zip(STEPS, followed.printed, strict=True):
        shown = printed.replace(str(followed.folder), "/home/ada/work").splitlines()
        assert re.fullmatch(pattern_of(due), "".join(f"{without_numbers(line)}\n" for line in shown)), (
            f"{command}printed\n{printed}"
        )


def pattern_of(due: str) -> str:
    lines = (without_numbers(line) for line in due.splitlines())
    return "".join(r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"\n" for line in lines)


def without_numbers(line: str) -> str:
    """A line without its numbers, and with a space for each run of them."""
    return " ".join(re.sub(r"\d[\d.,:]*(?:e[-+]\d+)?", "0", line).split())


@needs_chromium
def test_the_page_of_the_readme_s_evaluation_shows_its_pictures_in_a_browser(followed: Followed) -> None:
    page = followed.folder / "runs/first/evaluation/evaluation.html"
    with browse(page) as opened:
        assert opened.said == opened.asked == []
        pictures = opened.page.locator("img").all()
        assert len(pictures) == 64
        assert all(picture.is_visible() for picture in pictures)
        assert all(width > 0 and height > 0 for width, height in picture_sizes(opened.page))


def test_readme_blocks_run_in_an_empty_folder_and_the_model_learns_to_see(followed: Followed) -> None:
    tmp_path = followed.folder
    scores = json.loads((tmp_path / "runs/first/evaluation/evaluation.json").read_text())
    assert scores["base"]["accuracy"] <= 0.5
    change = scores["differences"]["adapter"]["exact"]
    assert change["difference"] == scores["adapter"]["accuracy"] - scores["base"]["accuracy"]
    assert change["interval"][0] > 0.3
    assert change["p_value"] < 1e-6
    assert scores["adapter"]["accuracy"] >= 0.9
    assert scores["adapter_blank"]["accuracy"] <= 0.5 + 1 / 64
    assert scores["rows"] == scores["scored"] == 64
    predictions = [json.loads(line) for line in (tmp_path / "runs/first/evaluation/predictions.jsonl").open()]
    assert sum(entry["correct"]["adapter"] for entry in predictions) == scores["adapter"]["correct"]
    exported = {path.name for path in (tmp_path / "exported").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= exported
    assert json.loads((tmp_path / "photos" / "report.json").read_text())["written"] == 4


def test_docs_of_generate_show_what_is_printed(tmp_path: Path, shell: dict[str, str]) -> None:
    text = (ROOT / "docs/generate.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```bash\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", text, re.MULTILINE | re.DOTALL)
    assert len(shown) == 5
    for command, due in shown:
        printed = run(command, tmp_path, shell).replace(str(tmp_path), "/home/ada/work")
        assert not due or printed == due
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name in ("generate", "chat"):
        options = [option for parameter in commands[name].params for option in parameter.opts if option[:2] == "--"]
        assert [option for option in options if option not in text and option not in ("--help", "--document")] == []


def test_the_recipe_for_the_real_aria_runs_on_the_tiny_one(tmp_path: Path, shell: dict[str, str]) -> None:
    data = tmp_path / "my-data"
    data.mkdir()
    shutil.copy(ROOT / "recipes/data/tiny/chat.jsonl", data / "train.jsonl")
    shutil.copytree(ROOT / "recipes/data/tiny/photos", data / "photos")
    run("aria-finetune recipes aria --copy", tmp_path, shell)
    run("aria-finetune train aria.yaml model.path=tiny --dry-run", tmp_path, shell)
    small = (
        "model.path=tiny train.max_steps=2 train.gradient_accumulation_steps=2 train.save_steps=1 train.eval_steps=1"
    )
    run(f"aria-finetune train aria.yaml {small}", tmp_path, shell)
    assert (tmp_path / "runs/aria/adapter/adapter_model.safetensors").is_file()


def test_the_recipe_for_long_rows_runs_on_the_tiny_aria(tmp_path: Path, shell: dict[str, str]) -> None:
    """The commands in its head, on drawings whose rows are joined: 64 pictures are four rows of up to 2,500 tokens."""
    data = tmp_path / "my-data"
    data.mkdir()
    shutil.copy(ROOT / "recipes/data/tiny/warmth-eval.jsonl", data / "train.jsonl")
    shutil.copytree(ROOT / "recipes/data/tiny/shapes", data / "shapes")
    run("aria-finetune recipes long --copy", tmp_path, shell)
    head = (tmp_path / "long.yaml").read_text().split("\n\n")[0]
    commands: list[str] = re.findall(r"^#   (aria-finetune .+?)(?:  +#.*)?$", head, re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["recipes", "lengthen", "plan", "train"]
    small = "model.path=tiny data.max_tokens=2500"
    run(commands[1].replace("long.yaml", f"long.yaml {small}"), tmp_path, shell)
    assert json.loads((data / "long" / "report.json").read_text())["written"] == 4
    assert "the run fits" in run(f"{commands[2]} {small}", tmp_path, shell)
    run(f"{commands[3]} {small} --dry-run", tmp_path, shell)
    run(f"{commands[3]} {small} train.max_steps=1 train.save_steps=1 train.eval_steps=1", tmp_path, shell)
    described = json.loads((tmp_path / "runs/long/run.json").read_text())
    assert described["rows"]["train"]["rows"] == 3
    assert described["image_features"]
    run(f"aria-finetune needles long.yaml {small} --length 1024 --depth 50 --rows 1", tmp_path, shell)
    run(
        f"aria-finetune evaluate long.yaml {small} data.eval=needles data.eval_fraction=null --max-new-tokens 1",
        tmp_path,
        shell,
    )
    assert (tmp_path / "evaluation/needles.png").is_file()


def test_the_recipe_for_long_rows_fits_the_card_that_it_is_for() -> None:
    """65,536 tokens, most of them of 490 pictures, on the real Aria: the plan of the recipe as it stands, below half of an H100."""
    recipe = load_recipe(ROOT / "recipes/long.yaml", [])
    assert recipe.data.max_tokens == 65_536
    tower = VisionTower(27, 1152, 4304, 16, 14, 980)
    real = Architecture(28, 2560, 20, 20, 128, 64, 6, 1664, 2, 100_352, tower)
    setup = setup_of(recipe, real, "cuda", pictures=True)
    peak = setup.peak(Batch(1, 65_536, 4096, {490: 490})).bytes
    assert peak < 0.5 * find_card("h100").memory_gib * 2**30


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) < 250
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_readme_and_docs_name_every_command_and_the_options_of_inspect() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    table = README.split("## Commands\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([a-z]+)", table, re.MULTILINE) == list(commands)
    text = (ROOT / "docs/inspect.md").read_text(encoding="utf-8")
    options = [option for parameter in commands["inspect"].params for option in parameter.opts if option[:2] == "--"]
    assert all(f"| `{option} " in text for option in options if option != "--help")
    assert f"{TERMINAL_ROWS} in the terminal, {PAGE_ROWS} on a page" in text


def test_the_table_of_reasons_is_the_codes() -> None:
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", text.split("## Reason codes")[1], re.MULTILINE))
    assert table == REASONS


def test_docs_name_every_key_of_the_recipe() -> None:
    text = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
    for section, field in Recipe.model_fields.items():
        assert f"## {section}\n" in text
        part = text.split(f"## {section}\n")[1].split("\n## ")[0]
        for key in field.annotation.model_fields:  # type: ignore[union-attr]
            assert f"`{key}`" in part, f"{section}.{key}"
    assert all(f"`{key}`" in text for key in SourceSection.model_fields)
