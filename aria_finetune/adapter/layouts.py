"""The module layouts of transformers that adapters were made under, and the names and settings that PEFT has in each.

From 5.18 on, routed experts are two bare parameters of one module and the router a bare parameter. Up to 5.17 each stack of experts was a module
(`fc1`, `fc2`) with a parameter `weight`, and the router a linear; up to 4.51 the parts of the model had other prefixes as
well. The matrices are the same in all of them, but for those of routed experts, whose modules used not to say which way they lie
(`files.turned`). Knows names and configurations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

Layout = Literal["current", "old"]
"""Of transformers 5.18 and newer, or up to 5.17."""
PREFIX = "base_model.model."
EXPERTS = ((".mlp.experts.fc1", ".mlp.experts.base_layer"), (".mlp.experts.fc2", ".mlp.experts"))
"""What the pairs of both stacks of experts end in, old and current."""
PARAMETERS = (
    ("mlp.experts.fc1.weight", "mlp.experts.gate_up_proj"),
    ("mlp.experts.fc2.weight", "mlp.experts.down_proj"),
)
"""How the names of the parameters end that they are of."""
STARTS = (
    ("language_model.model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
"""Prefixes up to 4.51, and since."""
ROUTER = ".mlp.router"


def renamed(stem: str, layout: Layout) -> str:
    """What a layout calls a pair, whatever layout its name is of."""
    name = stem.removeprefix(PREFIX)
    for old, new in STARTS:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    for old, current in EXPERTS:
        before, after = (old, current) if layout == "current" else (current, old)
        if name.endswith(before):
            name = name.removesuffix(before) + after
            break
    return PREFIX + name


def adapted_config(config: Mapping[str, Any], stems: Iterable[str], layout: Layout) -> dict[str, Any]:
    """An adapter's configuration as PEFT needs it in a layout; `stems` are its pairs by the names they have there.

    Linears are named as they were, unless a router is among them or their names have other prefixes: then one by one. Routers are
    named as parameters, which PEFT finds in both layouts.
    """
    names = sorted(stem.removeprefix(PREFIX) for stem in stems)
    experts = [name for name in names if any(name.endswith(end) for pair in EXPERTS for end in pair)]
    routers = [name for name in names if name.endswith(ROUTER)]
    linears = [name for name in names if name not in {*experts, *routers}]
    parameters = [_in_layout(name, layout) for name in config.get("target_parameters") or []]
    if routers and not any(name.endswith("mlp.router.weight") for name in parameters):
        parameters += [f"{name}.weight" for name in routers]
    changed = dict(config) | {"target_parameters": parameters or None}
    if parameters:
        changed["lora_dropout"] = 0.0  # PEFT has none beside parameters, and it acts in training alone
    if _names_too_much(config.get("target_modules"), routers=bool(routers), linears=bool(linears)):
        changed["target_modules"] = linears
    return changed


def _names_too_much(modules: Any, *, routers: bool, linears: bool) -> bool:
    """Whether target modules may be something else in this layout than what they were made for."""
    if not linears:
        return bool(modules)
    text = modules if isinstance(modules, str) else " ".join(modules or [])
    old_prefix = any(old.removesuffix(".") in text.replace("\\", "") for old, _ in STARTS[:1])
    return (routers and "router" in text) or old_prefix or text == "all-linear"


def _in_layout(parameter: str, layout: Layout) -> str:
    for old, current in PARAMETERS:
        before, after = (old, current) if layout == "current" else (current, old)
        if parameter.endswith(before):
            return parameter.removesuffix(before) + after
    return parameter
