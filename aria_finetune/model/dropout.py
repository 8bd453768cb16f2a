"""Dropout whose masks belong to the rows: each row's is drawn from a seed of its own.

torch's dropout draws from one global stream, so that a mask depends on the batch a row is in, on its padding and
on everything drawn before. Here it depends on the row's seed and the module's number alone; gradient
checkpointing's second forward draws the same again. Knows nothing of epochs' orders, LoRA or the trainer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Segment:
    """One sample's place in a batch: row `batch`, tokens `start` to `start + length`; `seed` decides its masks."""

    batch: int
    start: int
    length: int
    seed: int


class RowRandomness:
    """Where the samples of the current micro-batch lie; shared by every module of a model that draws for them.

    It stays from one `set` to the next, because the backward pass of a checkpointed model reads it again: set it
    before a forward pass, and not again before the backward pass of that one is over.
    """

    def __init__(self) -> None:
        self._segments: tuple[Segment, ...] = ()
        self._shape: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int] | None:
        """Rows and tokens of the batch that is described, or None when none is."""
        return self._shape

    def set(self, segments: Iterable[Segment], shape: tuple[int, int]) -> None:
        """Describe a batch of `shape` (rows, tokens). Tokens outside every segment, which is padding, keep all.

        Raises:
            ValueError: a segment is empty, lies outside the batch or on another one.
        """
        chosen = tuple(sorted(segments, key=lambda segment: (segment.batch, segment.start)))
        rows, width = shape
        ends = [0] * rows
        for segment in chosen:
            if not (0 <= segment.batch < rows and segment.length > 0 and segment.start + segment.length <= width):
                raise ValueError(f"{segment} does not lie in a batch of {rows} x {width}")
            if segment.start < ends[segment.batch]:
                raise ValueError(f"{segment} begins before {ends[segment.batch]}, where its row is free")
            ends[segment.batch] = segment.start + segment.length
        self._segments, self._shape = chosen, (rows, width)

    def clear(self) -> None:
        """Describe no batch: dropout is torch's own again."""
        self._segments, self._shape = (), None

    def dropped(self, shape_BSH: torch.Size, module: int, probability: float, device: torch.device) -> torch.Tensor:
        """Which entries of an input (batch, tokens, hidden) a module drops, as bool; false on padding.

        Padding could as well be dropped: no token attends to it and it has no label.

        Raises:
            RuntimeError: the input is not the batch that was described.
        """
        dropped_BSH = torch.zeros(shape_BSH, dtype=torch.bool, device=device)
        for segment, generator in self.generators(shape_BSH, module, device):
            place = dropped_BSH[segment.batch, segment.start : segment.start + segment.length]
            place.bernoulli_(probability, generator=generator)
        return dropped_BSH

    def generators(
        self, shape_BSH: torch.Size, module: int, device: torch.device
    ) -> Iterator[tuple[Segment, torch.Generator]]:
        """Every sample's place in an input (batch, tokens, hidden), with a generator that is the sample's and the module's.

        Raises:
            RuntimeError: the input is not the batch that was described.
        """
        if tuple(shape_BSH[:-1]) != self._shape:
            raise RuntimeError(f"the rows of a batch of {self._shape} are known, the input is {tuple(shape_BSH)}")
        generator = torch.Generator(device)
        for segment in self._segments:
            yield segment, generator.manual_seed(mixed(segment.seed, module))


class RowDropout(nn.Module):
    """Dropout by the seeds in `rows`; torch's own while `rows` describes no batch.

    Args:
        probability: of dropping an entry; what is kept is scaled by 1 / (1 - probability).
        number: tells the masks of this module from those of the others on the same rows.
        rows: shared by all modules of a model.
    """

    def __init__(self, probability: float, *, number: int, rows: RowRandomness) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"a dropout of {probability} is not in [0, 1)")
        self.p = probability
        self.number = number
        self.rows = rows

    def forward(self, x_BSH: torch.Tensor) -> torch.Tensor:
        """Drop entries in training; (batch, tokens, hidden) in and out, any float dtype."""
        if not self.training or self.p == 0:
            return x_BSH
        if self.rows.shape is None:
            return functional.dropout(x_BSH, self.p)
        dropped_BSH = self.rows.dropped(x_BSH.shape, self.number, self.p, x_BSH.device)
        return x_BSH.masked_fill(dropped_BSH, 0).mul_(1 / (1 - self.p))

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"p={self.p}, number={self.number}"


def assign_rows(model: nn.Module, seeds: Sequence[int], attention_mask: torch.Tensor) -> None:
    """Give the rows of the coming forward pass their seeds; nothing to do in a model that draws nothing.

    Args:
        model: anything whose modules share one `RowRandomness`.
        seeds: one for each row, from `row_seed`.
        attention_mask: (rows, tokens), 1 on text and image tokens, 0 on padding, which stands on the right.

    Raises:
        ValueError: seeds and rows differ in number, a row is empty or not padded on the right.
    """
    if row_randomness(model) is None:
        return
    if (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
        raise ValueError("a row is not padded on the right")
    lengths = attention_mask.sum(dim=1).tolist()
    _assign(model, seeds, [(row, 0, length) for row, length in enumerate(lengths)], tuple(attention_mask.shape))


def assign_packed_rows(model: nn.Module, seeds: Sequence[int], lengths: Sequence[int]) -> None:
    """The same for rows of so many tokens that lie one behind the other in a batch of one.

    Raises:
        ValueError: seeds and rows differ in number, or a row is empty.
    """
    places = [(0, end - length, length) for end, length in zip(accumulate(lengths), lengths, strict=True)]
    _assign(model, seeds, places, (1, sum(lengths)))


def _assign(
    model: nn.Module, seeds: Sequence[int], places: Sequence[tuple[int, int, int]], shape: tuple[int, ...]
) -> None:
    if len(seeds) != len(places):
        raise ValueError(f"{len(seeds)} seed(s) for {len(places)} row(s)")
    randomness = row_randomness(model)
    if randomness is not None:
        segments = [Segment(*place, seed) for place, seed in zip(places, seeds, strict=True)]
        randomness.set(segments, (shape[0], shape[1]))


def row_randomness(model: nn.Module) -> RowRandomness | None:
    """What the modules of `model` share that draw for rows, or None when there are none."""
    shared = (getattr(module, "rows", None) for module in model.modules())
    return next((rows for rows in shared if isinstance(rows, RowRandomness)), None)


def row_seed(seed: int, epoch: int, row: int) -> int:
    """Seed of a row in an epoch: the same in every process, on every machine."""
    return mixed(seed, epoch, row)


def mixed(*numbers: int) -> int:
    """63 bits that look random and depend on `numbers` and their order alone.

    All bits count for CUDA; the generator of a CPU takes the lower 32.
    """
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
