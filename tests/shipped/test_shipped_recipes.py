"""Every recipe for a task runs as its head says: on data in their upstream layout, converted by the commands in the head,
planned at the real size for both cards, trained for two steps on the tiny Aria, and evaluated.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_heads import CARDS, RECIPES, TASKS, Head, peak_bytes
from transformers import AriaConfig
from typer.testing import CliRunner
from upstream_layouts import LAYOUTS

from aria_finetune.cli import app
from aria_finetune.data_formats.record import Record
from aria_finetune.libraries import prepare_libraries
from aria_finetune.metrics.registry import choose
from aria_finetune.planner.cards import find_card
from aria_finetune.recipe import load_recipe
from aria_finetune.tiny import CHECKPOINT

SMALL = (
    "model.path=tiny", "model.device=cpu", "train.max_steps=2", "train.per_device_train_batch_size=1",
    "train.gradient_accumulation_steps=1", "train.dataloader_num_workers=0",
)  # fmt: skip
ROWS = {
    "captions": (10, 5), "chartqa": (4, 4), "code": (8, 1), "docvqa": (3, 1), "nextqa": (2, 1), "nlvr2-490": (3, 2),
    "nlvr2-980": (3, 2), "pdf": (3, 1), "refcoco": (3, 1), "scenes": (2, 1), "text": (3, 1),
}  # fmt: skip
"""Rows of training, and of evaluation, that the layouts hold."""
RIGHT = {
    "captions": ("A red box, said a person 0.",),
    "chartqa": ("0.57",),
    "code": ('```python\ndef double(x: int) -> int:\n    """Twice x."""\n    return 2 * x\n```',),
    "docvqa": ("red", "Red"),
    "nextqa": ("B",),
    "nlvr2-490": ("No",),
    "nlvr2-980": ("No",),
    "pdf": ("2", "two"),
    "refcoco": ("(250,250),(749,749)",),
    "scenes": ("[00:00 - 00:01] It is dark.\n[00:01 - 00:02] It grows light.",),
    "text": ("B", "the Sun", "B. the Sun"),
}
"""Answers that are right for the first row of evaluation."""
METRIC = {
    "captions": "captions", "chartqa": "relaxed", "code": "code", "docvqa": "anls", "nextqa": "choice",
    "nlvr2-490": "yes_no", "nlvr2-980": "yes_no", "pdf": "anls", "refcoco": "box", "scenes": "moments", "text": "choice",
}  # fmt: skip
"""By what rows of evaluation are scored where nobody says."""


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    prepare_libraries()


@pytest.fixture(scope="session")
def real_aria(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config.json of the real Aria, a tokenizer and no weight: all that a plan reads of a model."""
    folder = tmp_path_factory.mktemp("real") / "aria"
    folder.mkdir()
    for file in CHECKPOINT.iterdir():
        if file.suffix in {".json", ".jinja"}:
            (folder / file.name).write_bytes(file.read_bytes())
    config = AriaConfig(
        text_config={
            "vocab_size": 100_352, "hidden_size": 2560, "intermediate_size": 1664, "num_hidden_layers": 28,
            "num_attention_heads": 20, "num_key_value_heads": 20, "moe_num_experts": 64, "moe_topk": 6,
            "moe_num_shared_experts": 2, "max_position_embeddings": 65_536,
        },
        vision_config={
            "model_type": "idefics3_vision", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "image_size": 980, "patch_size": 14,
        },
        projector_patch_to_query_dict={1225: 128, 4900: 256},
    )  # fmt: skip
    config.save_pretrained(folder)
    return folder


def run(*words: str) -> str:
    """What a command printed; it must end well."""
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}\n{result.exception!r}"
    return result.output


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_recipe_runs_as_its_head_says(
    name: str, tmp_path: Path, real_aria: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, make = LAYOUTS[name]
    (tmp_path / "datasets" / folder).mkdir(parents=True)
    make(tmp_path / "datasets" / folder)
    head, file = Head.of(name), f"{name}.yaml"
    run("recipes", name, "--copy")
    for command in head.commands:
        words = shlex.split(command)
        if words[:2] == ["aria-finetune", "convert"]:
            run(*words[1:], "--workers", "1")
        elif words[0] == "python":
            subprocess.run([sys.executable, *words[1:]], check=True)

    (first, *_) = load_recipe(Path(file)).data.eval
    record = json.loads((tmp_path / first.path / "data-00000.jsonl").read_text().splitlines()[0])
    assert tuple(record["references"]) == RIGHT[name]
    assert choose(Record.from_dict(record)) == METRIC[name]

    for card, machine in CARDS.items():
        planned = run("plan", file, f"model.path={real_aria}", *head.overrides(card), "--card", machine, "--json")
        plan = json.loads(planned)
        assert (plan["rows"]["train"]["rows"], plan["rows"]["eval"]["rows"]) == ROWS[name]
        assert plan["fits"]
        assert not plan["tight"]

    plan_line, train_line, evaluate_line = (shlex.split(command)[1:] for command in head.commands[-3:])
    assert [plan_line[0], train_line[0], evaluate_line[0]] == ["plan", "train", "evaluate"]
    assert "the run fits" in run(*plan_line, *SMALL)
    run(*train_line, "--dry-run", *SMALL)
    assert not (tmp_path / "runs" / name).exists()
    run(*train_line, *SMALL)
    described = json.loads((tmp_path / "runs" / name / "run.json").read_text())
    assert described["rows"]["train"]["rows"] == ROWS[name][0]
    assert described["steps"] == 2
    run(*evaluate_line, *SMALL, "--max-new-tokens", "2")
    scores = json.loads((tmp_path / "runs" / name / "evaluation" / "evaluation.json").read_text())
    asked = 1 if name == "captions" else ROWS[name][1]  # five captions of one picture are asked for once
    assert scores["rows"] == scores["scored"] == asked
    assert {"base", "adapter"} <= scores.keys()


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("name", TASKS)
def test_the_longest_rows_that_a_recipe_allows_fit_the_card(name: str, card: str) -> None:
    """Micro-batches full to the last token, all of them in the loss, and in all rows of the update pictures to the limit."""
    assert peak_bytes(name, card) < 0.85 * find_card(CARDS[card]).memory_gib * 2**30


@pytest.mark.parametrize("name", TASKS)
def test_a_head_says_all_that_a_reader_needs(name: str) -> None:
    head = Head.of(name)
    assert head.said.keys() == {"Metric", "Published", "24 GB", "80 GB"}
    assert head.said["Published"] == "none" or re.search(r"\(\S+\.\S+/.+\)", head.said["Published"])
    assert any(command.startswith("aria-finetune train") for command in head.commands)


def test_every_shipped_recipe_is_tested() -> None:
    """The other two in tests/test_docs.py, and `long` there too."""
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*TASKS, "aria", "tiny"}


def test_an_update_is_of_sixteen_rows_on_every_card() -> None:
    """So that what a recipe gives does not hang on the card."""
    for name in LAYOUTS:
        for card in CARDS:
            train = load_recipe(RECIPES / f"{name}.yaml", Head.of(name).overrides(card)).train
            assert train.per_device_train_batch_size * train.gradient_accumulation_steps == 16
