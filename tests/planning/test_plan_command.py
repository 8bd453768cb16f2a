"""`plan` as it is typed: what it prints, its exit codes, what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aria_finetune.cli import app

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.yaml"


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", str(RECIPE), *words])
    return result.exit_code, result.output


def test_a_page_for_people(tmp_path: Path) -> None:
    code, said = run(f"output.dir={tmp_path / 'run'}", "--card", "4090")
    assert code == 0
    for part in (
        "training: 203 rows",
        "tokens of a row: least 23, median",
        "optimizer steps",
        "the model in memory on RTX 4090",
        "the fullest moment of each phase",
        "RTX 4090 has 23.5: the run fits",
        "the longest row that fits has",
        "data.cache_image_features=true",
        "PFLOP of training",
        "disk:",
    ):
        assert part in said


def test_json_for_machines(tmp_path: Path) -> None:
    code, said = run(f"output.dir={tmp_path / 'run'}", "--gpu-memory", "16", "--json")
    assert code == 0
    assert json.loads(said)["machine"]["memory"] == 16 * 2**30


def test_what_can_not_fit_is_exit_code_2_and_names_the_keys(tmp_path: Path) -> None:
    code, said = run(f"output.dir={tmp_path / 'run'}", "--gpu-memory", "0.5")
    assert code == 2
    assert "does not fit" in said
    assert "the run will not fit" in said
    assert "train.per_device_train_batch_size=1" in said


def test_rejected_rows_are_shown_before_they_are_refused(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
    bad = {"messages": [{"role": "user", "content": "2 + 2?"}]}
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in (good, bad, good, bad)))
    words = (f"data.train=[{data}]", "data.eval=[]", f"output.dir={tmp_path / 'run'}", "--gpu-memory", "8")
    code, said = run(*words)
    assert code == 3
    assert "training: 2 rows" in said
    assert "rejected: 2 empty_answer, the first rows.jsonl:2" in said or "rejected: 2 " in said
    assert "the run fits" in said
    assert run(*words, "data.max_rejects=2")[0] == 0


@pytest.mark.parametrize("words", [("--card", "gtx 970"), ("model.path=/no/such/folder",), ("--gpu-memory", "x")])
def test_what_can_not_be_planned(words: tuple[str, ...]) -> None:
    assert run(*words)[0] == 2


def test_nothing_heavy_is_imported_for_a_card() -> None:
    program = (
        "import sys; from aria_finetune import planning, cli; "
        "print(sorted({'torch', 'peft', 'trl', 'bitsandbytes', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
