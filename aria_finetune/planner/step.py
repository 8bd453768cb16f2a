"""Peak memory of a run by phase, from what each phase holds at its fullest.

What a layer holds for a token is counted from the tensors that its forward leaves to its backward, and from those that the
backward has at the same time; the comments name them. On a CPU the counts are held against measured peaks (docs/plan.md); on
CUDA nothing has been measured. Knows nothing of how a step is computed beyond that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from aria_finetune.model.targets import SEEING
from aria_finetune.planner.architecture import Architecture
from aria_finetune.planner.resident import FLOAT32, Adapter, Holding, adapter_bytes, model_components

Device = Literal["cpu", "cuda"]
Implementation = Literal["lean", "grouped", "grouped_mm", "eager"]
PhaseName = Literal["filling", "loading", "vision", "loss", "backward", "optimizer", "evaluation", "answers"]

MIB = 2**20
HEAD_ROWS = 4096
HEAD_TOKENS: Mapping[Device, int] = {"cpu": 1024, "cuda": 4096}
"""Rows of the lm_head, and labels that they score at a time (model/head_loss.py)."""
EXPERT_ROWS = 2048
"""Tokens of an expert that are computed at a time (model/experts.py)."""
SHARED_ROWS = 1024
"""Tokens of the shared experts that are computed at a time on a CPU (model/shared_experts.py)."""
PIECE_BYTES = 2 * MIB
"""Of an expert's weight that is dequantised at a time on a CPU (model/expert_weights.py)."""
NORM_PIECE_BYTES = 16 * MIB
"""Of a weight whose rows DoRA measures in fp32 at a time, without its adapter and with it (model/dora.py)."""
READ_AHEAD_BYTES = 8 * 32 * MIB
"""Pieces of tensors on their way while a model is loaded, of 32 MiB each at most."""
TILES_AT_A_TIME = {490: 4, 980: 1}
"""Tiles that go through the vision tower together on a GPU, by their side in pixels (model/vision.py)."""
TOWER_ROWS = 1225
"""Patches in the feed-forward of a layer of the tower at a time on a CPU (model/tower.py)."""
CUDA_CONTEXT = 512 * MIB
"""What a process takes on a card before its first tensor, with the workspaces of cuBLAS."""
CPU_RUNTIME = 48 * MIB
"""What libraries take on a CPU from their first use on: threads, arenas, modules imported late."""
KERNEL_BYTES = 0.4 * MIB
"""Of machine code that oneDNN writes for the shape of a 16-bit product on a CPU, and keeps; measured."""
KEPT_KERNELS = 4096
DENSE_KERNELS, FORWARD_KERNELS = 30, 10
"""Shapes of products that every number of tokens brings anew: attention, its adapters, shared experts, lm_head."""


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch: rows, tokens of the longest of them, labels and tiles by side of all of them.

    `waiting` are the tiles of a whole optimizer step, whose bytes are on the device from its beginning; those of the micro-batch
    alone where none are named. `lengths` is how many different numbers of tokens micro-batches have, `other_lengths` those of evaluation. Of
    evaluation, `answers` are rows and tokens, answers included, of the largest batch of prompts that is answered, (0, 0) where none is.
    """

    rows: int
    tokens: int
    labels: int
    tiles: Mapping[int, int] = field(default_factory=dict)
    waiting: Mapping[int, int] = field(default_factory=dict)
    lengths: int = 1
    other_lengths: int = 0
    answers: tuple[int, int] = (0, 0)

    @property
    def positions(self) -> int:
        """Tokens with padding."""
        return self.rows * self.tokens


@dataclass(frozen=True)
class Execution:
    """How a run computes. With `cached` features, what the vision tower makes of pictures is computed before it.

    `experts_at_a_time` is how many experts of a layer `grouped` makes dense together; None stands for all.
    """

    device: Device
    implementation: Implementation
    checkpointing: bool = True
    offloading: bool = False
    cached: bool = False
    experts_at_a_time: int | None = None


@dataclass(frozen=True)
class Phase:
    """What there is at the fullest moment of a phase: bytes by what they are."""

    name: PhaseName
    parts: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """All of them."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Setup:
    """A model, an adapter and a way to compute: all of a run but its rows."""

    architecture: Architecture
    holding: Holding
    adapter: Adapter
    execution: Execution

    def phases(self, training: Batch, evaluation: Batch | None = None) -> list[Phase]:
        """What a run holds in each of its phases, in their order.

        Args:
            training: the largest micro-batch of training.
            evaluation: the largest of evaluation, if there is one.
        """
        adapter, gradients, state = adapter_bytes(self.adapter, self.architecture)
        loaded = self._loaded()
        model = {**loaded, "adapter": adapter}
        trained = {**model, "gradients": gradients, "optimizer": state, "workspace": self._kept_workspace()}
        batch = self._batch(training)
        phases = [
            Phase("loading", {**loaded, "reading ahead": self._reading()}),
            Phase("loss", {**trained, **batch, "loss": self._loss(training)}),
            Phase("backward", {**trained, **batch, **self._layer(training)}),
            Phase("optimizer", {**trained, "update": adapter, "machine code": batch.get("machine code", 0)}),
        ]
        seen = training if training.tiles or evaluation is None else evaluation
        if seen.tiles and self.execution.cached:
            phases.insert(0, self._filling(seen))
        elif seen.tiles and self.holding.vision:
            phases.insert(1, Phase("vision", {**trained, **self._tower(seen)}))
        if evaluation is not None:
            phases.append(Phase("evaluation", {**trained, **self._evaluation(evaluation)}))
            if evaluation.answers[0]:
                phases.append(Phase("answers", {**trained, **self._answers(evaluation)}))
        return [Phase(phase.name, {name: size for name, size in phase.parts.items() if size}) for phase in phases]

    def peak(self, training: Batch, evaluation: Batch | None = None) -> Phase:
        """The fullest phase."""
        return max(self.phases(training, evaluation), key=lambda phase: phase.bytes)

    def host_bytes(self) -> int:
        """What of the model is in host memory although it computes on a GPU."""
        parts = model_components(self.architecture, self.holding)
        return sum(part.bytes for part in parts if part.home == "host") if self.execution.device == "cuda" else 0

    def _loaded(self) -> dict[str, int]:
        parts = model_components(self.architecture, self.holding)
        model = sum(part.bytes for part in parts) - self.host_bytes()
        runtime = CUDA_CONTEXT if self.execution.device == "cuda" else CPU_RUNTIME
        return {"model": model, "runtime": runtime}

    def _reading(self) -> int:
        """Pieces of the largest tensors, of which none is larger than the tensor."""
        a = self.architecture
        largest = max(a.vocabulary * a.hidden, a.hidden * 2 * a.width, a.hidden * a.shared_width) * self.holding.width
        scales = a.experts * a.hidden * 2 * a.width // 64 * FLOAT32 if self.holding.packed else 0
        pieces = READ_AHEAD_BYTES if self.execution.device == "cpu" else READ_AHEAD_BYTES // 8
        return min(pieces, 8 * largest) + 2 * scales

    def _batch(self, batch: Batch) -> dict[str, int]:
        """What lies there from the forward of the first layer to the backward of the first layer."""
        a, width = self.architecture, self.holding.width
        kept = a.layers * batch.positions * a.hidden * width
        on_host = self.execution.offloading and self.execution.device == "cuda"
        features = sum(a.queries[a.vision.patches(tile)] * count for tile, count in batch.tiles.items())
        waiting = (batch.waiting or batch.tiles) if self.holding.vision else {}
        pixels = sum(3 * tile**2 * count for tile, count in waiting.items())
        return {
            "layer inputs": 0 if on_host else kept,
            "pictures": features * a.hidden * width + pixels,
            "tower inputs": sum(self._kept_of_tile(tile) * count for tile, count in batch.tiles.items()),
            "machine code": self._machine_code(batch),
        }

    def _machine_code(self, batch: Batch) -> int:
        """oneDNN's, which only multiplies in 16 bit; experts and pictures are computed in fp32."""
        if self.execution.device != "cpu" or self.holding.width != 2:
            return 0
        shapes = DENSE_KERNELS * batch.lengths + FORWARD_KERNELS * batch.other_lengths
        return int(KERNEL_BYTES * min(shapes, KEPT_KERNELS))

    def _loss(self, batch: Batch) -> int:
        """Rows of the head, two tiles of what they say of labels and on a GPU one in 16 bit; sums of rows for each label."""
        a, width, on_cpu = self.architecture, self.holding.width, self.execution.device == "cpu"
        rows, tokens = min(a.vocabulary, HEAD_ROWS), min(batch.labels, HEAD_TOKENS[self.execution.device])
        unpacked = rows * a.hidden * width if self.holding.packed_head else 0
        exact = rows * a.hidden * FLOAT32 if on_cpu and width != FLOAT32 else 0
        logits = tokens * rows * (2 * FLOAT32 + (0 if on_cpu else width))
        return unpacked + exact + logits + batch.labels * a.hidden * (width + 2 * FLOAT32)

    def _layer(self, batch: Batch) -> dict[str, int]:
        """What a layer leaves to its backward and has in it, and the weights that it unpacks for that."""
        layers = 1 if self.execution.checkpointing else self.architecture.layers
        token = sum(self._token_bytes())
        return {
            "layer": layers * batch.positions * token + self._shared(batch),
            "unpacked weights": self._unpacked() + (2 * NORM_PIECE_BYTES if self.adapter.dora else 0),
            "experts": self._experts(batch) + self._factors(),
        }

    def _shared(self, batch: Batch) -> int:
        """On a CPU the shared experts take some tokens at a time: gate, up, what they become, and a gradient, in fp32."""
        a = self.architecture
        rows = min(batch.positions, SHARED_ROWS) if self.execution.device == "cpu" else 0
        return rows * (3 * a.shared_width + a.hidden) * FLOAT32

    def _token_bytes(self) -> Iterator[int]:
        a, width = self.architecture, self.holding.width
        # Attention leaves queries, keys, values, output and the inputs of four adapters; gradients of them come and go in the
        # backward, some in fp32.
        if self.execution.device == "cpu":
            # Where torch's own records put the fullest moment, in the backward of the shared experts. Norms leave one input each.
            yield a.hidden * (FLOAT32 + 15 * width)
        else:
            # As if norms left fp32 inputs (two of 4 bytes), the router its own; then gate, up, and what they become.
            yield a.hidden * (6 * FLOAT32 + 17 * width)
            yield 3 * a.shared_width * width
        if "shared_experts" in self.adapter.targets:
            # The inputs of three adapters, and in the backward what one of them adds, in fp32.
            yield (2 * a.hidden + a.shared_width) * width + a.shared_width * FLOAT32
        if self.adapter.dora:  # what each linear gives, and what its adapter does, for the gradient of its magnitudes
            yield 2 * self.adapter.outputs(a) * width
        if self.execution.implementation == "lean":
            yield 3 * a.hidden * width  # tokens and output, of which one is summed in fp32; an expert's own come and go
        elif self.execution.implementation == "grouped":
            # Tokens of slots that are computed together, gate and up, and the gradient of what they become; and, of some
            # experts at a time, the gradient of all slots' tokens.
            some = self.execution.experts_at_a_time
            together = 1.0 if some is None else min(some / a.experts, 1.0)
            yield round(a.top_k * width * (together * (a.hidden + 3 * a.width) + (0 if some is None else a.hidden)))
        else:
            # Tokens gathered for their experts, gate and up, what they become, and what comes back.
            yield round(a.top_k * width * (2 * a.hidden + 2.5 * a.width))

    def _experts(self, batch: Batch) -> int:
        """What the backward of an expert has in fp32 of its tokens: thrice as many as on average, and some transposed."""
        if self.execution.implementation != "lean":
            return 0
        a = self.architecture
        most = min(3 * batch.positions * a.top_k // a.experts + 1, batch.positions, EXPERT_ROWS)
        return most * (3 * a.hidden + 5 * a.width) * FLOAT32

    def _factors(self) -> int:
        """New gradients of the adapters of a layer's experts; `grouped` also has factors and gradients by expert."""
        if "experts" not in self.adapter.targets:
            return 0
        copies = 3 if self.execution.implementation == "grouped" else 1
        return copies * self.adapter.layer_parameters(self.architecture, ["experts"]) * FLOAT32

    def _unpacked(self) -> int:
        a, width = self.architecture, self.holding.width
        expert = a.hidden * 2 * a.width
        if not self.holding.packed:
            return 0
        linear = a.hidden * max(a.shared_width, a.heads * a.head_dim) * width
        if self.execution.implementation == "lean":
            scales = expert // 64 * FLOAT32
            return scales + (PIECE_BYTES if self.execution.device == "cpu" else expert * width) + linear
        if self.execution.implementation == "grouped":
            return linear  # experts are in the workspace
        return a.experts * round(1.5 * expert) * width + linear

    def _kept_workspace(self) -> int:
        """What `grouped` makes experts dense in: gate and up of those it takes together, and then their other projection."""
        a, some = self.architecture, self.execution.experts_at_a_time
        if self.execution.implementation != "grouped" or not (self.holding.packed or some):
            return 0
        return min(some or a.experts, a.experts) * a.hidden * 2 * a.width * self.holding.width

    def _filling(self, batch: Batch) -> Phase:
        """The vision tower and the projector alone, on every picture of the run."""
        parts = model_components(self.architecture, Holding(width=self.holding.width))
        model = sum(part.bytes for part in parts if part.name in ("vision tower", "projector"))
        runtime = CUDA_CONTEXT if self.execution.device == "cuda" else CPU_RUNTIME
        return Phase("filling", {"model": model, "runtime": runtime, **self._tower(batch)})

    def _kept_of_tile(self, tile: int) -> int:
        """What tower and projector keep of a tile until their backward, which comes after all of the decoder's."""
        tower, targets = self.architecture.vision, self.adapter.targets
        rows = tower.patches(tile) * tower.hidden * (FLOAT32 if self.execution.device == "cpu" else self.holding.width)
        if "vision" not in targets:
            return rows if "projector" in targets else 0
        if self.execution.checkpointing:
            return rows * (tower.layers + 1)
        # Of a layer: two inputs of it, normed, queries, keys, values, what is seen, and the feed-forward before and behind its kernel.
        return round(rows * tower.layers * (9 + 2 * tower.width / tower.hidden))

    def _tower(self, batch: Batch) -> dict[str, int]:
        held = self._batch(Batch(batch.rows, 0, 0, batch.tiles))
        # In the graph a layer holds what it computes from, and the gradients of that.
        times = 1 if SEEING.isdisjoint(self.adapter.targets) else 3
        return {**held, "tower": times * max(self._tile_bytes(tile, count) for tile, count in batch.tiles.items())}

    def _tile_bytes(self, tile: int, there: int) -> int:
        """Of a tile without padding, in a layer or the projector; on a CPU in fp32, with the weights that it takes in fp32."""
        tower, on_cpu = self.architecture.vision, self.execution.device == "cpu"
        width = FLOAT32 if on_cpu else self.holding.width
        count, patches = min(1 if on_cpu else TILES_AT_A_TIME.get(tile, 1), there), tower.patches(tile)
        rows = count * patches
        between = min(rows, TOWER_ROWS) if on_cpu else rows
        # Of all patches: what a layer adds to, queries, keys, values, what is seen of them, and what comes of that.
        attention = 6 * rows * tower.hidden + (tower.hidden**2 if on_cpu else 0)
        feed_forward = rows * tower.hidden + between * 2 * (tower.hidden + tower.width)
        converted = 2 * tower.hidden * tower.width if on_cpu else 0
        pixels = count * 3 * tile**2 * (FLOAT32 + width)
        return max(attention, feed_forward + converted) * width + pixels

    def _evaluation(self, batch: Batch) -> dict[str, int]:
        """No layer input is kept, and a layer holds about half of what it does in training."""
        held = self._batch(batch) | {"layer inputs": 0, "tower inputs": 0}
        layer = round(0.5 * batch.positions * sum(self._token_bytes())) + self._unpacked() + self._experts(batch)
        work = {"loss": self._loss(batch)} if self._loss(batch) > layer else {"layer": layer}
        return held | work

    def _answers(self, batch: Batch) -> dict[str, int]:
        """Of prompts that are answered: keys and values of all layers, those of one twice while a token joins them; logits of one place."""
        rows, tokens = batch.answers
        asked = Batch(rows, tokens, 0, batch.tiles)
        architecture, width = self.architecture, self.holding.width
        layers = architecture.layers + 1
        kept = 2 * layers * architecture.kv_heads * architecture.head_dim * rows * tokens * width
        held = self._evaluation(asked)
        return {**held, "keys and values": kept, "logits": rows * architecture.vocabulary * (width + FLOAT32)}
