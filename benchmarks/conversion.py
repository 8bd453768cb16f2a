"""Converting LLaVA records: `aria-finetune convert` beside `datasets.map` with the same pure function.

    python benchmarks/conversion.py --records 2000000 --json

Both get the same generated file, once as JSON Lines and once as one JSON list, and as many processes. Ours is the whole
command: start, planning, reading, converting, writing, hashing, report. Of `datasets` two times are taken: the call of
`map` alone, after it has read the file into Arrow and before anything is written, and the whole with reading and
writing JSON Lines. Media are not looked at. Memory is the sum over all processes of what is their own or shared in parts
(PSS), its peak in samples.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import orjson

WORDS = [
    "the",
    "a",
    "of",
    "and",
    "is",
    "it",
    "in",
    "on",
    "at",
    "bus",
    "street",
    "red",
    "white",
    "people",
    "two",
    "three",
    "large",
    "small",
    "window",
    "table",
    "food",
    "dog",
    "cat",
    "sky",
]
SAMPLE_SECONDS = 0.2


def main() -> None:
    """Generate, measure in turn, print."""
    arguments = parse()
    if arguments.baseline:
        print(json.dumps(map_with_datasets(*arguments.baseline, arguments.workers)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        sources = generate(Path(folder), arguments.records)
        summary: dict[str, Any] = {"records": arguments.records, "workers": arguments.workers, "machine": machine()}
        for layout, source in sources.items():
            runs = [measure(source, Path(folder), arguments) for _ in range(arguments.repeats)]
            summary[layout] = {name: medians([run[name] for run in runs]) for name in runs[0]}
            if not arguments.alone:
                ours, theirs = summary[layout]["ours"], summary[layout]["datasets"]
                summary[layout]["times_faster_than_map"] = round(theirs["map_seconds"] / ours["seconds"], 2)
                summary[layout]["times_faster_in_all"] = round(theirs["seconds"] / ours["seconds"], 2)
            print(describe(layout, summary), flush=True)
    if arguments.json:
        print(json.dumps(summary))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Conversion of LLaVA records beside datasets.map.")
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where files are generated (default: the temporary folder)")
    parser.add_argument("--alone", action="store_true", help="leave datasets out, whose memory grows with the records")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--baseline", nargs=2, metavar=("SOURCE", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args()


def generate(folder: Path, records: int) -> dict[str, Path]:
    """The same records as JSON Lines and as one list."""
    chance = random.Random(1)
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(4, 18))) for _ in range(5000)]
    lines, listed = folder / "lines.jsonl", folder / "list.json"
    with lines.open("wb") as one, listed.open("wb") as other:
        for number in range(records):
            turns = []
            for turn in range(chance.randint(1, 3)):
                question = ("<image>\n" if turn == 0 else "") + chance.choice(texts) + "?"
                turns += [{"from": "human", "value": question}, {"from": "gpt", "value": chance.choice(texts) + "."}]
            image = f"coco/train2017/{number % 100_000:012d}.jpg"
            record = orjson.dumps({"id": f"{number:09d}", "image": image, "conversations": turns})
            one.write(record + b"\n")
            other.write((b",\n" if number else b"[") + record)
        other.write(b"]\n")
    return {"json_lines": lines, "json_list": listed}


def measure(source: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One run of each, ours first."""
    workers = arguments.workers
    for name in ("ours", "theirs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    options = ["--verify", "none", "--media", "reference", "--workers", str(workers)]
    code = "from aria_finetune.cli import app; app()"
    command = [sys.executable, "-c", code, "convert", str(source), str(folder / "ours"), *options]
    seconds, peak, _ = timed(command)
    ours = {"seconds": seconds, "peak_mib": peak}
    shutil.rmtree(folder / "ours")
    if arguments.alone:
        return {"ours": ours}
    command = [sys.executable, __file__, "--workers", str(workers), "--baseline", str(source), str(folder / "theirs")]
    seconds, peak, said = timed(command)
    theirs = {"seconds": seconds, "peak_mib": peak, **json.loads(said.splitlines()[-1])}
    shutil.rmtree(folder / "theirs")
    return {"ours": ours, "datasets": theirs}


def timed(command: list[str]) -> tuple[float, float, str]:
    """Seconds, peak memory in MiB and output of a command."""
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peaks: list[float] = []
        done = threading.Event()
        watcher = threading.Thread(target=watch, args=(process.pid, peaks, done))
        watcher.start()
        said = process.stdout.read() if process.stdout else ""
        code = process.wait()
        seconds = time.monotonic() - begun
        done.set()
        watcher.join()
    if code:
        raise SystemExit(f"{command} ended with exit code {code}")
    return seconds, max(peaks, default=0.0), said


def watch(process: int, peaks: list[float], done: threading.Event) -> None:
    """Take samples of the memory of a process and of all below it."""
    while not done.wait(SAMPLE_SECONDS):
        peaks.append(sum(map(pss_mib, tree(process))))


def tree(process: int) -> list[int]:
    """A process and all below it."""
    found = [process]
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            children = (task / "children").read_text().split()
            found += [other for child in children for other in tree(int(child))]
    except OSError:
        pass
    return found


def pss_mib(process: int) -> float:
    """Memory of a process in MiB, shared pages counted in parts."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def map_with_datasets(source: str, folder: str, workers: int) -> dict[str, float]:
    """Read, map and write with `datasets`; the seconds of `map` alone."""
    from datasets import disable_progress_bars, load_dataset  # noqa: PLC0415 (only in this process)

    disable_progress_bars()
    Path(folder).mkdir()
    loaded = load_dataset("json", data_files=source, split="train", cache_dir=folder)
    begun = time.monotonic()
    mapped = loaded.map(canonical, num_proc=workers, remove_columns=loaded.column_names)
    seconds = time.monotonic() - begun
    mapped.to_json(f"{folder}/out.jsonl")
    return {"map_seconds": seconds}


def canonical(record: dict[str, Any]) -> dict[str, Any]:
    """The pure function: a LLaVA record as a canonical one, as plain JSON types; its media as they are named."""
    from aria_finetune.data_formats import rules  # noqa: PLC0415
    from aria_finetune.data_formats.building import fields  # noqa: PLC0415
    from aria_finetune.data_formats.chat import llava  # noqa: PLC0415
    from aria_finetune.data_formats.record import Media, Record, Source  # noqa: PLC0415

    draft = rules.checked(next(llava.convert(dict(record))))  # type: ignore[arg-type]
    media = tuple(Media("image", medium.reference, "", "image/jpeg", 0, 0) for medium in draft.media)
    source = Source("llava", "lines.jsonl", 0, "0")
    return Record("", draft.messages, media, (), None, fields.compact_json(draft.meta), source).to_dict()


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}


def machine() -> dict[str, Any]:
    """What was measured on."""
    from importlib.metadata import version  # noqa: PLC0415

    versions = {name: version(name) for name in ("datasets", "orjson", "pyarrow")}
    return {"cpus": len(os.sched_getaffinity(0)), "python": platform.python_version(), **versions}


def describe(layout: str, summary: dict[str, Any]) -> str:
    """One line for people."""
    ours = summary[layout]["ours"]
    rate = summary["records"] / ours["seconds"]
    text = f"{layout}: ours {ours['seconds']:.1f} s ({rate:,.0f} records/s, {ours['peak_mib']:.0f} MiB)"
    if "datasets" not in summary[layout]:
        return text
    theirs = summary[layout]["datasets"]
    return (
        f"{text}; datasets.map {theirs['map_seconds']:.1f} s, in all {theirs['seconds']:.1f} s "
        f"({theirs['peak_mib']:.0f} MiB): {summary[layout]['times_faster_than_map']} and "
        f"{summary[layout]['times_faster_in_all']} times as fast"
    )


if __name__ == "__main__":
    main()
