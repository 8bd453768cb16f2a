"""The account of routing: its lines, its means, its warnings and what a resumed run knows of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aria_finetune.model.routing_watch import RoutingReport
from aria_finetune.routing_picture import draw_routing
from aria_finetune.trainer.routing import RoutingAccount, RoutingAlarm, describe, summarise

EVEN = [16] * 8


class Watch:
    """Reports what it was given."""

    def __init__(self, *reports: RoutingReport) -> None:
        self._reports = list(reports)

    def report(self) -> RoutingReport:
        return self._reports.pop(0)

    def state(self) -> dict[str, Any]:
        return {"left": len(self._reports)}

    def restore(self, state: dict[str, Any]) -> None:
        assert state == {"left": len(self._reports)}


def report(*load: list[int], tokens: int = 64) -> RoutingReport:
    layers = len(load)
    return RoutingReport(tokens, list(load), [1.5] * layers, [9.0] * layers, [0.25] * layers, [0.1] * layers)


def test_a_line_has_lists_by_layer_and_the_log_their_means() -> None:
    lines: list[Any] = []
    uneven = [64, 64, 0, 0, 0, 0, 0, 0]
    account = RoutingAccount(Watch(report(EVEN, uneven)), lines.append, 2)  # type: ignore[arg-type]
    logged = account.take(7, pytest.fail)
    assert [line["step"] for line in lines] == [7]
    assert lines[0]["load"] == [EVEN, uneven]
    assert lines[0]["entropy"] == pytest.approx([1, 1 / 3])
    assert lines[0]["dead"] == [[], [2, 3, 4, 5, 6, 7]]
    assert lines[0]["overloaded"] == [[], [0, 1]]
    assert logged == summarise(describe(report(EVEN, uneven)))
    assert logged["expert_entropy"] == pytest.approx(2 / 3)
    assert logged["expert_entropy_min"] == pytest.approx(1 / 3)
    assert (logged["dead_experts"], logged["overloaded_experts"]) == (6, 2)
    assert (logged["balance_loss"], logged["z_loss"]) == (1.5, 9.0)
    assert (logged["routing_changed"], logged["router_drift"]) == (0.25, pytest.approx(0.1))
    assert all(isinstance(value, int | float) for value in logged.values()), "trackers take nothing else"


def test_of_a_model_that_diverged_numbers_are_left_out(tmp_path: Path) -> None:
    diverged = replace(report(EVEN, EVEN), drift=[0.1, math.inf], z=[math.nan, 9.0])
    lines: list[Any] = []
    account = RoutingAccount(Watch(report(EVEN, EVEN), diverged), lines.append, 2)  # type: ignore[arg-type]
    first, second = (account.take(step, pytest.fail) for step in (1, 2))
    assert first.keys() - second.keys() == {"router_drift", "z_loss"}
    assert (lines[1]["drift"], lines[1]["z_loss"]) == ([0.1, None], [None, 9.0])
    json.dumps(lines, allow_nan=False)
    draw_routing(lines, tmp_path / "routing.png")
    assert (tmp_path / "routing.png").stat().st_size > 0


def test_a_log_without_tokens_has_no_line() -> None:
    account = RoutingAccount(Watch(report([0] * 8, tokens=0)), pytest.fail, 2)  # type: ignore[arg-type]
    assert account.take(1, pytest.fail) == {}


def test_an_expert_that_dies_is_told_once_when_it_lasts() -> None:
    alarm = RoutingAlarm(2)
    dying = [0, *[19] * 7]
    assert alarm.look(1, [EVEN, EVEN]) == []
    assert alarm.look(2, [EVEN, dying]) == []
    assert alarm.look(3, [EVEN, EVEN]) == [], "it came back"
    assert alarm.look(4, [EVEN, dying]) == []
    (warning,) = alarm.look(5, [EVEN, dying])
    assert "step 5: expert 0 of layer 1 died" in warning
    assert "moe.balance_loss" in warning
    assert alarm.look(6, [EVEN, dying]) == []


def test_an_expert_the_base_does_not_use_did_not_die() -> None:
    alarm = RoutingAlarm(2)
    unused = [0, *[19] * 7]
    assert [alarm.look(step, [unused]) for step in range(5)] == [[]] * 5


def test_a_group_that_takes_over_is_told_with_its_share() -> None:
    alarm = RoutingAlarm(2)
    taken = [1, 1, 60, 60, 1, 1, 2, 2]
    alarm.look(1, [EVEN])
    alarm.look(2, [taken])
    (warning,) = alarm.look(3, [taken])
    assert "experts 2 to 3 of layer 0 take over: 94% of all choices" in warning


def test_few_choices_are_put_together_before_they_are_judged() -> None:
    alarm = RoutingAlarm(2)
    few = [0, *[1] * 7]
    alarm.look(0, [EVEN])
    warnings = [warning for step in range(1, 60) for warning in alarm.look(step, [few])]
    assert len(warnings) == 1, "19 steps of 7 choices make up a window, and two windows a warning"
    assert "step 38: " in warnings[0]


def test_a_resumed_run_warns_as_this_one_would() -> None:
    dying = [0, *[19] * 7]
    first = RoutingAlarm(2)
    for step in (1, 2):
        first.look(step, [EVEN if step == 1 else dying])
    second = RoutingAlarm(2)
    second.restore(json.loads(json.dumps(first.state())))
    assert first.look(3, [dying]) == second.look(3, [dying]) != []
    assert second.look(4, [dying]) == []
    account = RoutingAccount(Watch(), pytest.fail, 2)  # type: ignore[arg-type]
    account.restore(json.loads(json.dumps(account.state())))
