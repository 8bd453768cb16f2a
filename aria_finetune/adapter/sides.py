"""An Aria that is run a layer at a time, its weights read from a checkpoint when they are needed and dropped behind it.

transformers' own modules, in fp32, with the weights of one layer at a time and of its experts one at a time: as they are stored, or
as NF4 would have them, alone or with adapters live. Adapters multiply their two matrices by tokens one after the other, as PEFT does, and never make
the change of a weight that merging adds (of routers they do, as PEFT does there). Knows checkpoints, adapters and modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors import safe_open
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from transformers import AriaConfig
from transformers.models.aria.modeling_aria import AriaExperts

from aria_finetune.adapter.files import AdapterFiles
from aria_finetune.adapter.mixture import Mixture, Share
from aria_finetune.errors import UserError
from aria_finetune.model.filling import empty_aria
from aria_finetune.model.hub_layout import HubCheckpoint, disk_name, memory_name
from aria_finetune.model.loading import check_complete, set_rope
from aria_finetune.model.nf4 import PackedRows, Packer, quantize_linear
from aria_finetune.model.rope import Rope
from aria_finetune.model.tower import used_layers
from aria_finetune.quantization import Part, plan_parts

EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
HEAD_ROWS = 8192
"""Of the lm_head at a time: 84 MB in fp32 for the real Aria."""
PACKED_AS = torch.bfloat16
"""The dtype that weights are packed from and dequantised to, as they are in training and by `quantize`."""

Expert = Callable[[int], torch.Tensor]
"""Gives the weight (in, out) of an expert by its number."""


class Weights:
    """The weights of a checkpoint as fp32 on a device.

    Args:
        checkpoint: dense, in the hub layout.
        device: `cpu` or `cuda`.
        nf4: what of it is to be as NF4 leaves it.
    """

    def __init__(self, checkpoint: HubCheckpoint, device: str, nf4: Sequence[Part] = ()) -> None:
        self.checkpoint, self.device = checkpoint, device
        self._packed = {name for part in nf4 for name, kind in part.weights.items() if kind in {"linear", "experts"}}

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor."""
        stored = self.checkpoint.read(name).to(self.device)
        if name in self._packed:
            stored = dequantize_4bit(*quantize_linear(stored.to(PACKED_AS)))
        return stored.float()

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of a tensor that is never packed."""
        with self._slice(name) as stored:
            rows: torch.Tensor = stored[start:stop].to(self.device).float()
        return rows

    @contextmanager
    def experts(self, name: str) -> Iterator[Expert]:
        """A stack of experts, one at a time. In NF4 the whole stack is packed first, as its scales are packed together."""
        with self._slice(name) as stored:
            if name not in self._packed:
                yield lambda expert: stored[expert : expert + 1][0].to(self.device).float()
                return
            shape = torch.Size(stored.get_shape())
            packer = Packer(shape, PACKED_AS, self.device)
            for expert in range(shape[0]):
                packer.add(expert, stored[expert : expert + 1])
            packed = PackedRows(*packer.finish())
            yield lambda expert: packed[expert : expert + 1][0].float()

    @contextmanager
    def _slice(self, name: str) -> Iterator[Any]:
        with safe_open(self.checkpoint.folder / self.checkpoint.files[name], "pt") as opened:
            yield opened.get_slice(name)


class LiveLinear(nn.Module):
    """A linear with adapters beside it; its weight and bias are given with every call, as those of other modules are."""

    def __init__(self, linear: nn.Linear, name: str, shares: Sequence[Share]) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._name, self._shares = name, shares

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """W x + b and what the adapters add."""
        product = functional.linear(x, self.weight)
        output = product if self.bias is None else product + self.bias
        for share in self._shares:
            files = share.files
            a_RI, b_OR = (matrix.to(x.device) for matrix in files.matrices(self._name))
            added = files.scaling * functional.linear(functional.linear(x, a_RI), b_OR)
            if files.has_magnitudes:
                norm_O = torch.linalg.vector_norm(self.weight + files.scaling * b_OR @ a_RI, dim=1)
                factor_O = files.magnitude(self._name).to(x.device) / norm_O
                added = (factor_O - 1) * product + factor_O * added
            output = output + share.weight * added
        return output


class StreamedExperts(nn.Module):
    """The routed experts of a layer, those that tokens are sent to, one at a time, with adapters beside them."""

    def __init__(self, experts: AriaExperts, weights: Weights, names: Sequence[str], mixture: Mixture | None) -> None:
        super().__init__()
        self._weights, self._names, self.count = weights, names, experts.num_experts
        self._activate = experts.act_fn
        self._shares = [mixture.of(name) if mixture else [] for name in names]
        self.chosen_TK: torch.Tensor | None = None

    def forward(self, hidden_TH: torch.Tensor, chosen_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the chosen experts, (T, H). The first projections of all come before the second of any."""
        self.chosen_TK = chosen_TK
        places = {}
        for expert in range(self.count):
            tokens, ranks = torch.where(chosen_TK == expert)
            if len(tokens):
                places[expert] = (tokens, ranks)
        inner = {}
        for expert, projected in self._projected(0, {e: hidden_TH[tokens] for e, (tokens, _) in places.items()}):
            gate, up = projected.chunk(2, dim=-1)
            inner[expert] = self._activate(gate) * up
        output_TH = torch.zeros_like(hidden_TH)
        for expert, projected in self._projected(1, inner):
            tokens, ranks = places[expert]
            output_TH.index_add_(0, tokens, projected * weights_TK[tokens, ranks, None])
        return output_TH

    def _projected(self, which: int, inputs: Mapping[int, torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        name, shares = self._names[which], self._shares[which]
        pairs = [(share, share.files.matrices(name)) for share in shares]
        with self._weights.experts(name) as weight:
            for expert, x in inputs.items():
                output = x @ weight(expert)
                for share, (a_RI, b_OR) in pairs:
                    # As PEFT lays them out: A by expert, B with the experts' columns alternating.
                    a_of_one_RI = a_RI.chunk(self.count)[expert].to(x.device)
                    b_of_one_OR = b_OR.view(len(b_OR), -1, self.count)[:, :, expert].to(x.device)
                    output = output + share.weight * share.files.scaling * ((x @ a_of_one_RI.T) @ b_of_one_OR.T)
                yield expert, output


class Side:
    """One of the models that are compared; all of them are called with the same rows, a layer of each after the other.

    Args:
        weights: what it is made of.
        mixture: adapters that are live, or None.
        rope: what they were trained with, in the place of what config.json says.

    Attributes:
        reached: of each layer that was run, how many of its `experts` tokens of the rows went to.

    Raises:
        UserError: the checkpoint is no complete Aria, or a tensor has another shape than config.json says.
    """

    def __init__(self, weights: Weights, mixture: Mixture | None = None, rope: Rope | None = None) -> None:
        self._weights, self._mixture = weights, mixture
        self.reached: list[int] = []
        self.experts = 0
        config = AriaConfig.from_pretrained(weights.checkpoint.folder)
        if rope is not None:
            set_rope(config, rope)
        kernels = {"": "eager", "vision_config": "eager", "text_config": "eager"}
        self._model = empty_aria(config, torch.float32, attention="sdpa", experts=kernels)
        check_complete(self._model, weights.checkpoint)
        self._image_id: int = config.image_token_id
        for path, module in list(self._model.named_modules()):
            name = disk_name(f"{path}.weight")
            if isinstance(module, AriaExperts):
                names = [disk_name(f"{path}.{parameter}") for parameter in ("gate_up_proj", "down_proj")]
                self._model.set_submodule(path, StreamedExperts(module, weights, names, mixture))
            elif mixture is not None and isinstance(module, nn.Linear) and mixture.of(name):
                self._model.set_submodule(path, LiveLinear(module, name, mixture.of(name)))
        for module in self._model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(weights.device))

    @property
    def layers(self) -> int:
        """Of the decoder."""
        return len(self._model.model.language_model.layers)

    def features(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """What tower and projector make of normalised pictures without padding, (N, image tokens, hidden)."""
        tower = self._model.model.vision_tower
        mask_NRC = torch.ones(len(pixels_NCHW), *(side // tower.patch_size for side in pixels_NCHW.shape[-2:]))
        start = "model.vision_tower"
        hidden = self._call(f"{start}.embeddings", pixels_NCHW, mask_NRC.bool().to(pixels_NCHW.device))
        for layer in used_layers(len(tower.encoder.layers), self._model.config.vision_feature_layer):
            hidden = self._call(f"{start}.encoder.layers.{layer}", hidden, attention_mask=None)
        return self._call("model.multi_modal_projector", hidden)

    def embed(self, ids_BT: torch.Tensor, features_NQH: torch.Tensor | None) -> torch.Tensor:
        """(B, T, hidden): rows of the embedding, image tokens replaced by features."""
        used, places_BT = torch.unique(ids_BT, return_inverse=True)
        rows = torch.cat([self._weights.rows(EMBEDDING, number, number + 1) for number in used.tolist()])
        embedded_BTH = rows[places_BT]
        if features_NQH is not None:
            seen_BT1 = (ids_BT == self._image_id)[..., None]
            embedded_BTH = embedded_BTH.masked_scatter(seen_BT1, features_NQH)
        return embedded_BTH

    def layer(self, number: int, hidden_BTH: torch.Tensor, real_BT: torch.Tensor) -> torch.Tensor:
        """One layer of the decoder. Rows are filled up behind their end, where nothing before it looks and `real_BT` is False."""
        language = self._model.model.language_model
        places = torch.arange(hidden_BTH.shape[1], device=hidden_BTH.device)[None]
        turned = language.rotary_emb(hidden_BTH, places)
        path = f"model.language_model.layers.{number}"
        output = self._call(path, hidden_BTH, position_ids=places, position_embeddings=turned, attention_mask=None)
        experts = language.layers[number].mlp.experts
        self.experts = experts.count
        self.reached.append(len(experts.chosen_TK[real_BT.flatten()].unique()))
        return output

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """(N, vocabulary) of positions behind the last layer, on the CPU."""
        normed_NH = self._call("model.language_model.norm", hidden_NH)
        name = HEAD if HEAD in self._weights.checkpoint.stored else EMBEDDING
        vocabulary = self._weights.checkpoint.stored[name].shape[0]
        logits_NV = torch.empty(len(hidden_NH), vocabulary)
        for start in range(0, vocabulary, HEAD_ROWS):
            stop = min(start + HEAD_ROWS, vocabulary)
            logits_NV[:, start:stop] = normed_NH @ self._weights.rows(name, start, stop).T
        return logits_NV

    def _call(self, path: str, *inputs: torch.Tensor, **options: Any) -> torch.Tensor:
        """A module with its weights, which are dropped behind it."""
        module = self._model.get_submodule(path)
        values = {name: self._value(disk_name(f"{path}.{name}")) for name, _ in module.named_parameters()}
        output: torch.Tensor = functional_call(module, values, inputs, options)
        return output

    def _value(self, name: str) -> torch.Tensor:
        value = self._weights.read(name)
        if self._mixture is not None and memory_name(name).endswith(".mlp.router.weight"):
            for share in self._mixture.of(name):
                value = value + share.weight * _change(share.files, name).to(value)
        return value


def _change(files: AdapterFiles, name: str) -> torch.Tensor:
    """Of a router, which PEFT adapts by its weight."""
    a_RI, b_OR = files.matrices(name)
    return files.scaling * (b_OR @ a_RI)


def check_same_layout(base: HubCheckpoint, merged: HubCheckpoint) -> None:
    """Compare names, shapes and dtypes of what was merged with those of the base.

    Raises:
        UserError: they differ.
    """
    layouts = [{name: (t.shape, t.dtype) for name, t in checkpoint.stored.items()} for checkpoint in (base, merged)]
    odd = sorted(name for name in layouts[0].keys() | layouts[1].keys() if layouts[0].get(name) != layouts[1].get(name))
    if odd:
        raise UserError(
            f"{len(odd)} tensor(s) are not what they are in the base, such as {odd[0]}", where=str(merged.folder)
        )


def packing_of(checkpoint: HubCheckpoint) -> list[Part]:
    """What NF4 is for in a checkpoint."""
    return plan_parts(checkpoint)
