"""What is wrong with a recipe, in words: one line per problem, with what was written and what may have been meant.

Knows the schema and pydantic's kinds of errors; does not know where in a file a key stands.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from aria_finetune.recipe.checks import conflicts
from aria_finetune.recipe.schema import Recipe, Section, SourceSection
from aria_finetune.recipe.strict_yaml import KeyPath, plain_value

SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}

ALIASES: dict[str, str] = {
    "alpha": "lora.alpha",
    "base_model": "model.path",
    "batch_size": "train.per_device_train_batch_size",
    "cutoff_len": "data.max_tokens",
    "dataset": "data.train",
    "datasets": "data.train",
    "epochs": "train.num_train_epochs",
    "eval_batch_size": "train.per_device_eval_batch_size",
    "eval_dataset": "data.eval",
    "grad_accum": "train.gradient_accumulation_steps",
    "gradient_accumulation": "train.gradient_accumulation_steps",
    "init_lora_weights": "lora.init",
    "layers_to_transform": "lora.layers",
    "load_in_4bit": "model.experts",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_target": "lora.targets",
    "loraplus_ratio": "lora.loraplus_lr_ratio",
    "lr": "train.learning_rate",
    "max_length": "data.max_tokens",
    "max_seq_length": "data.max_tokens",
    "micro_batch_size": "train.per_device_train_batch_size",
    "model_name_or_path": "model.path",
    "num_epochs": "train.num_train_epochs",
    "num_workers": "train.dataloader_num_workers",
    "optimizer": "train.optim",
    "output_dir": "output.dir",
    "patience": "train.early_stopping_patience",
    "quantization": "model.experts",
    "r": "lora.rank",
    "scheduler": "train.lr_scheduler_type",
    "target_modules": "lora.targets",
    "train_dataset": "data.train",
    "train_file": "data.train",
    "validation_split": "data.eval_fraction",
    "use_dora": "lora.dora",
    "use_rslora": "lora.rslora",
    "val_set_size": "data.eval_fraction",
    "warmup": "train.warmup_ratio",
    "warmup_steps": "train.warmup_ratio",
}
"""What other trainers call a key of ours."""

WITHOUT: dict[str, str] = {
    "modules_to_save": "embedding and lm_head can't be trained, as the loss scores labels by slices of a frozen head; "
    "name parts of Aria in lora.targets"
}
"""What other trainers have and this one has not, and why."""

_YES_NO = {"yes": "true", "on": "true", "y": "true", "1": "true", "no": "false", "off": "false", "n": "false"}
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend; `path` is the key it is about, () for the recipe as a whole."""

    path: KeyPath
    message: str

    @property
    def text(self) -> str:
        """`key.path: message`."""
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


def dotted(path: KeyPath) -> str:
    """A key path the way overrides write it."""
    return ".".join(str(key) for key in path)


def schema_problems(error: ValidationError) -> list[Problem]:
    """A problem for each thing that pydantic found."""
    return [Problem(details["loc"], _describe(details)) for details in error.errors(include_url=False)]


def conflict_problems(recipe: Recipe, broken: set[KeyPath]) -> Iterator[Problem]:
    """The contradictions between keys, except where one of them is `broken` and its value not known."""
    for conflict in conflicts(recipe):
        if not any(key in broken or key[:1] in broken for key in conflict.reads):
            yield Problem(conflict.key, conflict.message)


def _describe(details: ErrorDetails) -> str:
    path, kind = details["loc"], details["type"]
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        # The value of a key that is not ours is not shown: it may be a secret.
        name = str(path[-1]).lower()
        return f"unknown key: {WITHOUT[name]}" if name in WITHOUT else "unknown key" + _suggestion(_nearest_key(path))
    context: Mapping[str, Any] = details.get("ctx", {})
    if kind == "value_error":
        message = str(context["error"])
    elif kind == "model_type":
        message = f"must hold the keys {', '.join(_fields(path))}"
    else:
        message = _MESSAGES[kind](context) if kind in _MESSAGES else details["msg"]
    written = details["input"]
    return f"{message} (you wrote {_shown(written)}){_suggestion(_nearest_value(kind, context, written))}"


_MESSAGES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "bool_type": lambda _: "must be true or false",
    "finite_number": lambda _: "must be a finite number",
    "float_type": lambda _: "must be a number",
    "greater_than": lambda context: f"must be above {_number(context['gt'])}",
    "greater_than_equal": lambda context: f"must be at least {_number(context['ge'])}",
    "int_type": lambda _: "must be a whole number",
    "less_than": lambda context: f"must be below {_number(context['lt'])}",
    "less_than_equal": lambda context: f"must be at most {_number(context['le'])}",
    "literal_error": lambda context: f"must be one of {', '.join(_choices(context))}",
    "string_too_short": lambda _: "must not be empty",
    "string_type": lambda _: "must be text",
    "too_short": lambda _: "needs at least one entry",
    "tuple_type": lambda _: "must be a list",
}


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _choices(context: Mapping[str, Any]) -> list[str]:
    return [choice.strip("'") for choice in re.split(r", | or ", context["expected"])]


def _shown(value: object) -> str:
    """A value the way YAML would hold it, shortened."""
    if isinstance(value, Mapping):
        return "keys and values"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _suggestion(name: str | None) -> str:
    return f"; did you mean {name}?" if name else ""


def _nearest_value(kind: str, context: Mapping[str, Any], written: object) -> str | None:
    if kind == "literal_error":
        return _closest(str(written), _choices(context))
    if kind == "bool_type":
        return _YES_NO.get(str(written).lower())
    if kind in ("float_type", "int_type", "int_from_float"):
        return _unquoted_number(written, whole=kind != "float_type")
    return None


def _unquoted_number(written: object, *, whole: bool) -> str | None:
    try:
        number = plain_value(written.strip()) if isinstance(written, str) else written
    except ValueError:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        return None
    if whole:
        return str(int(number)) if number == int(number) else None
    return str(written).strip()


def _nearest_key(path: KeyPath) -> str | None:
    """The key that was most likely meant, from the root: the same name elsewhere, an alias, or a close spelling."""
    unknown = re.sub(r"[-\s]+", "_", str(path[-1]).lower())
    siblings = {name: dotted((*path[:-1], name)) for name in _fields(path[:-1])}
    elsewhere = {name: f"{section}.{name}" for section, model in SECTIONS.items() for name in model.model_fields}
    for names in (siblings, elsewhere, ALIASES):
        if unknown in names:
            return names[unknown]
    for names in (siblings, elsewhere, ALIASES):
        close = _closest(unknown, list(names))
        if close:
            return names[close]
    return None


def _closest(word: str, words: list[str]) -> str | None:
    matches = get_close_matches(word, words, n=1, cutoff=0.6)
    return matches[0] if matches else None


def _fields(path: KeyPath) -> list[str]:
    """The keys known at `path`."""
    if not path:
        return list(SECTIONS)
    if path[0] == "data" and len(path) > 1:
        return list(SourceSection.model_fields)
    return list(SECTIONS[str(path[0])].model_fields)
