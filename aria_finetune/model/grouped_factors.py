"""Low-rank adapters of the experts of a group, for rows that are sorted by expert; `expert_factors` for all of them at once.

Everything that is made is of low rank but what is added to, so that a layer takes as much memory with adapters as without, and
nothing waits for the GPU. Knows kernels, not routing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aria_finetune.kernels.matmul import grouped_matmul
from aria_finetune.kernels.outer import grouped_outer
from aria_finetune.model.expert_factors import Factors


@dataclass(frozen=True, slots=True)
class GroupPairs:
    """A (J, rank, in) and B (J, rank, out) times the scaling of a group of experts, in the dtype of their rows.

    Attributes:
        ends: int32 (J,), the row behind the last of each expert.
        numbers: int32 (J,), which experts of the layer they are; None where they are all.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    ends: torch.Tensor
    numbers: torch.Tensor | None

    @classmethod
    def of(cls, factors: Factors, numbers: torch.Tensor, ends: torch.Tensor, dtype: torch.dtype) -> GroupPairs:
        """The pairs of some experts; of all, whatever their numbers, if there are as many numbers as experts."""
        a, b, chosen = factors.stacked_a, factors.stacked_b, None
        if len(numbers) < factors.experts:
            a, b, chosen = a.index_select(0, numbers), b.index_select(0, numbers), numbers
        return cls(a.to(dtype), (b * factors.scaling).to(dtype).contiguous(), factors.scaling, ends, chosen)

    def low(self, rows_SI: torch.Tensor) -> torch.Tensor:
        """Rows times A, (S, rank)."""
        return grouped_matmul(rows_SI, self.a, self.ends, transposed=True)

    def add(self, product_SO: torch.Tensor, rows_SI: torch.Tensor) -> torch.Tensor:
        """Add what adapters make of rows to their products with the weights; gives `low`."""
        low_SR = self.low(rows_SI)
        grouped_matmul(low_SR, self.b, self.ends, output_SO=product_SO, add=True)
        return low_SR

    def add_transposed(self, product_SI: torch.Tensor, rows_SO: torch.Tensor) -> torch.Tensor:
        """The same for the transposed weights; gives rows times B, (S, rank)."""
        back_SR = grouped_matmul(rows_SO, self.b, self.ends, transposed=True)
        grouped_matmul(back_SR, self.a, self.ends, output_SO=product_SI, add=True)
        return back_SR

    def put_a_gradient(self, to: Factors, back_SR: torch.Tensor, rows_SI: torch.Tensor) -> None:
        """The gradient of A, from rows and from what their products' gradients are behind B."""
        self._put(to.stacked_a, grouped_outer(back_SR, rows_SI, self.ends))

    def put_b_gradient(self, to: Factors, low_SR: torch.Tensor, gradient_SO: torch.Tensor) -> None:
        """The gradient of B, from what rows are behind A and from the gradients of their products."""
        self._put(to.stacked_b, grouped_outer(low_SR, gradient_SO, self.ends).mul_(self.scaling))

    def _put(self, to_ERX: torch.Tensor, found_JRX: torch.Tensor) -> None:
        if self.numbers is None:
            to_ERX.copy_(found_JRX)
        else:
            to_ERX.index_copy_(0, self.numbers.long(), found_JRX)
