"""The benchmark of the loader runs and tells what it measured. Nothing here looks at how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark_runs import Load, run


def test_the_last_line_is_the_result(tmp_path: Path) -> None:
    few = ("--images", "2", "--clips", "2", "--batch", "1", "--workers", "0", "--repeats", "1")
    small = ("--height", "540", "--size", "490")
    *table, last = run("loader.py", *few, *small, "--folder", tmp_path, "--json")
    result = json.loads(last)
    assert result["ways_agree"], "both see the same pictures and frames"
    assert set(result["sources"]) == {"folder", "parquet", "video"}
    assert len(table) == 2 + 3
    for source in result["sources"].values():
        sides = source["workers"]["0"]
        assert sides["times_as_fast"] == sides["ours"]["images_per_second"] / sides["stock"]["images_per_second"]
        for way in ("stock", "ours"):
            assert sides[way]["cpu_milliseconds"] > 0
            assert sides[way]["rates"] == [sides[way]["images_per_second"]]
        # Bytes in place of floats: a picture is 3 x 490 x 490 of either.
        pictures = {way: round(sides[way]["megabytes_per_batch"] / 0.72) for way in ("ours", "stock")}
        assert pictures["stock"] >= 4 * pictures["ours"] > 0
    assert not list(tmp_path.iterdir()), "its files were left behind"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--images", "7"), "every worker must have two batches"),
        (("--clips", "3"), "every worker must have two batches"),
        (("--repeats", "0"), "--repeats must be at least 1"),
        (("--height", "1000"), "--height must be a multiple of 18"),
    ],
)
def test_nonsense_is_refused(
    flags: tuple[str, str], words: str, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        load("loader").parse(flags)
    assert words in capsys.readouterr().err
