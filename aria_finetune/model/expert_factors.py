"""Low-rank adapters of routed experts: what they add to products with an expert's weight, and their gradients.

The change of an expert's weight, as large as the weight, is never made: rows are multiplied by one factor and then by the other
(LoRA, arXiv 2106.09685). Factors lie as PEFT's `target_parameters` lays them out, so that they are saved as they are. Knows
nothing of modules or routing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from aria_finetune.model.expert_weights import Weight, multiply, multiply_transposed, product
from aria_finetune.model.nf4 import EXPERT_TENSORS


@dataclass(frozen=True, slots=True)
class Factors:
    """The adapters of one projection of all experts: to the weight (in, out) of an expert they add scaling A^T B^T.

    Attributes:
        a: (experts * rank, in), expert after expert.
        b: (out, rank * experts), of which the experts' columns alternate.
        scaling: alpha / rank, or alpha / sqrt(rank).
        experts: how many there are.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    experts: int

    @property
    def stacked_a(self) -> torch.Tensor:
        """A view of A, (experts, rank, in)."""
        return self.a.view(self.experts, -1, self.a.shape[1])

    @property
    def stacked_b(self) -> torch.Tensor:
        """A view of B, (experts, rank, out)."""
        return self.b.view(len(self.b), -1, self.experts).permute(2, 1, 0)

    def of(self, expert: int, dtype: torch.dtype) -> Pair:
        """The adapter of an expert in a dtype."""
        b = self.stacked_b[expert].contiguous() * self.scaling
        return Pair(self.stacked_a[expert].to(dtype), b.to(dtype), self.scaling)

    def zeros(self) -> Factors:
        """Of the same shapes, fp32, for gradients to be added to."""
        a, b = (torch.zeros_like(factor, dtype=torch.float32) for factor in (self.a, self.b))
        return Factors(a, b, self.scaling, self.experts)


Adapters = tuple[Factors, Factors]
"""Of gate and up, and of down."""


def adapters_of(factors: Mapping[str, Factors]) -> Adapters | None:
    """The factors of both projections by the names of the projections, None where there are none.

    Raises:
        TypeError: there are those of something else, or of one projection alone.
    """
    if factors and set(factors) != set(EXPERT_TENSORS):
        raise TypeError(f"factors of {', '.join(factors)} instead of {' and '.join(EXPERT_TENSORS)}")
    return (factors[EXPERT_TENSORS[0]], factors[EXPERT_TENSORS[1]]) if factors else None


def tensors_of(adapters: Adapters | None) -> tuple[torch.Tensor, ...]:
    """All factors, for autograd to see."""
    return () if adapters is None else tuple(factor for factors in adapters for factor in (factors.a, factors.b))


@dataclass(frozen=True, slots=True)
class Pair:
    """The adapter of one expert: A (rank, in), B (rank, out) times the scaling; both of the dtype of the rows."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    def add(self, product_NO: torch.Tensor, rows_NI: torch.Tensor) -> None:
        """Add what the adapter makes of rows to their product with the weight."""
        add_product(product_NO, product(rows_NI, self.a.T), self.b)

    def add_transposed(self, product_NI: torch.Tensor, rows_NO: torch.Tensor) -> None:
        """The same for the transposed weight."""
        add_product(product_NI, product(rows_NO, self.b.T), self.a)

    def add_gradients(
        self,
        to: Factors,
        expert: int,
        rows_NI: torch.Tensor,
        gradient_NO: torch.Tensor,
        weight_N: torch.Tensor,
    ) -> None:
        """Add the gradients of both factors from some rows, the gradient of their product and what each row counts.

        Sums over rows are fp32.
        """
        back_NR = product(gradient_NO, self.b.T).float().mul_(weight_N[:, None])
        to.stacked_a[expert].addmm_(back_NR.T, rows_NI.float())
        low_NR = product(rows_NI, self.a.T).float().mul_(weight_N[:, None] * self.scaling)
        to.stacked_b[expert].add_(low_NR.T @ gradient_NO.float())


@dataclass(frozen=True, slots=True)
class AdaptedWeight:
    """The weight (in, out) of an expert, with its adapter if it has one."""

    weight: Weight
    pair: Pair | None

    def times(self, rows_NI: torch.Tensor) -> torch.Tensor:
        """Rows times the weight, (N, out), in the dtype of the rows."""
        product_NO = multiply(rows_NI, self.weight)
        if self.pair is not None:
            self.pair.add(product_NO, rows_NI)
        return product_NO

    def times_transposed(self, rows_NO: torch.Tensor) -> torch.Tensor:
        """Rows times the transposed weight, (N, in), in the dtype of the rows."""
        product_NI = multiply_transposed(rows_NO, self.weight)
        if self.pair is not None:
            self.pair.add_transposed(product_NI, rows_NO)
        return product_NI


def add_product(total_NO: torch.Tensor, rows_NR: torch.Tensor, factor_RO: torch.Tensor) -> None:
    """Add a product to what is there; in place but for 16 bit on a CPU, where products have shapes of their own (`product`)."""
    if rows_NR.device.type == "cpu" and rows_NR.dtype.itemsize == 2:
        total_NO.add_(product(rows_NR, factor_RO))
    else:
        total_NO.addmm_(rows_NR, factor_RO)
