"""LoRA layers for the weights of routed experts: PEFT's names and shapes, without the W + delta that PEFT computes.

PEFT's own layer for bare weights (`peft.tuners.lora.layer.ParamWrapper`) makes the delta of all experts of a layer in every
forward, and finds neither packed weights nor those in host memory. These hand their factors to the function that computes the
experts (`lean`, `grouped`). Two of them are nested as PEFT nests two parameters of one module, so that what is saved is
one adapter that plain PEFT loads with `target_parameters`. Knows nothing of how experts are computed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers import AriaForConditionalGeneration
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.errors import UserError
from aria_finetune.model.expert_factors import Factors
from aria_finetune.model.experts import LEAN
from aria_finetune.model.grouped_experts import GROUPED
from aria_finetune.model.nf4 import EXPERT_TENSORS
from aria_finetune.model.targets import PLACES

ADAPTER = "default"
"""PEFT's name of a model's only adapter."""


class ExpertLora(nn.Module, LoraLayer):  # type: ignore[misc]
    """The adapters of one projection of all experts of a layer.

    Dropout there is none: with it, what PEFT computes from the saved adapter would not be what was trained.

    Args:
        base_layer: the experts, or the layer of their other projection.
        name: `gate_up_proj` or `down_proj`.
        config: rank of every expert's pair, alpha, and whether the root of the rank makes the scaling (`use_rslora`).
        generator: of the random start of A, on a CPU.
        device: where the factors are to be.
    """

    # What PEFT's layers have, for which it gives no types.
    base_layer: Any
    r: dict[str, int]
    lora_alpha: dict[str, float]
    scaling: dict[str, float]
    use_rslora: dict[str, bool]
    use_dora: dict[str, bool]
    lora_bias: dict[str, bool]
    lora_dropout: nn.ModuleDict
    lora_A: Any  # noqa: N815 (PEFT's name)
    lora_B: Any  # noqa: N815 (PEFT's name)
    in_features: int
    out_features: int
    disable_adapters: bool

    def __init__(
        self,
        base_layer: nn.Module,
        name: str,
        config: LoraConfig,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.parameter_name = name
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        experts, rank = self.experts.num_experts, config.r
        self.r[ADAPTER], self.lora_alpha[ADAPTER] = rank, config.lora_alpha
        self.scaling[ADAPTER] = config.lora_alpha / (math.sqrt(rank) if config.use_rslora else rank)
        self.use_rslora[ADAPTER], self.use_dora[ADAPTER], self.lora_bias[ADAPTER] = config.use_rslora, False, False
        self.lora_dropout[ADAPTER] = nn.Identity()
        a = torch.empty(experts * rank, self.in_features)
        # As PEFT starts every A: uniform within the root of one over the inputs of a row, which are an expert's own.
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        self.lora_A[ADAPTER] = _linear(a.to(device))
        self.lora_B[ADAPTER] = _linear(torch.zeros(self.out_features, rank * experts, device=device))
        self._active_adapter = ADAPTER

    def _get_in_out_features(self, module: AriaExperts) -> tuple[int, int]:
        hidden, width = module.hidden_dim, module.intermediate_dim
        return (hidden, 2 * width) if self.parameter_name == "gate_up_proj" else (width, hidden)

    @property
    def experts(self) -> Any:
        """The experts themselves."""
        base = self.base_layer
        return base.experts if isinstance(base, ExpertLora) else base

    @property
    def config(self) -> Any:
        """What the experts were made by."""
        return self.experts.config

    def factors(self) -> Factors:
        """A and B, not copied."""
        a, b = (matrices[ADAPTER].weight for matrices in (self.lora_A, self.lora_B))
        return Factors(a, b, self.scaling[ADAPTER], self.experts.num_experts)

    def forward(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
        **factors: Factors,
    ) -> torch.Tensor:
        """What the experts compute, with this adapter among their factors unless it is switched off."""
        if not self.disable_adapters:
            factors[self.parameter_name] = self.factors()
        output: torch.Tensor = self.base_layer(hidden_states, top_k_index, top_k_weights, **factors)
        return output


def expert_layers(model: AriaForConditionalGeneration, config: LoraConfig, where: str | None = None) -> list[str]:
    """Names of the decoder layers whose routed experts have adapters, by a configuration as plain PEFT reads it.

    Args:
        model: with the experts that are to have them.
        config: names them among `target_parameters`.
        where: errors say that the configuration is.

    Raises:
        UserError: experts are computed in a way that knows no adapters, only one of their projections has any, or they
            differ in rank or scaling.
    """
    place, text = PLACES["experts"], model.config.text_config
    wanted = {
        layer: {name for name in place.parameter_names([layer]) if _is_meant(name, config)}
        for layer in range(text.num_hidden_layers)
    }
    layers = [layer for layer, names in wanted.items() if names]
    if any(len(wanted[layer]) < len(place.parameters) for layer in layers):
        message = "adapters of routed experts are on one of their two projections alone"
        raise UserError(message, where=where, fix="load it with plain PEFT")
    if layers and (config.rank_pattern or config.alpha_pattern):
        message = "adapters of routed experts differ in rank or alpha by layer"
        raise UserError(message, where=where, fix="load it with plain PEFT")
    implementation = text._experts_implementation  # noqa: SLF001 (it has no other name)
    if layers and implementation not in (LEAN, GROUPED):
        raise UserError(
            f"experts that {implementation} computes can't have adapters: it knows no weight but whole ones, and W + delta "
            "of a layer is as large as the layer",
            where=where,
            fix="set moe.implementation to auto, lean or grouped",
        )
    return [place.layer.format(layer=layer) for layer in layers]


def put_expert_adapters(model: nn.Module, layers: Sequence[str], config: LoraConfig, seed: int = 0) -> None:
    """Wrap the routed experts of some layers.

    Args:
        model: an `AriaForConditionalGeneration`, which may be within a `PeftModel`.
        layers: from `expert_layers`.
        config: has rank, alpha and how they make the scaling.
        seed: of the random start of the A matrices: the same values on every device. B starts at zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for name in layers:
        mixture: Any = model.get_submodule(f"{name}.mlp")
        device = mixture.shared_experts.down_proj.weight.device
        for projection in EXPERT_TENSORS:
            mixture.experts = ExpertLora(mixture.experts, projection, config, generator, device)
        mixture.experts.train(mixture.training)


def without_experts(config: LoraConfig) -> LoraConfig:
    """A configuration for PEFT to put all other adapters by."""
    rest = copy.copy(config)
    rest.target_parameters = [name for name in config.target_parameters or () if not _is_of_experts(name)] or None
    if not rest.target_modules and rest.target_parameters is None:
        rest.target_modules = DUMMY_TARGET_MODULES  # PEFT's own word for none
    return rest


def speak_of_all(model: PeftModel, config: LoraConfig) -> None:
    """Let the configuration that is saved with a model name the experts too."""
    own = model.peft_config[ADAPTER]
    own.target_modules, own.target_parameters = config.target_modules, config.target_parameters


def _is_meant(parameter: str, config: LoraConfig) -> bool:
    """Whether PEFT would take a parameter for one of `target_parameters`."""
    return any(f".{parameter}".endswith(f".{name}") for name in config.target_parameters or ())


def _is_of_experts(name: str) -> bool:
    return any(name.endswith(parameter) for parameter in PLACES["experts"].parameters)


def _linear(weight_OI: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight_OI)
    return linear
