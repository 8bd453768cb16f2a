"""The packing benchmark: its rows, its output, and that it notices when the ways differ. Nothing here looks at speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmark_runs import Load, result_of
from safetensors.torch import save_file


def test_the_last_line_is_the_result() -> None:
    flags = ("--scale", "small", "--layers", "1", "--rows", "10", "--batch-size", "5", "--repeats", "1", "--json")
    result = result_of("packing.py", *flags)
    ways = result["ways"]
    assert list(ways) == ["stock", "padded", "packed"]
    assert ways["stock"]["positions"] == ways["padded"]["positions"]
    assert ways["packed"]["tokens"] == ways["stock"]["tokens"] == sum(ways["packed"]["positions"])
    assert result["waste"]["packed"] == 0 < result["waste"]["stock"] < 1
    assert result["ways_agree"] is True
    assert result["allocator"] == {"THP_MEM_ALLOC_ENABLE": "0"}
    rates = {name: way["tokens"] / way["seconds"] for name, way in ways.items()}
    assert result["packed_over_stock"] == pytest.approx(rates["packed"] / rates["stock"])


def test_the_mix_is_what_it_says(load: Load) -> None:
    mix = load("mix")
    rows = mix.mixed_rows(1000, seed=1)
    images = [row for row in rows if row.image_tokens in (128, 256)]
    videos = [row for row in rows if row.image_tokens == 2048]
    texts = [row for row in rows if row.image_tokens == 0]
    assert (len(images), len(texts), len(videos)) == (600, 250, 150)
    assert sum(row.image_tokens == 256 for row in images) == 300
    assert all(row.image_tokens + 20 <= row.tokens <= row.image_tokens + 60 for row in images)
    assert sorted(row.tokens for row in texts)[125] == pytest.approx(300, rel=0.15)
    assert all(2164 <= row.tokens <= 2204 for row in videos)
    assert rows == mix.mixed_rows(1000, seed=1) != mix.mixed_rows(1000, seed=2)


def test_other_gradients_end_it(load: Load, tmp_path: Path) -> None:
    packing, report = load("packing"), load("report")
    runs = {}
    for number, way in enumerate(packing.WAYS):
        folder = tmp_path / way
        folder.mkdir()
        result = {"seconds": 1.0, "tokens": 8, "positions": [8], "peak_bytes": 1, "threads": 1, "device_name": "cpu"}
        result |= {"experts_implementation": "", "attention_implementation": "", "device": "cpu", "scale": "small"}
        result |= {"layers": 1, "rows": 1, "batch_size": 1, "max_tokens": 8, "seed": 0}
        (folder / report.RESULT_FILE).write_text(json.dumps(result))
        save_file({"gradient.a": torch.ones(4) * (1 + 0.1 * (number == 2))}, folder / report.EVIDENCE_FILE)
        runs[way] = [folder]
    summary = packing.summarise(runs, {})
    assert summary["gradient_relative_difference"] == pytest.approx({"padded": 0.0, "packed": 0.1})
    assert summary["ways_agree"] is False
    assert "DO NOT COMPUTE THE SAME" in packing.table(summary)
