"""The proof of a merge: every tensor is to the bit what it should be, and what the merged weights say beside base and adapter.

The tensors are what is certain: they are all compared. The logits, on sample rows, a layer of each side at a time, show what it comes to;
they can't tell a change that is at the scale of the dtype's rounding from none, and sample rows reach some of the experts only. No model is ever whole in memory. All is computed in fp32, so that what shows is what merging and rounding did to the weights, and not the noise
of 16-bit arithmetic, which is of the same size. The live adapter is run on both bases there are of it: the original weights, which
were merged into, and those as NF4 has them, which it was trained on. Knows nothing of the run that made the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from aria_finetune.adapter.drift import Drift, compare
from aria_finetune.adapter.exactness import Exactness, check_tensors
from aria_finetune.adapter.mixture import Mixture
from aria_finetune.adapter.sides import Side, Weights, check_same_layout, packing_of
from aria_finetune.data.chat import ChatTokenizer, Picture, Text, Turn
from aria_finetune.errors import UserError
from aria_finetune.model.hub_layout import HubCheckpoint
from aria_finetune.model.loading import load_processor
from aria_finetune.model.settings import vision_tokens
from aria_finetune.model.vision import normalise

TILE = 490
REPORT = "merge.json"
QUESTION = "What is in this picture?"
TEXT = ("Which colours and shapes do you see? Name each once.", "A red circle, a blue square and a green triangle.")
LIMIT_KL = 0.01
"""Nats, mean over positions, that merged weights may be from the live adapter on the original base. NF4 itself costs the tiny Aria 0.04."""
EFFECT_SHARE = 0.5
"""Of the effect of the adapters, as KL, merged weights may be from the live adapter; a merge that lost them is at 1."""
ROUNDING_KL = LIMIT_KL / 10
"""Nats that rounding to the dtype may cost whatever the effect is. It costs the tiny Aria 7e-5, of which a small effect is a fraction."""
PACKED_LIMIT = 4.0
"""So many times as far from the live adapter on NF4 as the merged weights are, packed ones may be. About twice is to be expected: each
of both packings is about as far from the original weights."""

SideName = Literal["base", "live", "live_nf4", "merged", "packed"]
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Row:
    """A sample: what it is called, its token ids, and a picture (1, 3, side, side), uint8, if it shows one."""

    kind: str
    ids: list[int]
    pixels: torch.Tensor | None = None


@dataclass(frozen=True)
class MergeProof:
    """What merged weights are like.

    Attributes:
        rows: the samples: their kinds and how many tokens each has.
        original: merged weights against the live adapter on the original base.
        nf4: the same against the live adapter on that base in NF4: what training saw, so NF4's own loss is in it.
        effect: the original base without the adapter against the live adapter on it: what a merge that lost all would be.
        packed: the NF4 of the merged weights against the live adapter on NF4, where that is written.
        by_layer: of each decoder layer the distance of its output from that of the live adapter, over its length.
        tensors: whether they are to the bit what they should be.
        reached: of each decoder layer how many routed experts the samples' tokens went to in the merged weights.
        experts: how many there are in a layer.
    """

    rows: Mapping[str, int]
    original: Drift
    nf4: Drift
    effect: Drift
    packed: Drift | None
    by_layer: Sequence[float]
    tensors: Exactness
    reached: Sequence[int] = ()
    experts: int = 0

    @property
    def problems(self) -> list[str]:
        """What is beyond its limit."""
        found = []
        if self.tensors.wrong:
            found.append(
                f"{len(self.tensors.wrong)} tensor(s) are not what they should be, such as {self.tensors.wrong[0]}"
            )
        if not self.original.kl <= LIMIT_KL:
            found.append(f"KL from the live adapter is {self.original.kl:.2e} nats, more than {LIMIT_KL}")
        if not self.original.kl <= max(EFFECT_SHARE * self.effect.kl, ROUNDING_KL):
            found.append(
                f"KL from the live adapter is {self.original.kl:.2e} nats, and that of the base without it {self.effect.kl:.2e}: "
                "too much of the adapter is lost"
            )
        limit = max(LIMIT_KL, PACKED_LIMIT * self.nf4.kl)
        if self.packed is not None and not self.packed.kl <= limit:
            found.append(f"in NF4 KL from the live adapter there is {self.packed.kl:.2e} nats, more than {limit:.2e}")
        return found

    @property
    def is_told_by_tensors_alone(self) -> bool:
        """Whether the effect of the adapters on the samples is so small that logits could not tell that it was lost."""
        return self.effect.kl <= ROUNDING_KL

    def as_dict(self) -> dict[str, Any]:
        """As `merge.json` has it."""
        return {
            "verdict": "drift" if self.problems else "ok",
            "problems": self.problems,
            "limit_kl": LIMIT_KL,
            "tensors": self.tensors.as_dict(),
            "told_by_tensors_alone": self.is_told_by_tensors_alone,
            "experts_reached_by_layer": list(self.reached),
            "experts": self.experts,
            "arithmetic": "float32",
            "rows": dict(self.rows),
            "merged_against_live": {"original": asdict(self.original), "nf4": asdict(self.nf4)},
            "base_against_live": {"original": asdict(self.effect)},
            "packed_against_live": None if self.packed is None else {"nf4": asdict(self.packed)},
            "hidden_states_by_layer": list(self.by_layer),
        }

    def refuse_drift(self, folder: Path) -> None:
        """Refuse merged weights that are not what they should be.

        Raises:
            UserError: something is beyond its limit.
        """
        if self.problems:
            raise UserError(
                f"the merged weights do not say what base and adapter say: {'; '.join(self.problems)}",
                where=str(folder),
                fix=f"{REPORT} there has all figures; the same command with --no-proof gives the folder its name all the same",
            )

    def describe(self) -> str:
        """Some lines for people."""
        lines = [
            f"  against the live adapter on the original base   {self.original.describe()}",
            f"  against the live adapter on the base in NF4     {self.nf4.describe()}",
            f"  the base without the adapter, for comparison    {self.effect.describe()}",
        ]
        if self.packed is not None:
            lines.insert(2, f"  packed to NF4, against the same                 {self.packed.describe()}")
        tokens = " and ".join(f"{kind} ({count} tokens)" for kind, count in self.rows.items())
        head = f"proof: {'drift' if self.problems else 'ok'}; logits of the merged weights on rows of {tokens}"
        lines.insert(0, f"  {self.tensors.describe()}")
        if self.reached:
            few = f"at least {min(self.reached)} of {self.experts}"
            lines.append(f"  the rows reached {few} experts in every layer; the tensors of all were compared")
        if self.is_told_by_tensors_alone:
            lines.append(
                "  the adapter's effect on these rows is at the scale of rounding: what proves the merge is its tensors"
            )
        return "\n".join([head, *lines])


@torch.no_grad()
def prove(
    mixture: Mixture,
    base: HubCheckpoint,
    merged: HubCheckpoint,
    *,
    packed: bool = False,
    device: str = "cpu",
    watch: Watch | None = None,
) -> MergeProof:
    """Compare merged weights with base and live adapters.

    Args:
        mixture: the adapters.
        base: the weights that were merged into.
        merged: the result.
        packed: look at the NF4 of the merged weights too.
        device: `cpu` or `cuda`, where all is computed.
        watch: is told how many decoder layers are done, and of how many.

    Raises:
        UserError: the merged checkpoint has other tensors than the base, or is no complete Aria.
    """
    check_same_layout(base, merged)
    tensors = check_tensors(mixture, base, merged)
    rows = sample_rows(base)
    parts = packing_of(base)
    side = partial(Side, rope=mixture.rope)
    sides: dict[SideName, Side] = {
        "base": side(Weights(base, device)),
        "live": side(Weights(base, device), mixture),
        "live_nf4": side(Weights(base, device, parts), mixture),
        "merged": Side(Weights(merged, device)),
    }
    if packed:
        sides["packed"] = Side(Weights(merged, device, parts))
    logits, by_layer = run_beside(sides, rows, device, watch)
    return MergeProof(
        rows={row.kind: len(row.ids) for row in rows},
        original=compare(logits["live"], logits["merged"]),
        nf4=compare(logits["live_nf4"], logits["merged"]),
        effect=compare(logits["live"], logits["base"]),
        packed=compare(logits["live_nf4"], logits["packed"]) if packed else None,
        by_layer=by_layer,
        tensors=tensors,
        reached=sides["merged"].reached,
        experts=sides["merged"].experts,
    )


def run_beside(
    sides: Mapping[SideName, Side], rows: Sequence[Row], device: str, watch: Watch | None = None
) -> tuple[dict[SideName, torch.Tensor], list[float]]:
    """Logits (positions of all rows, vocabulary) of every side, and how far the merged one is from the live one by layer."""
    length = max(len(row.ids) for row in rows)
    ids_BT = torch.tensor([row.ids + [0] * (length - len(row.ids)) for row in rows], device=device)
    real_BT = torch.tensor([[place < len(row.ids) for place in range(length)] for row in rows], device=device)
    pictures = [normalise(row.pixels, torch.float32).to(device) for row in rows if row.pixels is not None]
    hidden = {}
    for name, side in sides.items():
        features = side.features(torch.cat(pictures)) if pictures else None
        hidden[name] = side.embed(ids_BT, features)
    by_layer, layers = [], next(iter(sides.values())).layers
    for number in range(layers):
        for name, side in sides.items():
            hidden[name] = side.layer(number, hidden[name], real_BT)
        if "live" in hidden and "merged" in hidden:
            live = hidden["live"][real_BT]
            by_layer.append(((hidden["merged"][real_BT] - live).norm() / live.norm()).item())
        if watch is not None:
            watch(number + 1, layers)
    return {name: side.logits(hidden[name][real_BT]) for name, side in sides.items()}, by_layer


def sample_rows(checkpoint: HubCheckpoint) -> list[Row]:
    """A question with its answer, and a question on a picture of noise, in the tokens that Aria knows."""
    chat = ChatTokenizer(load_processor(checkpoint).tokenizer)
    question, answer = TEXT
    text = chat.encode([Turn("user", (Text(question),)), Turn("assistant", (Text(answer),))])
    shown = (Picture(vision_tokens(checkpoint)[TILE]), Text(QUESTION))
    image = chat.encode([Turn("user", shown)], generation_prompt=True)
    noise = torch.randint(0, 256, (1, 3, TILE, TILE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [Row("text", list(text.ids)), Row("image", list(image.ids), noise)]
