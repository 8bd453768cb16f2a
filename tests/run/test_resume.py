"""Going on with a run: equal to one that was never stopped, refused where it would be another run."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from run_values import steady_metrics
from safetensors.torch import load_file
from stopping import stop_at

from aria_finetune.checkpoint.retention import checkpoints, newest_sealed
from aria_finetune.conversion import ConversionOptions, convert, shards
from aria_finetune.data.pictures import Pictures, by_medium
from aria_finetune.data.rows import RowPlan
from aria_finetune.data_formats.record import Media
from aria_finetune.errors import UserError
from aria_finetune.features.reading import StoredFeatures
from aria_finetune.material import load_base, prepare
from aria_finetune.recipe import Recipe, load_recipe
from aria_finetune.trainer import AriaTrainer
from aria_finetune.training import train

DATA = Path(__file__).parents[2] / "recipes" / "data" / "tiny"
RECIPE = """
model: {{path: tiny, device: cpu}}
data:
  train:
    - {{path: {data}/chat.jsonl}}
    - {{path: {data}/warmth-train.jsonl, weight: 0.0105}}
  eval: {{path: {data}/chat.jsonl}}
  image_size: 490
  max_tokens: 1024
lora: {{dropout: 0.2}}
train:
  learning_rate: 1e-3
  warmup_ratio: 0.2
  max_steps: 9
  per_device_train_batch_size: 1
  gradient_accumulation_steps: 2
  dataloader_num_workers: 0
  logging_steps: 2
  eval_strategy: epoch
  save_strategy: epoch
  save_total_limit: 9
output: {{dir: {output}}}
"""


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Recipe]:
    def make(*overrides: str, name: str = "run", folder: Path | None = None) -> Recipe:
        file = tmp_path / f"{name}.yaml"
        file.write_text(RECIPE.format(data=folder or DATA, output=tmp_path / "runs" / name))
        return load_recipe(file, overrides)

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(data=DATA, output=folder / "run"))
    return train(load_recipe(file, []), Console(file=io.StringIO()))


def go_on(recipe: Recipe) -> tuple[Path, str]:
    said = io.StringIO()
    return train(recipe, Console(file=said, width=200), resume=True), said.getvalue()


def assert_equal_runs(one: Path, other: Path) -> None:
    assert steady_metrics(one) == steady_metrics(other)
    assert (one / "adapter/adapter_model.safetensors").read_bytes() == (
        other / "adapter/adapter_model.safetensors"
    ).read_bytes()
    assert list(checkpoints(one)) == list(checkpoints(other))
    ends = [next(iter(checkpoints(run).values())) for run in (one, other)]
    tensors = [load_file(end / "training_state.safetensors") for end in ends]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    states = [json.loads((end / "training_state.json").read_text()) for end in ends]
    assert states[0]["optimizer"] == states[1]["optimizer"]
    assert states[0]["scheduler"] == states[1]["scheduler"]
    assert states[0]["values"]["meters"] == states[1]["values"]["meters"]


@pytest.mark.parametrize(
    ("micro_batch", "step"),
    [(1, 1), (5, 3), (7, 4), (8, 5), (12, 7), (15, 9)],
    ids=["first step", "between two log lines", "end of an epoch", "next epoch", "in mid-epoch", "last step"],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    recipe_of: Callable[..., Recipe], whole: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int, step: int
) -> None:
    recipe = recipe_of()
    stop_at(monkeypatch, recipe, micro_batch)
    assert newest_sealed(recipe.output_dir)[0] == recipe.output_dir / f"checkpoint-{step}"
    shutil.rmtree(recipe.output_dir / "media", ignore_errors=True)
    run, said = go_on(recipe)
    assert f"going on from checkpoint-{step}, sealed after step {step}" in said
    if step not in checkpoints(whole):
        shutil.rmtree(run / f"checkpoint-{step}")  # the signal's own
    assert_equal_runs(run, whole)
    assert json.loads((run / "run.json").read_text())["resumed_from_step"] == step


def test_a_run_stopped_twice_with_workers_goes_on_bit_for_bit(
    recipe_of: Callable[..., Recipe], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("train.dataloader_num_workers=2")
    stop_at(monkeypatch, recipe, 5)
    stop_at(monkeypatch, recipe, 4, resume=True)
    assert newest_sealed(recipe.output_dir)[0] == recipe.output_dir / "checkpoint-6"
    run, _ = go_on(recipe)
    assert steady_metrics(run) == steady_metrics(whole)
    assert (run / "adapter/adapter_model.safetensors").read_bytes() == (
        whole / "adapter/adapter_model.safetensors"
    ).read_bytes()


def test_the_best_checkpoint_and_the_patience_are_remembered(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (
        "train.learning_rate=0.3", "train.max_steps=20", "train.load_best_model_at_end=true",
        "train.early_stopping_patience=1", "train.eval_strategy=steps", "train.eval_steps=1",
        "train.save_strategy=steps", "train.save_steps=1", "train.save_total_limit=1",
    )  # fmt: skip
    undisturbed = train(recipe_of(*overrides, name="undisturbed"), Console(file=io.StringIO()))
    report = json.loads((undisturbed / "run.json").read_text())
    assert 1 < report["steps"] < 20, "it was to stop early"
    recipe = recipe_of(*overrides)
    for _ in range(report["steps"] - 1):
        stop_at(monkeypatch, recipe, 1, resume=True)
    run, _ = go_on(recipe)
    assert steady_metrics(run) == steady_metrics(undisturbed)
    again = json.loads((run / "run.json").read_text())
    assert Path(again["best_checkpoint"]).name == Path(report["best_checkpoint"]).name
    best = Path(again["best_checkpoint"])
    assert (
        load_file(best / "adapter_model.safetensors").keys()
        == load_file(run / "adapter/adapter_model.safetensors").keys()
    )
    assert (best / "adapter_model.safetensors").read_bytes() == (
        run / "adapter/adapter_model.safetensors"
    ).read_bytes(), "the best adapter is what a run leaves"


BEST = (
    "train.max_steps=6", "train.load_best_model_at_end=true", "train.eval_strategy=steps", "train.eval_steps=1",
    "train.save_strategy=steps", "train.save_steps=2", "train.save_total_limit=1",
)  # fmt: skip


def test_the_best_checkpoint_is_the_same_however_a_run_was_stopped(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best step is 3, where only a signal seals a checkpoint; of those that are planned, 2 was the best."""
    losses = {1: 5.0, 2: 4.0, 3: 3.0, 4: 9.0, 5: 9.0, 6: 9.0}
    evaluation_loop, training_step = AriaTrainer.evaluation_loop, AriaTrainer.training_step

    def loop(self: AriaTrainer, *args: Any, **kwargs: Any) -> Any:
        output = evaluation_loop(self, *args, **kwargs)
        output.metrics["eval_loss"] = losses[self.state.global_step]
        return output

    class Killed(BaseException):
        pass

    def killed_in_step_6(self: AriaTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 5:
            raise Killed
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(AriaTrainer, "evaluation_loop", loop)
    runs = [train(recipe_of(*BEST, name="undisturbed"), Console(file=io.StringIO()))]
    with monkeypatch.context() as patch:
        patch.setattr(AriaTrainer, "training_step", killed_in_step_6)
        with pytest.raises(Killed):
            train(recipe_of(*BEST, name="killed"), Console(file=io.StringIO()))
    runs.append(go_on(recipe_of(*BEST, name="killed"))[0])
    stop_at(monkeypatch, recipe_of(*BEST, name="stopped"), 5)
    runs.append(go_on(recipe_of(*BEST, name="stopped"))[0])
    adapters = [(run / "adapter/adapter_model.safetensors").read_bytes() for run in runs]
    assert [Path(json.loads((run / "run.json").read_text())["best_checkpoint"]).name for run in runs] == [
        "checkpoint-2"
    ] * 3
    assert adapters[0] == adapters[1] == adapters[2]
    assert adapters[0] == (runs[0] / "checkpoint-2/adapter_model.safetensors").read_bytes()


def test_a_broken_best_checkpoint_is_told_before_training_goes_on(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (*BEST, "train.save_total_limit=9")
    stop_at(monkeypatch, recipe_of(*overrides), 9)
    values = json.loads((recipe_of().output_dir / "checkpoint-5" / "training_state.json").read_text())["values"]
    best = recipe_of().output_dir / values["best"]
    (best / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"the best checkpoint so far can't be used: adapter_config\.json has"):
        go_on(recipe_of(*overrides))
    shutil.rmtree(best)
    assert (go_on(recipe_of(*overrides))[0] / "adapter").is_dir()


def test_a_run_killed_between_its_last_step_and_its_adapter_is_finished(
    recipe_of: Callable[..., Recipe], whole: Path, tmp_path: Path
) -> None:
    recipe = recipe_of()
    shutil.copytree(whole, recipe.output_dir)
    shutil.rmtree(recipe.output_dir / "adapter")
    (recipe.output_dir / "run.json").write_text('{"status": "running"}')
    run, said = go_on(recipe)
    assert "going on from checkpoint-9" in said
    assert_equal_runs(run, whole)


def test_a_finished_run_is_left_alone(recipe_of: Callable[..., Recipe], whole: Path) -> None:
    recipe = recipe_of()
    shutil.copytree(whole, recipe.output_dir)
    before = {path: path.read_bytes() for path in recipe.output_dir.rglob("*") if path.is_file()}
    _, said = go_on(recipe)
    assert "is finished; its adapter is in" in said
    assert {path: path.read_bytes() for path in recipe.output_dir.rglob("*") if path.is_file()} == before


def test_without_a_run_resume_begins_one(recipe_of: Callable[..., Recipe], whole: Path) -> None:
    run, said = go_on(recipe_of())
    assert "going on" not in said
    assert_equal_runs(run, whole)


def test_without_a_checkpoint_resume_begins_again_and_says_so(recipe_of: Callable[..., Recipe], whole: Path) -> None:
    recipe = recipe_of()
    recipe.output_dir.mkdir(parents=True)
    (recipe.output_dir / "run.json").write_text('{"status": "running"}')
    (recipe.output_dir / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n{"st')
    run, said = go_on(recipe)
    assert "no sealed checkpoint in" in said
    assert_equal_runs(run, whole)


@pytest.fixture
def stopped(recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> Path:
    recipe = recipe_of()
    stop_at(monkeypatch, recipe, 3)
    return recipe.output_dir


def test_another_recipe_is_refused_key_by_key(recipe_of: Callable[..., Recipe], stopped: Path) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="the recipe is not the one the run was started with") as raised:
        go_on(recipe_of("train.learning_rate=2e-3", "lora.rank=4", "train.per_device_train_batch_size=2"))
    for line in (
        "lora.rank was 8 and is 4",
        "train.learning_rate was 0.001 and is 0.002",
        "train.per_device_train_batch_size was 1 and is 2",
    ):
        assert line in raised.value.message
    assert "train.gradient_accumulation_steps" not in raised.value.message
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_keys_that_change_no_update_may_differ(recipe_of: Callable[..., Recipe], stopped: Path) -> None:
    run, said = go_on(
        recipe_of(
            "train.save_strategy=steps",
            "train.save_steps=2",
            "train.save_total_limit=1",
            "train.logging_steps=1",
            "data.on_bad_media=skip",
            "train.per_device_train_batch_size=2",
            "train.gradient_accumulation_steps=1",
        )
    )
    assert "train.per_device_train_batch_size was 1 and is 2; the last digits may differ" in said
    assert list(checkpoints(run)) == [9]
    assert [line["step"] for line in steady_metrics(run) if "loss" in line] == [2, 3, 4, 5, 6, 7, 8, 9]


def test_a_batch_cut_up_otherwise_gives_the_same_updates(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = "model.dtype=float32"  # bf16 rounds a padded batch otherwise, and a step or two later that shows
    recipe = recipe_of(exact)
    stop_at(monkeypatch, recipe, 3)
    again = recipe_of(exact, "train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=1")
    run, _ = go_on(again)
    whole = train(recipe_of(exact, name="whole"), Console(file=io.StringIO()))
    losses = [[line["loss"] for line in steady_metrics(path) if "loss" in line] for path in (run, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_other_rows_are_refused(
    recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(DATA, tmp_path / "data")
    recipe = recipe_of(folder=tmp_path / "data")
    stop_at(monkeypatch, recipe, 3)
    moved = tmp_path / "moved"
    (tmp_path / "data").rename(moved)
    chat = moved / "chat.jsonl"
    sound = chat.read_text()
    chat.write_text("".join(sound.splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match=r"the rows of data\.train and data\.eval are not those"):
        go_on(recipe_of(folder=moved))
    chat.write_text(sound)
    run, _ = go_on(recipe_of(folder=moved))
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_another_base_is_refused(
    recipe_of: Callable[..., Recipe], stopped: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    for place in range(len(weights) // 2, len(weights)):
        weights[place] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="the base model's weights are not those"):
        go_on(recipe_of(f"model.path={other}"))


def test_a_folder_in_which_a_process_works_is_left_to_it(recipe_of: Callable[..., Recipe], stopped: Path) -> None:
    hold = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.lockf(f,fcntl.LOCK_EX); print('held',flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(stopped / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        for attempt in (lambda: go_on(recipe_of()), lambda: train(recipe_of("output.overwrite=true"), Console())):
            with pytest.raises(UserError, match="another process works in this run's folder"):
                attempt()
        holder.communicate("\n")
    run, _ = go_on(recipe_of())
    assert (run / "adapter").is_dir()


def test_every_checkpoint_is_an_adapter_whose_logits_are_the_live_ones(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("train.save_strategy=steps", "train.save_steps=3", "model.dtype=float32")
    ids = torch.randint(20, 250, (1, 24), generator=torch.Generator().manual_seed(1))
    live: dict[str, torch.Tensor] = {}
    original = AriaTrainer.seal

    def seal(self: AriaTrainer) -> Path:
        folder = original(self)
        with torch.no_grad():
            live[folder.name] = self.model.eval()(input_ids=ids).logits
        self.model.train()
        return folder

    monkeypatch.setattr(AriaTrainer, "seal", seal)
    run = train(recipe, Console(file=io.StringIO()))
    assert sorted(live) == ["checkpoint-3", "checkpoint-6", "checkpoint-9"]
    for name, logits in live.items():
        plain = PeftModel.from_pretrained(load_base(recipe).model, str(run / name)).eval()
        with torch.no_grad():
            assert torch.equal(plain(input_ids=ids).logits, logits), name


def test_an_adapter_that_training_does_not_reach_is_told_at_the_save(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AriaTrainer._get_grad_norm

    def forget(self: AriaTrainer, model: Any, grad_norm: Any = None) -> Any:
        for name, parameter in model.named_parameters():
            if "layers.0.self_attn.q_proj.lora" in name:
                parameter.grad = None
        return original(self, model, grad_norm)

    monkeypatch.setattr(AriaTrainer, "_get_grad_norm", forget)
    recipe = recipe_of("train.warmup_ratio=0")
    with pytest.raises(
        UserError, match=r"1 adapter\(s\) have not changed since the start, such as .*layers\.0.*q_proj"
    ):
        train(recipe, Console(file=io.StringIO()))
    assert not list(checkpoints(recipe.output_dir))


def test_running_out_of_memory_names_the_knobs_and_the_run_goes_on_with_one(
    recipe_of: Callable[..., Recipe], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=1")
    original, left = AriaTrainer.compute_loss, [14]

    def starve(self: AriaTrainer, *args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AriaTrainer, "compute_loss", starve)
        with pytest.raises(UserError, match=r"out of memory while training: [\d.]+ GiB were in use of") as raised:
            train(recipe, Console(file=io.StringIO()))
    knob = "train.per_device_train_batch_size=1 train.gradient_accumulation_steps=2"
    assert raised.value.fix
    assert raised.value.fix.splitlines()[1].strip().startswith(knob)
    assert newest_sealed(recipe.output_dir)[0] is not None
    run, _ = go_on(recipe_of(*knob.split()))
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_what_a_killed_preparation_left_does_not_stand_in_the_way(
    recipe_of: Callable[..., Recipe], whole: Path
) -> None:
    recipe = recipe_of()
    recipe.output_dir.mkdir(parents=True)
    (recipe.output_dir / "run.json").write_text('{"status": "preparing"}')
    (recipe.output_dir / "base").mkdir()
    run = train(recipe, Console(file=io.StringIO()))
    assert_equal_runs(run, whole)


def test_preparing_anew_gives_the_same_rows(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    plans = [prepare(recipe_of(), tmp_path / "media").plans for _ in range(2)]
    assert plans[0] == plans[1]


PICTURES_RECIPE = """
model: {{path: tiny, device: cpu}}
data:
  train:
    - {{path: {data}/photos.json}}
    - {{path: {data}/clip.jsonl}}
    - {{path: {drawings}, weight: 0.09}}
  image_size: 490
  max_tokens: 2048
  cache_image_features: {cache}
lora: {{dropout: 0.2}}
train:
  learning_rate: 1e-3
  max_steps: 9
  per_device_train_batch_size: 1
  gradient_accumulation_steps: 2
  dataloader_num_workers: {workers}
output: {{dir: {output}}}
"""


class TestInMidEpoch:
    """A run on pictures of 18 micro-batches, stopped after 10 of them; an epoch has more."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("pictures")

    @pytest.fixture(scope="class")
    def undisturbed(self, folder: Path) -> bytes:
        """The adapter of a run that was never stopped, without workers and on live pictures."""
        run = train(self.recipe(folder / "undisturbed", workers=0, cache="false"), Console(file=io.StringIO()))
        return (run / "adapter/adapter_model.safetensors").read_bytes()

    @staticmethod
    def recipe(folder: Path, workers: int, cache: str, drawings: Path | None = None) -> Recipe:
        folder.mkdir()
        drawings = drawings or DATA / "warmth-train.jsonl"
        text = PICTURES_RECIPE.format(data=DATA, drawings=drawings, output=folder / "run", workers=workers, cache=cache)
        (folder / "recipe.yaml").write_text(text)
        return load_recipe(folder / "recipe.yaml", [])

    @pytest.mark.parametrize("workers", [0, 2, 4])
    @pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
    def test_what_came_before_is_not_read_again(
        self,
        folder: Path,
        undisturbed: bytes,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        workers: int,
        cached: bool,
    ) -> None:
        recipe = self.recipe(tmp_path / "stopped", workers, str(folder / "features") if cached else "false")
        self.check(recipe, undisturbed, tmp_path, monkeypatch, cached=cached)

    @pytest.fixture(scope="class")
    def packed(self, folder: Path) -> Path:
        """The drawings in Parquet, seven to a row group."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shards, "ROW_GROUP_RECORDS", 7)
            convert(DATA / "warmth-train.jsonl", folder / "packed", ConversionOptions(pack="parquet"))
        return folder / "packed"

    @pytest.fixture(scope="class")
    def undisturbed_on_packed(self, folder: Path, packed: Path) -> bytes:
        recipe = self.recipe(folder / "packed-run", workers=0, cache="false", drawings=packed)
        run = train(recipe, Console(file=io.StringIO()))
        assert not list((run / "media").rglob("*.png")), "no picture became a file"
        return (run / "adapter/adapter_model.safetensors").read_bytes()

    @pytest.mark.parametrize(("workers", "cached"), [(0, False), (2, False), (2, True)])
    def test_with_pictures_packed_in_parquet(
        self,
        folder: Path,
        packed: Path,
        undisturbed_on_packed: bytes,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        workers: int,
        cached: bool,
    ) -> None:
        recipe = self.recipe(tmp_path / "stopped", workers, str(folder / "features") if cached else "false", packed)
        order = self.check(recipe, undisturbed_on_packed, tmp_path, monkeypatch, cached=cached)
        groups = prepare(recipe, tmp_path / "store").train_rows.groups
        assert len({groups[row] for row in order} - {None}) > 6
        assert None in {groups[row] for row in order}

    def check(
        self, recipe: Recipe, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, cached: bool
    ) -> list[int]:
        """Stop the run, go on, and see what that read; returns the order of the epoch."""
        stop_at(monkeypatch, recipe, 10)
        read = tmp_path / "read"
        note_reads(monkeypatch, read)
        run, said = go_on(recipe)
        assert "going on from checkpoint-5" in said
        assert (run / "adapter/adapter_model.safetensors").read_bytes() == undisturbed
        rows = prepare(recipe, tmp_path / "store").train_rows
        order = list(rows.order(recipe.train.seed))
        assert len(order) > 20
        shown = [names_of(rows.plans[row], cached=cached) for row in order]
        # The loader is a batch ahead of the trainer, in which a step's two rows may be; and workers are several.
        last = len(order) if recipe.train.dataloader_num_workers else 20
        needed, possible = (Counter(chain(*shown[10:end])) for end in (18, last))
        assert needed <= Counter(read.read_text().splitlines()) <= possible
        assert set(chain(*shown[:10])) - set(possible), "some pictures were for what came before alone"
        return order


def note_reads(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Write the name of every medium that is decoded, or whose features are read, to a file; workers do so too."""

    def noting(method: Any) -> Any:
        def noted(self: Any, media: Media, *args: Any) -> Any:
            with file.open("a") as lines:
                lines.write(f"{media.name}\n")
            return method(self, media, *args)

        return noted

    file.touch()
    monkeypatch.setattr(Pictures, "of", noting(Pictures.of))
    monkeypatch.setattr(StoredFeatures, "_read", noting(StoredFeatures._read))


def names_of(plan: RowPlan, *, cached: bool) -> list[str]:
    """The names of media that a row has read: one for each medium that is decoded, or for each picture whose features are read."""
    sights = dict.fromkeys(plan.sights) if cached else [group[0] for group in by_medium(plan.sights)]
    return [plan.record.media[sight.media].name for sight in sights]
