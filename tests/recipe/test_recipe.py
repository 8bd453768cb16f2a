"""Recipes: what is taken, what is refused, and that every problem comes at once with its place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from trl import SFTConfig

from aria_finetune.errors import UserError
from aria_finetune.recipe import Recipe, load_recipe
from aria_finetune.recipe.problems import ALIASES, SECTIONS
from aria_finetune.recipe.schema import TrainSection

MINIMAL = "model: {path: tiny}\ndata: {train: rows.jsonl}\n"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load a recipe of the given text from a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def load_text(text: str = MINIMAL, *overrides: str) -> Recipe:
        Path("recipe.yaml").write_text(text, encoding="utf-8")
        return load_recipe(Path("recipe.yaml"), overrides)

    return load_text


@pytest.fixture
def problems(load: Any) -> Any:
    """The lines of the error that a text and its overrides raise."""

    def lines(text: str = MINIMAL, *overrides: str) -> list[str]:
        with pytest.raises(UserError) as caught:
            load(text, *overrides)
        return str(caught.value).splitlines()

    return lines


def test_defaults_are_the_recipe_of_the_authors(load: Any) -> None:
    recipe = load()
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.targets) == (8, 32.0, ("attention", "router"))
    assert (recipe.train.learning_rate, recipe.train.weight_decay, recipe.train.adam_beta2) == (5e-5, 0.1, 0.95)
    assert (recipe.train.lr_scheduler_type, recipe.train.warmup_ratio) == ("cosine", 0.01)
    assert (recipe.model.experts, recipe.model.compute_dtype, recipe.bf16) == ("nf4", "bfloat16", True)
    assert (recipe.data.max_tokens, recipe.data.image_size, recipe.data.too_long) == (4096, "auto", "reject")
    assert recipe.output_dir == Path("runs/recipe")
    assert recipe.file == Path("recipe.yaml")


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("a.jsonl", [("a.jsonl", 1.0)]),
        ("{path: a, weight: 2}", [("a", 2.0)]),
        ("[a, {path: b, weight: 0.25}]", [("a", 1.0), ("b", 0.25)]),
    ],
)
def test_spellings_of_sources(load: Any, train: str, expected: list[tuple[str, float]]) -> None:
    recipe = load(f"model: {{path: tiny}}\ndata:\n  train: {train}\n")
    assert [(source.path, source.weight) for source in recipe.data.train] == expected


@pytest.mark.parametrize(("written", "expected"), [("x", ("x",)), ("[x, y]", ("x", "y")), ("", ()), ("[]", ())])
def test_spellings_of_media_root(load: Any, written: str, expected: tuple[str, ...]) -> None:
    recipe = load(MINIMAL, f"data.train.0.media_root={written}")
    assert recipe.data.train[0].media_root == expected


@pytest.mark.parametrize(
    ("written", "expected"), [("tensorboard", ("tensorboard",)), ("[wandb]", ("wandb",)), ("none", ()), ("[]", ())]
)
def test_spellings_of_report_to(load: Any, written: str, expected: tuple[str, ...]) -> None:
    assert load(MINIMAL, f"train.report_to={written}").train.report_to == expected


def test_bad_media_and_the_time_they_may_take(load: Any, problems: Any) -> None:
    assert (load().data.on_bad_media, load().data.media_timeout) == ("fail", 30.0)
    data = load(MINIMAL, "data.on_bad_media=skip", "data.media_timeout=2").data
    assert (data.on_bad_media, data.media_timeout) == ("skip", 2.0)
    said = "\n".join(problems(MINIMAL, "data.on_bad_media=ignore", "data.media_timeout=0"))
    assert "data.on_bad_media" in said
    assert "skip" in said
    assert "data.media_timeout" in said
    assert "must be at most 86400" in "\n".join(problems(MINIMAL, "data.media_timeout=86401"))


@pytest.mark.parametrize(
    ("written", "folder"),
    [
        ("false", None),
        ("true", Path("a/image-features")),
        ("/big/features", Path("/big/features")),
        ("~/features", Path("~/features").expanduser()),
    ],
)
def test_where_image_features_are_kept(load: Any, written: str, folder: Path | None) -> None:
    recipe = load(MINIMAL, f"data.cache_image_features={written}", "output.dir=a/run")
    assert recipe.feature_folder == folder


def test_image_features_are_not_kept_unless_asked_for(load: Any, problems: Any) -> None:
    assert load().feature_folder is None
    assert load().data.cache_limit_gib == 100
    assert load(MINIMAL, "data.cache_limit_gib=0.5").data.cache_limit_gib == 0.5
    assert "data.cache_limit_gib" in "\n".join(problems(MINIMAL, "data.cache_limit_gib=0"))


@pytest.mark.parametrize("written", ["3", "", "yes", "Off", "[a]", "'true'", "' '"])
def test_a_switch_that_is_none_is_not_taken_for_a_folder(problems: Any, written: str) -> None:
    (problem,) = problems(MINIMAL, f"data.cache_image_features={written}")
    assert "data.cache_image_features: must be true, false, or a folder (you wrote" in problem


@pytest.mark.parametrize("target", ["projector", "vision"])
def test_features_of_a_part_that_is_trained_are_never_kept(problems: Any, target: str) -> None:
    for cache in ("true", "features"):
        (line,) = problems(MINIMAL, f"lora.targets=[attention,{target}]", f"data.cache_image_features={cache}")
        assert "data.cache_image_features: keeps what frozen parts make of pictures" in line
        assert f"{target} in lora.targets changes it with every update" in line


def test_pissa_is_refused_with_its_reason(problems: Any) -> None:
    (line,) = problems(MINIMAL, "lora.init=pissa")
    assert "lora.init: pissa moves the largest part of each weight into the adapter" in line
    assert "no NF4 base but its own" in line
    assert "loftq keeps the base" in line
    assert "must be one of default, loftq" in problems(MINIMAL, "lora.init=gaussian")[0]


def test_an_empty_section_is_all_defaults(load: Any) -> None:
    assert load(f"{MINIMAL}lora:\ntrain:\n  # seed: 1\n").dump() == load().dump()


def test_a_recipe_is_frozen(load: Any) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load().train.seed = 3


@pytest.mark.parametrize(
    ("overrides", "resolved"),
    [
        ((), ("bfloat16", True, "no", 500)),
        (("model.experts=fp32",), ("float32", False, "no", 500)),
        (("model.dtype=float32",), ("float32", False, "no", 500)),
        (("model.dtype=float32", "train.bf16=true"), ("float32", True, "no", 500)),
        (("data.eval=e.jsonl",), ("bfloat16", True, "steps", 500)),
        (("data.eval_fraction=0.1", "train.save_steps=20"), ("bfloat16", True, "steps", 20)),
        (("data.eval_fraction=0.1", "train.eval_strategy=no"), ("bfloat16", True, "no", 500)),
        (("data.eval_fraction=0.1", "train.eval_steps=7"), ("bfloat16", True, "steps", 7)),
    ],
)
def test_none_is_resolved(load: Any, overrides: tuple[str, ...], resolved: tuple[object, ...]) -> None:
    recipe = load(MINIMAL, *overrides)
    assert (recipe.model.compute_dtype, recipe.bf16, recipe.eval_strategy, recipe.eval_steps) == resolved
    dump = recipe.dump()
    train = dump["train"]
    assert (dump["model"]["dtype"], train["bf16"], train["eval_strategy"], train["eval_steps"]) == resolved


def test_dump_is_json_and_loads_again(load: Any, tmp_path: Path) -> None:
    first = load(MINIMAL, "data.eval=[e, {path: f, weight: 3, media_root: m}]", "output.dir=out", "train.seed=7")
    written = tmp_path / "run.json"
    written.write_text(json.dumps(first.dump()), encoding="utf-8")
    assert load_recipe(written).dump() == first.dump()


def test_values_never_come_from_the_environment(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", "secret-token")
    for name in ("LEARNING_RATE", "MODEL", "TRAIN", "SEED"):
        monkeypatch.setenv(name, "secret-token")
    dump = json.dumps(load("model: {path: $PLANTED}\ndata: {train: '${PLANTED}'}\n").dump())
    assert "secret-token" not in dump


def test_output_dir(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load(MINIMAL, "output.dir=~/out").output_dir == Path("/home/someone/out")


def test_every_problem_comes_at_once(problems: Any) -> None:
    text = """\
model:
  path: tiny
  experts: fp32
  dtype: bfloat16
data:
  train: {pth: 5, weight: 0}
  max_tokens: "4096"
lora:
  r: 8
train:
  lr: 1e-4
  learning_rate: abc
  bf16: yes
  lr_scheduler_type: cosin
  load_best_model_at_end: true
"""
    assert problems(text, "train.seed=-1", "train.seed.x=2") == [
        "recipe.yaml:4: model.dtype: bfloat16 does not go with model.experts: fp32; write float32, or leave dtype out",
        "recipe.yaml:6: data.train.0.path: is required",
        "recipe.yaml:6: data.train.0.weight: must be above 0 (you wrote 0)",
        "recipe.yaml:6: data.train.0.pth: unknown key; did you mean data.train.0.path?",
        "recipe.yaml:7: data.max_tokens: must be a whole number (you wrote '4096'); did you mean 4096?",
        "recipe.yaml:9: lora.r: unknown key; did you mean lora.rank?",
        "recipe.yaml:11: train.lr: unknown key; did you mean train.learning_rate?",
        "recipe.yaml:12: train.learning_rate: must be a number (you wrote 'abc')",
        "recipe.yaml:13: train.bf16: must be true or false (you wrote 'yes'); did you mean true?",
        (
            "recipe.yaml:14: train.lr_scheduler_type: must be one of constant, constant_with_warmup, linear, cosine, "
            "cosine_with_restarts (you wrote 'cosin'); did you mean cosine?"
        ),
        "recipe.yaml:15: train.load_best_model_at_end: needs data to evaluate on; add data.eval or data.eval_fraction",
        "(override) train.seed: must be at least 0 (you wrote -1)",
        "(override) train.seed.x: train.seed is a single value and has no keys",
        "  fix: write train.seed=VALUE",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=5", "must be text (you wrote 5)"),
        ("model.path=", "must be text (you wrote null)"),
        ("model.path=''", "must not be empty (you wrote '')"),
        ("model.experts=int8", "must be one of nf4, bf16, fp32 (you wrote 'int8')"),
        ("data.train=", "needs at least one entry (you wrote an empty list)"),
        ("data.train=[]", "needs at least one entry (you wrote an empty list)"),
        ("data.eval_fraction=1.0", "must be below 1 (you wrote 1.0)"),
        ("data.eval_fraction=0", "must be above 0 (you wrote 0)"),
        ("data.image_size=491", "must be one of 490, 980, auto (you wrote 491); did you mean 490?"),
        ("data.max_tokens=15", "must be at least 16 (you wrote 15)"),
        ("data.num_frames=1025", "must be at most 1024 (you wrote 1025)"),
        ("data.split_images=1", "must be true or false (you wrote 1); did you mean true?"),
        ("data.split_images='true'", "must be true or false (you wrote 'true')"),
        ("lora.rank=8.0", "must be a whole number (you wrote 8.0); did you mean 8?"),
        ("lora.rank=true", "must be a whole number (you wrote true)"),
        ("lora.alpha='32'", "must be a number (you wrote '32'); did you mean 32?"),
        ("lora.dropout=1", "must be below 1 (you wrote 1)"),
        ("lora.targets=[]", "needs at least one entry (you wrote an empty list)"),
        ("lora.targets=[router, router]", "names the same thing twice (you wrote a list)"),
        ("lora={}", None),
        ("lora.loraplus_lr_ratio=0.5", "must be at least 1 (you wrote 0.5)"),
        ("lora.loraplus_lr_ratio=16", None),
        (
            "lora=[1]",
            "must hold the keys targets, rank, alpha, dropout, rslora, layers, dora, init, loraplus_lr_ratio (you wrote a list)",
        ),
        ("train.learning_rate=.nan", "must be a finite number (you wrote nan)"),
        ("train.learning_rate=1e999", "must be a finite number (you wrote inf)"),
        ("train.learning_rate=0", "must be above 0 (you wrote 0)"),
        ("train.learning_rate=1", None),
        ("train.max_steps=0", "must be at least 1, or -1 for no limit (you wrote 0)"),
        ("train.max_steps=1e3", "must be a whole number (you wrote 1000.0); did you mean 1000?"),
        ("train.neftune_noise_alpha=0", "must be above 0 (you wrote 0)"),
        ("train.neftune_noise_alpha=5", None),
        ("train.save_strategy=no", None),
        ("train.save_strategy=false", "must be one of no, steps, epoch (you wrote false)"),
        ("train.save_total_limit=", None),
        ("train.report_to=[none, wandb]", "names none beside a tracker; keep one of them (you wrote a list)"),
        ("train.optim=adamw_tourch", "(you wrote 'adamw_tourch'); did you mean adamw_torch?"),
        ("output.overwrite=no", "must be true or false (you wrote 'no'); did you mean false?"),
    ],
)
def test_types_are_strict(load: Any, problems: Any, override: str, message: str | None) -> None:
    if message is None:
        load(MINIMAL, override)
        return
    (line,) = problems(MINIMAL, override)
    assert line.startswith(f"(override) {override.partition('=')[0]}")
    assert line.endswith(message)


def test_every_part_of_aria_that_has_adapters_is_known_by_name(load: Any, problems: Any) -> None:
    parts = ("attention", "router", "shared_experts", "experts", "projector", "vision")
    assert load(MINIMAL, f"lora.targets=[{','.join(parts)}]").lora.targets == parts
    (line,) = problems(f"{MINIMAL}lora:\n  targets: [attention, lm_head]\n")
    assert line.startswith(f"recipe.yaml:4: lora.targets.1: must be one of {', '.join(parts)} (you wrote 'lm_head')")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.learning-rate", "train.learning_rate"),
        ("train.Learning_Rate", "train.learning_rate"),
        ("train.learing_rate", "train.learning_rate"),
        ("train.batch_size", "train.per_device_train_batch_size"),
        ("train.grad_accum", "train.gradient_accumulation_steps"),
        ("train.epochs", "train.num_train_epochs"),
        ("train.rank", "lora.rank"),
        ("lora.use_dora", "lora.dora"),
        ("lora.init_lora_weights", "lora.init"),
        ("model.lora_r", "lora.rank"),
        ("data.seed", "train.seed"),
        ("lr", "train.learning_rate"),
        ("learning_rate", "train.learning_rate"),
        ("training.seed", "train"),
        ("data.train.0.wieght", "data.train.0.weight"),
        ("train.lr.start", "train.learning_rate"),
    ],
)
def test_an_unknown_key_gets_the_nearest_name(problems: Any, key: str, meant: str) -> None:
    (line,) = problems(MINIMAL, f"{key}=1")
    assert line.startswith("(override) ")
    assert line.endswith(f"unknown key; did you mean {meant}?")


@pytest.mark.parametrize("key", ["lora.modules_to_save", "modules_to_save", "train.modules_to_save"])
def test_what_can_not_be_trained_is_refused_with_its_reason(problems: Any, key: str) -> None:
    (line,) = problems(MINIMAL, f"{key}=[lm_head]")
    assert "unknown key: embedding and lm_head can't be trained" in line
    assert "slices of a frozen head" in line


def test_the_value_of_an_unknown_key_is_not_shown(problems: Any) -> None:
    (line,) = problems(f"{MINIMAL}wandb_api_key: secret-token\n")
    assert line == "recipe.yaml:3: wandb_api_key: unknown key"


@pytest.mark.parametrize("name", ["file", "_file", "model_config"])
def test_what_is_inside_a_recipe_is_no_key_of_it(problems: Any, name: str) -> None:
    (line,) = problems(f"{MINIMAL}{name}: x\n")
    assert "unknown key" in line


def test_every_alias_leads_to_a_key() -> None:
    known = {f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields}
    assert set(ALIASES.values()) <= known
    assert not {name for name in ALIASES if any(name in model.model_fields for model in SECTIONS.values())} - {"alpha"}


def test_train_has_the_names_of_trl() -> None:
    # transformers 5 folded the ratio into warmup_steps, patience is an argument of its callback, spikes and answers are our own.
    ours = {"warmup_ratio", "early_stopping_patience", "spike_factor", "evaluate_generation", "max_new_tokens"}
    assert set(TrainSection.model_fields) - ours <= set(SFTConfig.__dataclass_fields__)


def test_schedulers_and_optimizers_are_known_to_trl(tmp_path: Path) -> None:
    fields = TrainSection.model_fields
    for scheduler in get_args(fields["lr_scheduler_type"].annotation):
        config = SFTConfig(output_dir=str(tmp_path), lr_scheduler_type=scheduler, use_cpu=True, bf16=False)
        assert config.lr_scheduler_type == scheduler
    for optimizer in get_args(fields["optim"].annotation):
        config = SFTConfig(output_dir=str(tmp_path), optim=optimizer, use_cpu=True, bf16=False)
        assert config.optim == optimizer


def test_a_broken_key_is_not_blamed_for_a_second_thing(problems: Any) -> None:
    (line,) = problems(MINIMAL, "data.eval=[5]", "train.load_best_model_at_end=true")
    assert line.startswith("(override) data.eval.0: must hold the keys path")


@pytest.mark.parametrize("text", ["", "# nothing\n", "null\n"])
def test_an_empty_recipe(problems: Any, text: str) -> None:
    assert problems(text)[0] == "recipe.yaml: the recipe is empty"


@pytest.mark.parametrize("text", ["5", "[a, b]", "just text"])
def test_a_recipe_without_keys(problems: Any, text: str) -> None:
    assert problems(text)[0] == "recipe.yaml: the recipe holds no keys"


@pytest.mark.parametrize("text", ["lora: {rank: 4}", "model:\ndata:\n"])
def test_what_is_required(problems: Any, text: str) -> None:
    assert [line.partition(": ")[2] for line in problems(text)] == [
        "model.path: is required",
        "data.train: is required",
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("data.train.0.weight=2",), [("rows.jsonl", 2.0)]),
        (("data.train=[{path: x}]",), [("x", 1.0)]),
        (("data.train=x", "data.train.0.weight=0.5"), [("x", 0.5)]),
        (("data={train: x}", "data.train.0.weight=0.5"), [("x", 0.5)]),
        (("data.train.0=y",), [("y", 1.0)]),
        ((" data.train.0.path =a=b.jsonl",), [("a=b.jsonl", 1.0)]),
        (("data.train.0.weight=2", "data.train.0.weight=3"), [("rows.jsonl", 3.0)]),
    ],
)
def test_overrides_reach_into_lists(load: Any, overrides: tuple[str, ...], expected: list[tuple[str, float]]) -> None:
    recipe = load(MINIMAL, *overrides)
    assert [(source.path, source.weight) for source in recipe.data.train] == expected


def test_overrides_follow_the_rules_of_yaml(load: Any) -> None:
    recipe = load(MINIMAL, "train.learning_rate=1e-4", "train.save_strategy=no", "model.revision='1e5'")
    assert (recipe.train.learning_rate, recipe.train.save_strategy, recipe.model.revision) == (1e-4, "no", "1e5")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.seed", "an override is written KEY=VALUE"),
        ("=3", "an override is written KEY=VALUE"),
        ("train..seed=3", "an override is written KEY=VALUE"),
        ("train.seed=[", "not valid YAML"),
        ("train.seed=012", "begins with a zero"),
        ("train.seed=!!python/name:os.system", "the tag"),
        ("data.train.3.path=x", "data.train is a list of 1, and 3 is no position in it"),
        ("data.train.weight=2", "data.train is a list of 1, and 'weight' is no position in it"),
        ("train.seed.deeper=2", "train.seed is a single value"),
        ("train.0=2", "train is no list"),
        ("0=2", "the recipe is no list"),
    ],
)
def test_a_bad_override_is_named(problems: Any, override: str, message: str) -> None:
    first = problems(f"{MINIMAL}train: {{seed: 1}}\n", override)[0]
    assert first.startswith("(override) ")
    assert message in first


def test_a_missing_recipe_lists_those_beside_it(load: Any) -> None:
    load()
    Path("other.yaml").touch()
    with pytest.raises(UserError) as caught:
        load_recipe(Path("recipes.yaml"))
    assert str(caught.value) == (
        "recipes.yaml: there is no such recipe\n  fix: did you mean recipe.yaml? recipes in .: other.yaml, recipe.yaml"
    )


@pytest.mark.parametrize("name", ["nowhere/recipe.yaml", "x" * 5000, "a\0b"])
def test_a_missing_recipe_in_an_odd_place(load: Any, name: str) -> None:
    load()
    with pytest.raises(UserError, match="there is no such recipe"):
        load_recipe(Path(name))


def test_a_folder_is_no_recipe(load: Any, tmp_path: Path) -> None:
    load()
    with pytest.raises(UserError, match=r"is a folder\n  fix: recipes in .*: recipe\.yaml"):
        load_recipe(tmp_path)


def test_a_fifo_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match="there is no such recipe"):
        load_recipe(tmp_path / "recipe.yaml")


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["steps", "no"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        *SECTIONS,
        *(f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields),
        "data.train.0.weight",
        "data.train.0",
        "data.eval.0.media_root",
        "nothing",
        "train.lr.x",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(KEYS, VALUES), max_size=5))
def test_any_value_of_any_key_is_taken_or_refused_with_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, object]]
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(MINIMAL, encoding="utf-8")
    words = [f"{key}={json.dumps(value)}" for key, value in entries]
    try:
        recipe = load_recipe(file, words)
    except UserError as error:
        text = str(error)
    else:
        text = json.dumps(recipe.dump(), allow_nan=False)
    assert text
