"""Memory of a step lies on a straight line by the tokens of its row, as measured, and not as planned."""

from __future__ import annotations

import pytest
from benchmark_runs import result_of

TOKENS = (2048, 4096, 8192, 16_384)


def test_a_step_takes_memory_in_proportion_to_its_tokens() -> None:
    """Two small layers with the features of images given: what torch's allocator gave out at most, within 5% of a line."""
    flags = ("--scale", "small", "--layers", "2", "--tokens", *map(str, TOKENS), "--json")
    found = result_of("long_rows.py", *flags)
    assert tuple(point["tokens"] for point in found["points"]) == TOKENS
    assert all(point["images"] * 128 > 0.9 * point["tokens"] for point in found["points"])
    assert found["off_the_line"] < 0.05
    # By hand, the least that a token takes: two layer inputs, embedding and feature of 256 in 16 bit.
    assert 2 < found["kib_per_token"] < 40
    peaks = [point["allocated_gib"] for point in found["points"]]
    assert peaks[3] / peaks[2] == pytest.approx(2, rel=0.1)
    assert peaks[3] < 0.25 + peaks[2], "a mask of tokens by tokens alone would be 0.25 GiB"
