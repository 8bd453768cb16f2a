"""How a decoder tells places apart: the base of its rotary embedding (RoPE, arXiv 2104.09864), and how many tokens it is made for.

config.json says both. A run may raise them (`model.rope_theta`), as Aria's authors did to go from 8K to 64K tokens (base 100,000 to
5,000,000, arXiv 2410.05993). What a model was trained with lies beside its adapter, for merging and evaluation to use the same.
Knows config.json in its old and its new form. Makes no module.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aria_finetune.errors import UserError

ROPE_FILE = "rope.json"
DEFAULT_THETA, DEFAULT_POSITIONS = 10_000.0, 2048
"""Of transformers, where config.json says nothing."""


@dataclass(frozen=True)
class Rope:
    """The base `theta`: pair i of a head of size d turns by theta^(-2i/d) from a token to the next; and the tokens of a row."""

    theta: float
    positions: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Rope:
        """What a checkpoint's config.json says, `rope_parameters` before the older `rope_theta`, as transformers reads them."""
        text = config.get("text_config") or {}
        parameters = text.get("rope_parameters") or {}
        theta = parameters.get("rope_theta", text.get("rope_theta", DEFAULT_THETA))
        return cls(float(theta), int(text.get("max_position_embeddings", DEFAULT_POSITIONS)))

    def widened(self, theta: float | None, tokens: int) -> Rope:
        """With another base; a higher one is for rows of `tokens` tokens, if that is more than there were."""
        if theta is None or theta == self.theta:
            return self
        return Rope(theta, max(self.positions, tokens) if theta > self.theta else self.positions)

    def put_in(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of what is in config.json that says this, in the form in which it said something else."""
        changed = copy.deepcopy(dict(config))
        text = changed.setdefault("text_config", {})
        text["max_position_embeddings"] = self.positions
        if "rope_theta" in text or not text.get("rope_parameters"):
            text["rope_theta"] = self.theta
        if text.get("rope_parameters"):
            text["rope_parameters"]["rope_theta"] = self.theta
        return changed


def write_rope(folder: Path, rope: Rope) -> None:
    """Say beside an adapter what it was trained with."""
    (folder / ROPE_FILE).write_text(json.dumps(asdict(rope)) + "\n", encoding="utf-8")


def read_rope(folder: Path) -> Rope | None:
    """What an adapter was trained with; None where that was not written, as before there was a choice.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found = json.loads((folder / ROPE_FILE).read_text(encoding="utf-8"))
        rope = Rope(float(found["theta"]), int(found["positions"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        fix = f"take {ROPE_FILE} from another checkpoint of the run"
        raise UserError(f"{ROPE_FILE} can't be read ({error})", where=str(folder), fix=fix) from error
    if not (rope.theta > 0 and rope.positions > 0):
        raise UserError(f"{ROPE_FILE} holds {rope.theta} and {rope.positions}", where=str(folder))
    return rope


def check_same_theta(adapter: Path, theta: float) -> None:
    """Refuse an adapter beside a model whose places are told apart in another way than when it was trained.

    Raises:
        UserError: the bases differ.
    """
    trained = read_rope(adapter)
    if trained is not None and trained.theta != theta:
        raise UserError(
            f"the adapter was trained with a RoPE base of {shown(trained.theta)}, and the model has {shown(theta)}",
            where=str(adapter),
            fix=f"set model.rope_theta={shown(trained.theta)}",
        )


def shown(theta: float) -> str:
    """A base as a person writes it: 5000000, not 5e+06."""
    return f"{theta:.15g}"
