"""Training state on disk without pickle: optimizer, scheduler and random generators as safetensors and JSON.

Optimizer state is stored by parameter name, so that it can't land on another parameter. Knows torch's state
dictionaries, not whose they are.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from aria_finetune.errors import UserError

TENSORS_FILE = "training_state.safetensors"
VALUES_FILE = "training_state.json"
_OPTIMIZER, _RANDOM = "optimizer", "random"


class HasState(Protocol):
    """An optimizer or a scheduler."""

    def state_dict(self) -> dict[str, Any]:
        """Nested dictionaries of tensors and plain values."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""


@dataclass(frozen=True)
class TrainingState:
    """What a run needs besides the adapter to go on: `names` are those of the parameters, in the optimizer's order."""

    optimizer: HasState
    scheduler: HasState
    names: tuple[str, ...]

    def save(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Write the two files; `values` are further JSON values to keep.

        Raises:
            OSError: the disk is full or failed.
        """
        tensors: dict[str, torch.Tensor] = {}
        optimizer = _detach(self._by_name(self.optimizer.state_dict()), _OPTIMIZER, tensors)
        generators = _detach(generator_states(), _RANDOM, tensors)
        plain = {
            _OPTIMIZER: optimizer,
            "scheduler": self.scheduler.state_dict(),
            _RANDOM: generators,
            "values": values,
        }
        save_file(tensors, folder / TENSORS_FILE, {"format": "pt"})
        (folder / VALUES_FILE).write_text(json.dumps(plain, allow_nan=False) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Put optimizer and scheduler back; generators come back with `load_generators`.

        Raises:
            UserError: the state is that of other parameters.
        """
        plain = _read_values(folder)
        saved = _attach(plain[_OPTIMIZER], _read_tensors(folder, _OPTIMIZER))
        if saved["names"] != list(self.names):
            odd = sorted(set(saved["names"]) ^ set(self.names)) or ["in another order"]
            raise UserError(
                f"the optimizer state is that of other parameters: {odd[0]}",
                where=str(folder),
                fix="resume with the recipe that the run was started with",
            )
        index_of = {name: index for index, name in enumerate(self.names)}
        state = {index_of[name]: entry for name, entry in saved["state"].items()}
        self.optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
        self.scheduler.load_state_dict(plain["scheduler"])

    def _by_name(self, state: dict[str, Any]) -> dict[str, Any]:
        named = {self.names[index]: entry for index, entry in state["state"].items()}
        return {"names": list(self.names), "state": named, "param_groups": state["param_groups"]}


def load_values(folder: Path) -> dict[str, Any]:
    """The further values that `TrainingState.save` was given."""
    values: dict[str, Any] = _read_values(folder)["values"]
    return values


def load_generators(folder: Path) -> None:
    """Put every random generator back to where it was when `folder` was saved."""
    set_generators(_attach(_read_values(folder)[_RANDOM], _read_tensors(folder, _RANDOM)))


def set_generators(states: Mapping[str, Any]) -> None:
    """Put every random generator back to what `generator_states` gave."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002 (the global one)
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def generator_states() -> dict[str, Any]:
    """States of the generators of Python, NumPy and torch, as tensors and plain values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 (the global one)
    states: dict[str, Any] = {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _read_values(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / VALUES_FILE).read_text(encoding="utf-8"))
    return values


def _read_tensors(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """The tensors of one part: those of the optimizer are twice the adapter."""
    with safe_open(folder / TENSORS_FILE, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys() if name.startswith(f"{part}/")}  # noqa: SIM118


def _detach(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` with every tensor moved to `tensors` and replaced by its name there."""
    if isinstance(value, torch.Tensor):
        # A copy: optimizers share some tensors between parameters, which safetensors refuses.
        tensors[path] = value.detach().cpu().clone().contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {key: _detach(inner, f"{path}/{key}", tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_detach(inner, f"{path}/{index}", tensors) for index, inner in enumerate(value)]
    return value


def _attach(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `_detach`; tuples come back as lists."""
    if isinstance(value, Mapping):
        if list(value) == ["tensor"]:
            return tensors[value["tensor"]]
        return {key: _attach(inner, tensors) for key, inner in value.items()}
    if isinstance(value, list):
        return [_attach(inner, tensors) for inner in value]
    return value


def parameter_names(model: torch.nn.Module, optimizer: Any) -> tuple[str, ...]:
    """Names of an optimizer's parameters in the order in which its state dictionary counts them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return tuple(names[id(parameter)] for parameter in _in_order(optimizer))


def _in_order(optimizer: Any) -> Iterator[torch.nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]
