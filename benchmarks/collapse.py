"""Two runs of the tiny Aria whose routers are pushed toward one group of experts, with the balance loss of groups and without.

    python benchmarks/collapse.py --steps 40 --picture docs/collapse.png

The push is a loss of its own, that rewards the probability of the first group in every layer; both runs have it, on the same rows.
Printed as JSON: by run, the lowest entropy of a layer's load at each step, and the largest share of the first group.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aria_finetune.libraries import prepare_libraries

prepare_libraries()

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from rich.console import Console  # noqa: E402
from torch.nn import functional  # noqa: E402

from aria_finetune.material import prepare  # noqa: E402
from aria_finetune.model.routing_losses import LossWeights, with_loss  # noqa: E402
from aria_finetune.model.routing_watch import RoutingWatch  # noqa: E402
from aria_finetune.progress import ProgressReport  # noqa: E402
from aria_finetune.recipe import load_recipe  # noqa: E402
from aria_finetune.run_folder import open_run_folder  # noqa: E402
from aria_finetune.trainer import RoutingAccount  # noqa: E402
from aria_finetune.training import build_model, build_trainer  # noqa: E402

RECIPE = Path(__file__).parent.parent / "recipes" / "tiny.yaml"
GROUP = 8
PUSH = 5.0
"""Coefficient of the push, and of the balance loss where there is one ten times as much."""
BALANCE = 10 * PUSH
NAMES = {0.0: "without the balance loss", BALANCE: f"with moe.balance_loss: {BALANCE:g}, groups of {GROUP}"}


class PushedWatch(RoutingWatch):
    """A watch whose routers are also rewarded for the first group."""

    def see(
        self,
        layer: int,
        tokens_TH: torch.Tensor,
        logits_TE: torch.Tensor,
        weights_TK: torch.Tensor,
        index_TK: torch.Tensor,
    ) -> torch.Tensor:
        """As its base, and the push."""
        weights_TK = super().see(layer, tokens_TH, logits_TE, weights_TK, index_TK)
        reward = functional.softmax(logits_TE, dim=-1)[:, :GROUP].sum(-1).mean()
        return with_loss(weights_TK, -reward, PUSH)


def main() -> int:
    """Train twice, print, draw."""
    arguments = parse(sys.argv[1:])
    runs = {NAMES[balance]: train(balance, arguments.steps) for balance in (0.0, BALANCE)}
    if arguments.picture:
        draw(runs, arguments.picture)
    print(json.dumps(runs))
    return 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Routers pushed to collapse, with the balance loss and without.")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each run (default 40)")
    parser.add_argument("--picture", type=Path, help="a PNG file for both curves")
    return parser.parse_args(words)


def train(balance: float, steps: int) -> dict[str, list[float]]:
    """One run; by logged step what became of the routing."""
    lines: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        keys = (
            f"train.max_steps={steps}", "train.logging_steps=1", "train.eval_strategy=no", "train.save_strategy=no",
            "train.learning_rate=5e-3", "train.lr_scheduler_type=constant", "train.dataloader_num_workers=0",
        )  # fmt: skip
        recipe = load_recipe(RECIPE, [f"output.dir={folder}/run", *keys])
        with open_run_folder(recipe.output_dir, overwrite=False) as run:
            material = prepare(recipe, Path(folder) / "media")
            model, _ = build_model(recipe, run, material)
            trainer = build_trainer(recipe, run, material, model, ProgressReport(run, Console(quiet=True)))
            trainer.take_account(pushed(model, balance, lines.append))
            run.began = True
            trainer.train()
    return {
        "entropy": [min(line["entropy"]) for line in lines],
        "share_of_the_first_group": [max(sum(load[:GROUP]) / sum(load) for load in line["load"]) for line in lines],
    }


def pushed(model: PeftModel, balance: float, append: Any) -> RoutingAccount:
    """The account of a run whose routers are pushed."""
    return RoutingAccount(PushedWatch(model, LossWeights(balance=balance, group=GROUP)), append, GROUP)


def draw(runs: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Both curves as PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    labels = {
        "entropy": "entropy of the load,\nlowest layer (1: even)",
        "share_of_the_first_group": "share of the first group,\nhighest layer (even: 1/8)",
    }
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        for name, found in runs.items():
            axes.plot(range(1, len(found[key]) + 1), found[key], label=name)
        axes.set(xlabel="step", ylabel=label)
        axes.set_ylim(0, 1)
        axes.grid(visible=True, alpha=0.3)
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=110, format="png")


if __name__ == "__main__":
    sys.exit(main())
