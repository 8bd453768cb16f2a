"""What the libraries are told before they are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aria_finetune.libraries import names_local_model

READ = (
    "from aria_finetune.libraries import prepare_libraries; prepare_libraries(offline={offline}, debug={debug})\n"
    "import os, huggingface_hub.constants as hub, datasets.config as data\n"
    "print(hub.HF_HUB_OFFLINE, data.HF_HUB_OFFLINE, hub.HF_HUB_DISABLE_TELEMETRY, os.environ['WANDB_CONSOLE'])\n"
)


@pytest.mark.parametrize(
    ("offline", "debug", "variables", "said"),
    [
        (True, False, {}, "True True True off"),
        (True, True, {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}, "True True True off"),
        (False, True, {}, "False False True off"),
        (False, True, {"HF_HUB_OFFLINE": "1", "WANDB_CONSOLE": "auto"}, "True True True auto"),
    ],
)
def test_the_hub_is_told_to_stay_offline_only_where_it_is_not_needed(
    offline: bool, debug: bool, variables: dict[str, str], said: str
) -> None:
    kept = {name: value for name, value in os.environ.items() if "OFFLINE" not in name and "WANDB" not in name}
    code = READ.format(offline=offline, debug=debug)
    child = subprocess.run(
        [sys.executable, "-c", code], env=kept | variables, capture_output=True, text=True, check=False
    )
    assert child.stdout.strip() == said, child.stderr


@pytest.mark.parametrize(
    ("path", "local"),
    [("tiny", True), (".", True), ("~", True), ("rhymes-ai/Aria", False), ("./nowhere", False), ("recipe.yaml", False)],
)
def test_a_local_model_is_the_tiny_one_or_a_folder(
    path: str, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("")
    assert names_local_model(path) is local


@pytest.mark.parametrize(
    ("before", "after"), [("", "True True"), ("import torch", "True False"), ("gc.disable()", "False False")]
)
def test_imports_are_quick_once(before: str, after: str) -> None:
    """Collected in between, frozen behind it; where torch was there, or somebody wants no collection, nothing is changed."""
    code = (
        f"import gc\n{before}\nfrom aria_finetune.libraries import quick_imports\n"
        "with quick_imports():\n    import fractions\nprint(gc.isenabled(), gc.get_freeze_count() > 1000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == after
