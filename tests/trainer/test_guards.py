"""What is stopped, what is passed over, and what is said of it, number by number."""

from __future__ import annotations

import json
import math

import pytest

from aria_finetune.errors import UserError
from aria_finetune.trainer.guards import SHOWN_ROWS, SPIKE_MEMORY, SPIKE_MINIMUM, NumberGuard

BAD = [math.nan, math.inf, -math.inf]


def guard(spike_factor: float | None = None) -> NumberGuard:
    return NumberGuard(lambda row: f"file:{row}", spike_factor)


def used_to(norms: list[float], spike_factor: float | None) -> NumberGuard:
    """A guard that has seen these norms."""
    made = guard(spike_factor)
    assert [made.spike(norm) for norm in norms] == [None] * len(norms)
    return made


class TestLoss:
    @pytest.mark.parametrize("loss", BAD)
    def test_one_that_is_not_finite_names_its_own_rows(self, loss: float) -> None:
        watch = guard()
        watch.begin_step()
        watch.check_loss(2.0, [1, 2], "at step 3")
        with pytest.raises(UserError) as stopped:
            watch.check_loss(loss, [7, 8], "at step 3")
        message = f"the loss is {loss} at step 3, in row(s) file:7, file:8; no update was made with it"
        assert stopped.value.message == message
        assert stopped.value.exit_code == 2
        assert stopped.value.fix

    @pytest.mark.parametrize("loss", [0.0, -1.0, 1e30, 5e-324])
    def test_any_finite_one_is_left_alone(self, loss: float) -> None:
        guard().check_loss(loss, [1], "at step 1")


class TestGradient:
    @pytest.mark.parametrize("norm", BAD)
    def test_one_that_is_not_finite_names_all_rows_of_its_step_and_no_others(self, norm: float) -> None:
        watch = guard()
        for rows in ([[9]], [[4, 2], [4], [11]]):
            watch.begin_step()
            for micro in rows:
                watch.check_loss(1.0, micro, "at step 1")
        with pytest.raises(UserError) as stopped:
            watch.check_gradient(norm, "at step 2")
        assert stopped.value.message == (
            f"the gradient is not finite at step 2 (its norm is {norm}), whose rows were row(s) file:4, file:2, file:11; "
            "no update was made"
        )

    @pytest.mark.parametrize(("count", "more"), [(SHOWN_ROWS, ""), (SHOWN_ROWS + 3, " and 3 more")])
    def test_of_many_rows_some_are_named_and_the_rest_counted(self, count: int, more: str) -> None:
        watch = guard()
        watch.check_loss(1.0, range(count), "at step 1")
        with pytest.raises(UserError) as stopped:
            watch.check_gradient(math.nan, "at step 1")
        assert f"file:{SHOWN_ROWS - 1}{more}; no update" in stopped.value.message
        assert f"file:{SHOWN_ROWS}" not in stopped.value.message

    @pytest.mark.parametrize("norm", [0.0, 1e30])
    def test_any_finite_one_is_left_alone(self, norm: float) -> None:
        guard().check_gradient(norm, "at step 1")


class TestSpikes:
    def test_the_limit_is_the_factor_times_the_median_and_is_itself_allowed(self) -> None:
        norms = [1.0, 100.0, 2.0, 2.0, 3.0, 2.0, 0.5, 2.0]
        assert used_to(norms, 10).spike(20.0) is None
        said = used_to(norms, 10).spike(20.1)
        assert said is not None
        assert said.startswith("the gradient's norm, 20.1, is 10.1 times the usual 2; rows: row(s) ")

    def test_it_names_the_rows_of_the_step(self) -> None:
        watch = used_to([1.0] * SPIKE_MINIMUM, 5)
        watch.begin_step()
        watch.check_loss(1.0, [3, 5], "at step 9")
        assert (watch.spike(6.0) or "").endswith("rows: row(s) file:3, file:5")

    def test_nothing_is_a_spike_until_enough_norms_are_known(self) -> None:
        watch = used_to([1.0] * (SPIKE_MINIMUM - 1), 5)
        assert watch.spike(1e6) is None
        assert watch.spike(1e7) is not None

    def test_without_a_factor_nothing_is(self) -> None:
        assert used_to([1.0] * SPIKE_MEMORY, None).spike(1e30) is None

    def test_a_spike_is_not_remembered_and_neither_is_a_step_without_a_gradient(self) -> None:
        watch = used_to([1.0] * SPIKE_MINIMUM, 5)
        before = watch.state()
        for norm in (1e6, 1e6, 0.0):
            watch.spike(norm)
        assert watch.state() == before

    def test_the_memory_is_of_the_latest_norms(self) -> None:
        watch = used_to([1.0] * SPIKE_MEMORY, 5)
        for _ in range(SPIKE_MEMORY // 2 + 1):
            assert watch.spike(4.0) is None
        assert watch.spike(19.0) is None, "the median is 4 by now"
        assert len(watch.state()["norms"]) == SPIKE_MEMORY

    def test_a_restored_guard_judges_as_the_first_would(self) -> None:
        first, second = used_to([1.0 + n / 7 for n in range(40)], 5), guard(5)
        second.restore(json.loads(json.dumps(first.state())))
        for norm in (6.0, 22.4, 40.0, 1.0, 33.0):
            assert first.spike(norm) == second.spike(norm)
        assert first.state() == second.state()
