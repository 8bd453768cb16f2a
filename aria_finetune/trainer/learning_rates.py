"""LoRA+ (arXiv 2402.12354): B matrices learn faster than A matrices. Knows an optimizer's groups and names, no models."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.optim import Optimizer

FASTER = ".lora_B."
"""Marks the names of B matrices."""


def speed_up(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], ratio: float) -> None:
    """Give the B matrices groups of their own, whose learning rate is `ratio` times as large; all else of a group stays.

    PEFT's `create_loraplus_optimizer` would make the optimizer itself, with a weight decay of its own. Here the groups of the
    others stay first, so that what is logged as the learning rate is theirs.

    Args:
        optimizer: any of torch or bitsandbytes that has made no step and has no scheduler yet.
        parameters: of the model, by name.
        ratio: of the learning rate of B over that of all else.
    """
    faster = {id(parameter) for name, parameter in parameters.items() if FASTER in name}
    for group in list(optimizer.param_groups):
        chosen = [parameter for parameter in group["params"] if id(parameter) in faster]
        if chosen:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in faster]
            optimizer.add_param_group({**group, "params": chosen, "lr": group["lr"] * ratio})
