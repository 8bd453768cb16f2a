"""The tables of README.md, made of the files in `results/`.

    python benchmarks/tables.py

writes them between the two marks in README.md; with `--check` it only says, by exit code 1, whether they are not what they would be.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import shown_ratio

HERE = Path(__file__).parent
README = HERE / "README.md"
BEGIN, END = "<!-- tables of results, made by tables.py -->", "<!-- end of tables -->"

Result = dict[str, Any]
Columns = dict[str, Callable[[Result], str]]


def _alone(result: Result) -> Iterable[Result]:
    return (result,)


@dataclass(frozen=True)
class Kind:
    """One benchmark: the files `PREFIX-*.json`, the columns of its table, and what of a file has a line each."""

    prefix: str
    title: str
    columns: Columns
    lines: Callable[[Result], Iterable[Result]] = _alone


def main() -> int:
    """Write or check the tables; 0 when they are in README.md as they should be."""
    parser = argparse.ArgumentParser(description="Make the tables of README.md from the files in results/.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where README.md is not up to date"
    )
    arguments = parser.parse_args()
    before = README.read_text(encoding="utf-8")
    after = replaced(before, tables(HERE / "results"))
    if before == after:
        return 0
    if arguments.check:
        print(f"{README.name} is not up to date: python benchmarks/tables.py", file=sys.stderr)
        return 1
    README.write_text(after, encoding="utf-8")
    return 0


def replaced(text: str, made: str) -> str:
    """`text` with `made` between the marks.

    Raises:
        ValueError: the marks are not both there, once.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{README.name} must have {BEGIN!r} and {END!r} once each")
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{made}\n{END}{rest.partition(END)[2]}"


def tables(results: Path) -> str:
    """All tables, each with the lines of every file of its kind."""
    parts = []
    for kind in KINDS:
        files = sorted(results.glob(f"{kind.prefix}-*.json"), key=_natural)
        found = [line for file in files for line in kind.lines(json.loads(file.read_text(encoding="utf-8")))]
        if found:
            parts.append(f"**{kind.title}**\n\n{_table(kind.columns, found)}")
    return "\n".join(parts)


def _natural(file: Path) -> list[str | int]:
    """256 tokens before 1,024."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]


def _table(columns: Columns, results: Sequence[Result]) -> str:
    rows = [[show(result) for show in columns.values()] for result in results]
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _device(result: Result) -> str:
    name = str(result.get("device_name", result["device"]))
    return f"{name}, {result['threads']} thread" if result["device"] == "cpu" else name


def _clock(result: Result) -> str:
    return "cpu_seconds" if result["device"] == "cpu" else "seconds"


def _pair(stock: float, ours: float, digits: int = 2) -> str:
    return f"{stock:.{digits}f} / {ours:.{digits}f}"


STEP: Columns = {
    "device": _device,
    "layers": lambda r: str(r["layers"]),
    "tokens": lambda r: f"{r['tokens']:,}",
    "images": lambda r: f"{r['images']} of {r['tile']} px" if r["images"] else "0",
    "seconds a step, stock / ours": lambda r: _pair(r["stock"]["seconds_per_step"], r["ours"]["seconds_per_step"]),
    "times as fast (by repeat)": lambda r: (
        f"**{r['speedup']:.2f}** ({', '.join(f'{ratio:.2f}' for ratio in r['speedup_by_repeat'])})"
    ),
    "peak above the model, GiB": lambda r: _pair(r["stock"]["peak_gib"], r["ours"]["peak_gib"]),
    "memory ratio": lambda r: f"**{shown_ratio(r['memory_ratio'], 2)}**",
}

EXPERTS: Columns = {
    "device": _device,
    "tokens": lambda r: f"{r['tokens']:,}",
    "routing": lambda r: f"{r['routing']}, an expert's share up to {r['expert_load']['max']:.1%}",
    "seconds a step: stock / eager / ours": lambda r: " / ".join(
        f"{r[way]['seconds_per_step']:.3f}" for way in ("stock", "eager", "ours")
    ),
    "times as fast as stock (by repeat)": lambda r: (
        f"**{r['speedup']:.2f}** ({', '.join(f'{ratio:.2f}' for ratio in r['speedup_by_repeat'])})"
    ),
    "in processor time": lambda r: f"{r['processor_speedup']:.2f}",
    "as eager": lambda r: f"{r['against']['eager']['speedup']:.2f}",
    "as ours on bf16": lambda r: f"{r['against']['dense']['speedup']:.2f}" if "dense" in r["against"] else "",
    "peak above the weights, GiB": lambda r: _pair(r["stock"]["peak_gib"], r["ours"]["peak_gib"], 3),
    "memory ratio": lambda r: f"**{shown_ratio(r['memory_ratio'], 2)}**",
}

PACKING: Columns = {
    "device": _device,
    "layers": lambda r: str(r["layers"]),
    "rows, in a step": lambda r: f"{r['rows']}, {r['batch_size']}",
    "useful tokens/s: stock padded / ours padded / ours packed": lambda r: " / ".join(
        f"{r['ways'][way]['useful_tokens_per_second']:.0f}" for way in ("stock", "padded", "packed")
    ),
    "packed over stock": lambda r: f"**{r['packed_over_stock']:.2f}**",
    "packed over padded": lambda r: f"{r['packed_over_padded']:.2f}",
    "waste, padded / packed": lambda r: f"{r['waste']['padded']:.1%} / **{r['waste']['packed']:.1%}**",
    "memory ratio": lambda r: shown_ratio(r["memory_ratio"], 2),
}

HEAD: Columns = {
    "device": _device,
    "tokens": lambda r: f"{r['tokens']:,}",
    "with a label": lambda r: f"{r['labels']:,}",
    "seconds (of the processor on a CPU), TRL / ours": lambda r: _pair(*(r[way][_clock(r)] for way in ("trl", "ours"))),
    "times as fast": lambda r: f"**{r['times_as_fast']:.2f}**",
    "peak, MiB": lambda r: _pair(r["trl"]["peak_mib"], r["ours"]["peak_mib"], 0),
    "memory ratio": lambda r: f"**{shown_ratio(r['memory_ratio'], 2)}**",
}

LOADER: Columns = {
    "device": lambda r: f"{r.get('device_name', r['device'])}, {r['processors']} processors",
    "source": lambda r: r["source"],
    "workers": lambda r: r["workers"],
    "images or frames/s, stock / ours": lambda r: _pair(
        r["stock"]["images_per_second"], r["ours"]["images_per_second"], 1
    ),
    "times as fast": lambda r: f"**{r['times_as_fast']:.2f}**",
    "times less processor time": lambda r: f"{r['times_less_cpu']:.2f}",
    "a batch, MB": lambda r: _pair(r["stock"]["megabytes_per_batch"], r["ours"]["megabytes_per_batch"], 1),
}

HEALTH: Columns = {
    "device": _device,
    "layers": lambda r: str(r["layers"]),
    "tokens": lambda r: f"{r['tokens']:,}",
    "seconds a step, without / with health": lambda r: _pair(r["without"]["seconds"], r["health"]["seconds"], 3),
    "overhead": lambda r: f"**{r['overhead']:.2%}**",
    "in processor time": lambda r: f"{r['processor_overhead']:.2%}",
}

LONG_ROWS: Columns = {
    "device": _device,
    "layers": lambda r: f"{r['layers']}, {r['scale']} size",
    "tokens": lambda r: f"{r['tokens']:,}",
    "peak, GiB": lambda r: f"{r['peak_gib']:.2f}" if "peak_gib" in r else f"{r['allocated_gib']:.3f} allocated",
    "planned, GiB": lambda r: f"{r['planned_gib']:.2f}" if "planned_gib" in r else "",
    "off a straight line": lambda r: f"at most {r['off_the_line']:.1%}" if "off_the_line" in r else "",
}

WHOLE_STEP: Columns = {
    "device": _device,
    "layers": lambda r: str(r["layers"]),
    "tokens, with a label": lambda r: f"{r['tokens']:,}, {r['labels']:,}",
    "images": lambda r: f"{r['images']} of {r['tile']} px" if r["images"] else "0",
    "tokens/s": lambda r: ", ".join(f"{way} {side['tokens_per_second']:.0f}" for way, side in r["ways"].items()),
    "ours times as fast as": lambda r: ", ".join(f"{way} **{of['speedup']:.2f}**" for way, of in r["against"].items()),
    "peak with the model, GiB": lambda r: ", ".join(f"{way} {side['peak_gib']:.2f}" for way, side in r["ways"].items()),
    "use of the device": lambda r: (
        f"{r['ways']['ours']['use_of_device']:.1%}" if "use_of_device" in r["ways"]["ours"] else ""
    ),
}

GOALS: Columns = {
    "goal": lambda r: r["goal"],
    "bound": lambda r: f"{'at most' if r['most'] else 'at least'} {r['bound']:g}{r['unit']}",
    "figure": lambda r: "" if r["figure"] is None else f"{r['figure']:.3g}{r['unit']}",
    "met": lambda r: r["met"],
    "device": lambda r: r["device_name"] or "",
}

FULL_SIZE: Columns = {
    "device": _device,
    "layers": lambda r: str(r["layers"]),
    "tokens": lambda r: f"{r['tokens']:,}",
    "images": lambda r: str(r["images"]),
    "built, GiB": lambda r: f"{r['loaded_gib']:.2f}",
    "peak, GiB": lambda r: f"{r['peak_gib']:.2f}",
    "planned, GiB": lambda r: f"{r['planned_gib']:.2f}",
    "seconds a step": lambda r: f"{r['seconds_per_step']:.0f}",
}


MERGING: Columns = {
    "device": _device,
    "layers": lambda r: f"{r['layers']}, {r['scale']} size",
    "checkpoint, GB": lambda r: f"{r['checkpoint_bytes'] / 1e9:.2f}",
    "largest tensor, GB": lambda r: f"{r['largest_tensor_bytes'] / 1e9:.2f}",
    "what": lambda r: r["what"],
    "seconds": lambda r: f"{r['seconds']:.0f}",
    "anonymous memory, GB": lambda r: f"**{r['peak_bytes'] / 1e9:.2f}**",
    "of it imports": lambda r: f"{r['imported_bytes'] / 1e9:.2f}",
    "KL, nats": lambda r: f"{r['kl']:.1e}" if "kl" in r else "",
}


def _cases(result: Result) -> Iterable[Result]:
    return ({**result, **case} for case in result["cases"])


def _points(result: Result) -> Iterable[Result]:
    return ({**result, **point} for point in result["points"])


def _merges(result: Result) -> Iterable[Result]:
    names = {"merge": "`merge --no-proof`", "proof": "the proof", "nf4": "`merge --to nf4 --no-proof`"}
    return ({**result, **result[way], "what": what} for way, what in names.items() if way in result)


def _goals(result: Result) -> Iterable[Result]:
    return ({**goal, "device_name": result["device_name"]} for goal in result["goals"])


def _loadings(result: Result) -> Iterable[Result]:
    for source, found in result["sources"].items():
        for workers, sides in found["workers"].items():
            yield {**result, **sides, "source": f"{source}, {result['size']} px", "workers": workers}


KINDS = (
    Kind("step", "`step.py`: the decoder body, and the vision tower where there are images", STEP),
    Kind("whole_step", "`whole_step.py`: from pixels to AdamW", WHOLE_STEP),
    Kind("goals", "`goals.py`: what one H100 should reach", GOALS, _goals),
    Kind("experts", "`experts.py`: the routed experts of one layer alone", EXPERTS),
    Kind("packing", "`packing.py`: rows as people have them", PACKING),
    Kind("head", "`head.py`: the loss and its gradient", HEAD, _cases),
    Kind("loader", "`loader.py`: from files to a batch on the device", LOADER, _loadings),
    Kind("health", "`health.py`: the account of routing, logged at every step", HEALTH),
    Kind("long_rows", "`long_rows.py`: memory by the tokens of a row", LONG_ROWS, _points),
    Kind("merging", "`merging.py`: adapters folded into full-size layers", MERGING, _merges),
    Kind("full_size", "`full_size.py`: the project's own trainer, random NF4 weights", FULL_SIZE),
)


if __name__ == "__main__":
    sys.exit(main())
