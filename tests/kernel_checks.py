"""What tests of kernels share: values, and how far a result may be from arithmetic in fp64."""

from __future__ import annotations

import torch

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 5e-3}


def random_tensor(device: str, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Normally distributed values; other seeds give other values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def assert_close(found: torch.Tensor, due: torch.Tensor) -> None:
    """Hold a result against one of fp64."""
    assert found.shape == due.shape
    assert not found.isnan().any()
    distance = (found.double() - due).norm() / due.norm().clamp_min(1e-30)
    assert distance < ROUNDING[found.dtype], f"off by {distance:.1e}"
