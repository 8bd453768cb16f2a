"""From a recipe and its planned rows to what the planner reckons with: the model's setup and the largest micro-batches.

Knows recipes and rows; reckons nothing itself.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count, islice

from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.dataset import EpochOrder, RowSet
from aria_finetune.data.rows import RowPlan, Viewing, plan_row
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.media.inspection import Inspector
from aria_finetune.planner.architecture import Architecture
from aria_finetune.planner.resident import Adapter, Holding
from aria_finetune.planner.step import Batch, Device, Execution, Setup
from aria_finetune.planner.work import Work, row_work
from aria_finetune.recipe import Recipe
from aria_finetune.run_size import planned_steps, updates_per_epoch

WIDTHS = {"bfloat16": 2, "float32": 4}
LOOKED_AHEAD = 100_000
"""Rows, in the order of training, that are looked at for the lengths of micro-batches."""
WORST = 8
"""Rows that are planned anew to see what a change of how they are shown does to the longest."""


def setup_of(recipe: Recipe, architecture: Architecture, device: Device, *, pictures: bool) -> Setup:
    """A recipe's model, adapter and way to compute on a device; `pictures` says whether any row has one."""
    cached = recipe.feature_folder is not None
    return Setup(
        architecture,
        Holding(
            packed=recipe.model.experts == "nf4",
            width=WIDTHS[recipe.model.compute_dtype],
            vision=pictures and not cached,
            packed_head=recipe.model.lm_head == "nf4",
            embedding_on_host=recipe.model.embedding == "host",
            experts_on_host=recipe.moe.experts_on == "host",
        ),
        Adapter(recipe.lora.targets, recipe.lora.rank, recipe.train.optim),
        Execution(
            device,
            recipe.experts_implementation(device),
            checkpointing=recipe.train.gradient_checkpointing,
            offloading=recipe.train.activation_offloading,
            cached=cached,
        ),
    )


@dataclass(frozen=True)
class Rows:
    """The rows of a run, and how they were shown."""

    training: RowSet
    evaluation: RowSet
    viewing: Viewing
    chat: ChatTokenizer = field(repr=False)

    @property
    def pictures(self) -> bool:
        """Whether any row has one."""
        return any(plan.sights for rows in (self.training, self.evaluation) for plan in rows.plans)

    def largest(self, recipe: Recipe) -> tuple[Batch, Batch | None]:
        """The largest micro-batch of training and of evaluation, if all rows of one were the longest there are."""
        train = recipe.train
        wanted = self.evaluation.plans if recipe.eval_strategy != "no" else []
        evaluation = largest_batch(wanted, train.per_device_eval_batch_size, range(len(wanted)))
        order = islice(_order(self.training, train.seed), min(rows_seen(recipe, self), LOOKED_AHEAD))
        training = largest_batch(self.training.plans, train.per_device_train_batch_size, order)
        return replace(training, other_lengths=evaluation.lengths), evaluation if wanted else None

    def under(self, recipe: Recipe) -> Rows:
        """These rows as another recipe shows them; of pictures and frames, only the longest are planned anew.

        Rows that no longer fit are left out.
        """
        data = recipe.data
        viewing = replace(
            self.viewing,
            image_size=data.image_size,
            split_images=data.split_images,
            num_frames=data.num_frames,
            max_tokens=data.max_tokens,
        )
        if viewing == self.viewing:
            return self
        shorter = replace(self.viewing, max_tokens=viewing.max_tokens) == viewing
        with closing(Inspector()) as inspector:
            training, evaluation = (
                RowSet(
                    [plan for plan in rows.plans if plan.tokens <= viewing.max_tokens]
                    if shorter
                    else list(self._again(rows.plans, viewing, inspector)),
                    rows.spans,
                    rows.weights,
                )
                for rows in (self.training, self.evaluation)
            )
        return replace(self, training=training, evaluation=evaluation, viewing=viewing)

    def _again(self, plans: Sequence[RowPlan], viewing: Viewing, inspector: Inspector) -> Iterator[RowPlan]:
        for plan in _longest(plans, WORST):
            try:
                yield plan_row(plan.record, viewing, self.chat, inspector=inspector)
            except RecordError:
                continue


def largest_batch(plans: Sequence[RowPlan], rows: int, order: Iterable[int]) -> Batch:
    """A micro-batch of `rows` rows, each of which has the most tokens, labels and tiles that any row has.

    `order` is that in which rows come; it gives the lengths of micro-batches, each as long as its longest row.
    """
    tiles = [Counter[int]() for _ in plans]
    for sizes, plan in zip(tiles, plans, strict=True):
        for sight in plan.sights:
            sizes[sight.tile] += sight.tiles
    most = {size: max(count[size] for count in tiles) * rows for count in tiles for size in count}
    coming = [plans[row].tokens for row in order if row < len(plans)]
    lengths = {max(coming[start : start + rows]) for start in range(0, len(coming), rows)}
    return Batch(
        rows=rows,
        tokens=max((plan.tokens for plan in plans), default=0),
        labels=max((plan.labels for plan in plans), default=0) * rows,
        tiles=most,
        lengths=max(len(lengths), 1),
    )


def steps(recipe: Recipe, rows: Rows) -> int:
    """Optimizer steps of a run."""
    return planned_steps(recipe, updates_per_epoch(recipe, epoch_rows(recipe, rows)))


def epoch_rows(recipe: Recipe, rows: Rows) -> int:
    """Rows of an epoch, each source by its weight."""
    return len(EpochOrder(rows.training.spans, rows.training.weights, recipe.train.seed))


def rows_seen(recipe: Recipe, rows: Rows) -> int:
    """Rows that a whole run trains on, each as often as it comes."""
    train = recipe.train
    return steps(recipe, rows) * train.gradient_accumulation_steps * train.per_device_train_batch_size


def epochs(recipe: Recipe, rows: Rows) -> float:
    """How often a run goes over its rows."""
    return min(rows_seen(recipe, rows) / max(epoch_rows(recipe, rows), 1), _limit(recipe))


def epoch_work(rows: Rows, architecture: Architecture) -> Work:
    """Operations of an epoch: every source by its weight."""
    total = Work(0, 0, 0, 0)
    for span, weight in zip(rows.training.spans, rows.training.weights, strict=True):
        source = sum_of_work([rows.training.plans[row] for row in span], architecture)
        total += Work(*(part * weight for part in (source.decoder, source.attention, source.vision, source.head)))
    return total


def sum_of_work(plans: Sequence[RowPlan], architecture: Architecture) -> Work:
    """Operations of a step on each of some rows."""
    kinds: Counter[tuple[int, int, tuple[tuple[int, int], ...]]] = Counter()
    for plan in plans:
        tiles = Counter[int]()
        for sight in plan.sights:
            tiles[sight.tile] += sight.tiles
        kinds[plan.tokens, plan.labels, tuple(sorted(tiles.items()))] += 1
    total = Work(0, 0, 0, 0)
    for (tokens, labels, sizes), times in kinds.items():
        work = row_work(architecture, tokens, labels, dict(sizes))
        total += Work(*(part * times for part in (work.decoder, work.attention, work.vision, work.head)))
    return total


def _order(rows: RowSet, seed: int) -> Iterator[int]:
    """Rows in the order of training, epoch after epoch; none where there is no row."""
    order = EpochOrder(rows.spans, rows.weights, seed)
    for epoch in count():
        order.set_epoch(epoch)
        if not len(order):
            return
        yield from order


def _limit(recipe: Recipe) -> float:
    return math.inf if recipe.train.max_steps > 0 else recipe.train.num_train_epochs


def _longest(plans: Sequence[RowPlan], count: int) -> list[RowPlan]:
    return heapq.nlargest(count, (plan for plan in plans if plan.lost is None), key=lambda plan: plan.tokens)
