"""What is made ahead: in order, one at a time, its errors in their place, and nothing behind the back of who stopped."""

from __future__ import annotations

import threading

import pytest

from aria_finetune.generation.ahead import made_ahead


def test_all_is_made_in_order_one_ahead() -> None:
    begun: list[int] = []
    two = threading.Event()

    def make(item: int) -> int:
        begun.append(item)
        if item == 2:
            two.set()
        return item * item

    made = made_ahead(make, [1, 2, 3])
    assert next(made) == 1
    assert two.wait(30)  # begun although nobody has asked for it
    assert begun == [1, 2]
    assert list(made) == [4, 9]
    assert list(made_ahead(make, [])) == []


def test_an_error_comes_in_its_place() -> None:
    made = made_ahead(lambda item: 1 // item, [1, 0, 1])
    assert next(made) == 1
    with pytest.raises(ZeroDivisionError):
        next(made)


def test_who_stops_waits_for_what_is_being_made() -> None:
    going, done = threading.Event(), []

    def make(item: int) -> int:
        if item == 2:
            going.set()
            threading.Event().wait(0.2)
        done.append(item)
        return item

    made = made_ahead(make, [1, 2, 3])
    assert next(made) == 1
    assert going.wait(30)
    made.close()
    assert done == [1, 2]
