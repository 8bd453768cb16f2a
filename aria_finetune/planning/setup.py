"""From a recipe and its planned rows to what the planner reckons with: the model's setup and the largest micro-batches.

Knows recipes and rows; reckons nothing itself.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import count, islice

from aria_finetune.data.chat import ChatTokenizer
from aria_finetune.data.dataset import RowSet
from aria_finetune.data.packing import best_fit
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
LOOKED_AHEAD = 10_000
"""Rows, in the order of training, that are looked at for the lengths of micro-batches."""
WORST, MOST_WORST = 8, 64
"""Rows that are planned anew to see what a change of how they are shown does to the longest: those of an update, if so many."""


def setup_of(recipe: Recipe, architecture: Architecture, device: Device, *, pictures: bool) -> Setup:
    """A recipe's model, adapter and way to compute on a device; `pictures` says whether any row has one."""
    cached, adapted = recipe.feature_folder is not None, recipe.adapted_layers(architecture.layers)
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
        Adapter(
            recipe.lora.targets,
            recipe.lora.rank,
            recipe.train.optim,
            dora=recipe.lora.dora,
            layers=None if adapted is None else len(adapted),
        ),
        Execution(
            device,
            recipe.experts_implementation(device),
            experts_at_a_time=recipe.moe.experts_at_a_time,
            checkpointing=recipe.train.gradient_checkpointing,
            offloading=recipe.train.activation_offloading,
            cached=cached,
        ),
    )


@dataclass(frozen=True)
class Rows:
    """The rows of a run, how they were shown, and the seed of their order."""

    training: RowSet
    evaluation: RowSet
    viewing: Viewing
    chat: ChatTokenizer = field(repr=False)
    seed: int

    @cached_property
    def pictures(self) -> bool:
        """Whether any row has one."""
        return self.training.has_pictures or self.evaluation.has_pictures

    def largest(self, recipe: Recipe) -> tuple[Batch, Batch | None]:
        """The largest micro-batch of training and of evaluation, if all rows of one were the longest there are."""
        train, data = recipe.train, recipe.data
        shown = self._shown(recipe)
        update = rows_of_update(recipe)
        training, evaluation = (self._plans(rows, shown, update) for rows in (self.training, self.evaluation))
        wanted = evaluation if recipe.eval_strategy != "no" else []
        size = train.per_device_train_batch_size
        step = packed_batch(training, update)
        if data.packing:
            evaluated = packed_batch(wanted, train.per_device_eval_batch_size)
            copies = min(math.ceil(max(self.training.weights, default=1)), update)  # of a row, which may come together
            trained = packed_batch(training * copies, update, size * data.max_tokens)
        else:
            evaluated = largest_batch(wanted, train.per_device_eval_batch_size)
            trained = largest_batch(training, size)
        trained = replace(trained, waiting=step.tiles)
        trained = replace(trained, lengths=self._lengths(recipe), other_lengths=min(len(wanted), evaluated.lengths))
        return trained, replace(evaluated, answers=_answered(recipe, wanted)) if wanted else None

    def _coming(self, count: int) -> list[int]:
        """Tokens of the first rows in the order of training, as far as is looked ahead, which is the same for every knob."""
        missing = min(count, LOOKED_AHEAD) - len(self._known)
        self._known.extend(self.training.plans[row].tokens for row in islice(self._ahead, max(missing, 0)))
        return self._known[:count]

    @cached_property
    def _ahead(self) -> Iterator[int]:
        return _order(self.training, self.seed)

    @cached_property
    def _known(self) -> list[int]:
        return []

    def _shown(self, recipe: Recipe) -> Viewing:
        data = recipe.data
        return replace(
            self.viewing,
            image_size=data.image_size,
            split_images=data.split_images,
            num_frames=data.num_frames,
            max_tokens=data.max_tokens,
        )

    def _plans(self, rows: RowSet, viewing: Viewing, together: int) -> list[RowPlan]:
        """All rows as they were planned; or, shown otherwise, those that may be the largest then, planned anew.

        `together` of them may come in one micro-batch. These are the longest, those with the most pictures, the longest without any, and, as the limit of tokens may be what
        changed, the longest of those that are within it as they are.
        """
        if viewing == self.viewing:
            return rows.plans
        within = [plan for plan in rows.plans if plan.tokens <= viewing.max_tokens]
        worst = max(WORST, min(together, MOST_WORST))
        again = [
            *heapq.nlargest(worst, rows.plans, key=_tokens),
            *heapq.nlargest(worst, rows.plans, key=_tiles),
            *heapq.nlargest(worst, within, key=_tokens),
            *heapq.nlargest(1, (plan for plan in within if not plan.sights), key=_tokens),
        ]
        with closing(Inspector()) as inspector:
            once = {id(row): row for row in again}.values()
            return [plan for row in once if (plan := self._again(row, viewing, inspector)) is not None]

    def _again(self, row: RowPlan, viewing: Viewing, inspector: Inspector) -> RowPlan | None:
        try:
            return None if row.lost else plan_row(row.record, viewing, self.chat, inspector=inspector)
        except RecordError:
            return None

    def _lengths(self, recipe: Recipe) -> int:
        """How many different lengths micro-batches have, each as long as its longest row, as far as is looked ahead."""
        size, update = recipe.train.per_device_train_batch_size, rows_of_update(recipe)
        tokens = self._coming(rows_seen(recipe, self))
        if not recipe.data.packing:
            return max(len({max(tokens[start : start + size]) for start in range(0, len(tokens), size)}), 1)
        updates = [tokens[start : start + update] for start in range(0, len(tokens), update)]
        capacity = size * recipe.data.max_tokens
        return max(
            len({sum(rows[place] for place in pack) for rows in updates for pack in best_fit(rows, capacity)}), 1
        )


def largest_batch(plans: Sequence[RowPlan], rows: int) -> Batch:
    """A micro-batch of `rows` rows, each of which has the most tokens, labels and tiles that any row has."""
    most: dict[int, int] = {}
    for plan in plans:
        for tile, tiles in tiles_of(plan).items():
            most[tile] = max(most.get(tile, 0), tiles * rows)
    return Batch(
        rows=rows,
        tokens=max(map(_tokens, plans), default=0),
        labels=max((plan.labels for plan in plans), default=0) * rows,
        tiles=most,
        lengths=len(set(map(_tokens, plans))),
    )


def packed_batch(plans: Sequence[RowPlan], rows: int, capacity: int | None = None) -> Batch:
    """A micro-batch of `rows` rows one behind the other, the largest of all; of no more tokens than the capacity."""
    largest = largest_batch(plans, 1)
    tokens = sum(heapq.nlargest(rows, map(_tokens, plans)))
    if capacity is not None:
        tokens = max(min(tokens, capacity), largest.tokens)
    labels = min(sum(heapq.nlargest(rows, (plan.labels for plan in plans))), tokens)
    return replace(largest, tokens=tokens, labels=labels, tiles=_most_tiles(plans, rows, tokens))


def _most_tiles(plans: Sequence[RowPlan], rows: int, tokens: int) -> dict[int, int]:
    """Tiles by side, if the rows that have the most of that side came together; as many as their rows' tokens have room for."""
    most: dict[int, int] = {}
    for tile in {sight.tile for plan in plans for sight in plan.sights}:
        room, count = tokens, 0
        for plan in heapq.nlargest(rows, plans, key=partial(_tiles, side=tile)):
            shown = _tiles(plan, tile)
            if room < plan.tokens or not shown:
                break
            room, count = room - plan.tokens, count + shown
        most[tile] = count
    return most


def tiles_of(plan: RowPlan) -> Counter[int]:
    """Tiles of a row by their side in pixels."""
    tiles = Counter[int]()
    for sight in plan.sights:
        tiles[sight.tile] += sight.tiles
    return tiles


def _tokens(plan: RowPlan) -> int:
    return plan.tokens


def _tiles(plan: RowPlan, side: int | None = None) -> int:
    """Tiles of a row, of one side or all; for millions of rows, so without a dictionary for each."""
    return sum(sight.tiles for sight in plan.sights if side is None or sight.tile == side)


def steps(recipe: Recipe, rows: Rows) -> int:
    """Optimizer steps of a run."""
    return planned_steps(recipe, updates_per_epoch(recipe, epoch_rows(recipe, rows)))


def epoch_rows(recipe: Recipe, rows: Rows) -> int:
    """Rows of an epoch, each source by its weight."""
    return len(rows.training.order(recipe.train.seed))


def rows_of_update(recipe: Recipe) -> int:
    """Rows of an optimizer step."""
    return recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps


def rows_seen(recipe: Recipe, rows: Rows) -> int:
    """Rows that a whole run trains on, each as often as it comes."""
    return steps(recipe, rows) * rows_of_update(recipe)


def epochs(recipe: Recipe, rows: Rows) -> float:
    """How often a run goes over its rows."""
    return min(rows_seen(recipe, rows) / max(epoch_rows(recipe, rows), 1), _limit(recipe))


def epoch_work(rows: Rows, architecture: Architecture, *, checkpointing: bool, tower_trained: bool = False) -> Work:
    """Operations of an epoch: every source by its weight."""
    total = Work(0, 0, 0, 0)
    for span, weight in zip(rows.training.spans, rows.training.weights, strict=True):
        kinds = Counter(
            (plan.tokens, plan.labels, tuple(sorted(tiles_of(plan).items())))
            for plan in (rows.training.plans[row] for row in span)
        )
        for (tokens, labels, tiles), times in kinds.items():
            work = row_work(
                architecture, tokens, labels, dict(tiles), checkpointing=checkpointing, tower_trained=tower_trained
            )
            total += work.times(times * weight)
    return total


def _order(rows: RowSet, seed: int) -> Iterator[int]:
    """Rows in the order of training, epoch after epoch; none where there is no row."""
    order = rows.order(seed)
    for epoch in count():
        order.set_epoch(epoch)
        if not len(order):
            return
        yield from order


def _limit(recipe: Recipe) -> float:
    return math.inf if recipe.train.max_steps > 0 else recipe.train.num_train_epochs


def _answered(recipe: Recipe, plans: Sequence[RowPlan]) -> tuple[int, int]:
    """Rows and tokens of the largest batch of held-out rows that is answered, if the longest are chosen."""
    count = min(recipe.train.evaluate_generation, len(plans), recipe.train.per_device_eval_batch_size)
    return (count, max(map(_tokens, plans)) + recipe.train.max_new_tokens) if count else (0, 0)
