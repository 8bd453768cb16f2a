"""What a person sees while a run goes on, and the lines that are kept of it.

A bar on a terminal, plain lines elsewhere. Knows transformers' callbacks and the run folder.
"""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from aria_finetune.durations import duration
from aria_finetune.run_folder import METRICS_FILE, RunFolder

PLAIN_SECONDS = 5.0
"""Without a terminal a line is printed at most this often."""


class ProgressReport(TrainerCallback):  # type: ignore[misc]
    """Shows loss, rates, memory and the time left; writes `metrics.jsonl`."""

    def __init__(self, run: RunFolder, console: Console) -> None:
        self.run = run
        self.console = console
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.printed_at = -math.inf

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar on a terminal."""
        if self.console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self.progress = Progress(*columns, console=self.console)
            self.task = self.progress.add_task("", total=state.max_steps, completed=state.global_step)
            self.progress.start()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep a line of metrics, and show the ones of a training step or an evaluation."""
        logs = {name: value for name, value in kwargs["logs"].items() if name != "total_flos"}
        self.run.append(METRICS_FILE, {"step": state.global_step, **{n: _finite(value) for n, value in logs.items()}})
        if "loss" in logs:
            self._show(state, describe(logs))
        elif "eval_loss" in logs:
            self.say(f"step {state.global_step}/{state.max_steps}  evaluation loss {logs['eval_loss']:.4f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, if it is open; also after an error, so that its message stands alone."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def state(self) -> dict[str, Any]:
        """How long the run's logs are, for a checkpoint."""
        return {"bytes": self.run.log_sizes()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back the lines of steps that are done again."""
        self.run.cut_logs(state["bytes"])

    def _show(self, state: TrainerState, text: str) -> None:
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=state.global_step, description=text)
        elif time.monotonic() - self.printed_at >= PLAIN_SECONDS or state.global_step == state.max_steps:
            self.printed_at = time.monotonic()
            self.say(f"step {state.global_step}/{state.max_steps}  {text}")

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self.console.print(text, highlight=False, soft_wrap=True)


def describe(logs: dict[str, float]) -> str:
    """One line of what was logged at a training step."""
    return (
        f"loss {logs['loss']:.4f}  {logs['tokens_per_second']:,.0f} tokens/s  "
        f"{logs['images_per_second']:.1f} images/s  data {logs['data_wait_share']:.0%}  "
        f"{logs['peak_memory_gib']:.1f} GiB  {duration(logs['seconds_left'])} left"
    )


def _finite(value: Any) -> Any:
    """JSON has no NaN: such a value is kept as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
