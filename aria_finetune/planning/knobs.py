"""What each key of a recipe would save of the peak, and which of them together make a run fit. Changes no recipe for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aria_finetune.advice import Knob, memory_knobs
from aria_finetune.recipe import Recipe, changed

Peak = Callable[[Recipe], int]
"""The peak in bytes of a recipe on the rows and the device of a plan."""


@dataclass(frozen=True)
class Saving:
    """A knob and the bytes by which it alone lowers the peak."""

    knob: Knob
    bytes: int


def savings(recipe: Recipe, device: str, peak: Peak) -> list[Saving]:
    """Every knob that is left to turn, in the order of what it costs, with what it would save."""
    now = peak(recipe)
    return [
        Saving(knob, now - peak(changed(recipe, knob.setting.split())))
        for knob in memory_knobs(recipe, "training", device)
    ]


def fitting(recipe: Recipe, device: str, peak: Peak, memory: int) -> tuple[list[Knob], int]:
    """Knobs that make a recipe fit, the cheapest first and none that saves nothing, and the peak with all of them.

    Where no knob is left before it fits, they are all there are.
    """
    turned: list[Knob] = []
    now = 0
    for turned, now in _turned(recipe, device, peak):  # noqa: B007 (the last is what is wanted)
        if now <= memory:
            break
    return turned, now


def _turned(recipe: Recipe, device: str, peak: Peak) -> Iterator[tuple[list[Knob], int]]:
    """Knobs turned one after the other, as often as each can be, with the peak after each."""
    turned: list[Knob] = []
    now = peak(recipe)
    yield [], now
    useless: set[str] = set()
    while knob := next((k for k in memory_knobs(recipe, "training", device) if k.setting not in useless), None):
        candidate = changed(recipe, knob.setting.split())
        lower = peak(candidate)
        if lower >= now:
            useless.add(knob.setting)
            continue
        recipe, now = candidate, lower
        keys = {word.partition("=")[0] for word in knob.setting.split()}
        turned = [old for old in turned if not keys & {word.partition("=")[0] for word in old.setting.split()}]
        turned.append(knob)
        yield list(turned), now
