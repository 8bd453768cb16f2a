"""Convert a folder of sample data sets and compare with what is expected of each, as a table.

    python tests/samples_table.py SAMPLES/expected.json [NAME ...]

`expected.json` maps the path of each sample to the counts of its records, messages by role, parts by type, the order of
the first record's parts, its first texts, and the rejects by reason, once without and once with its media. The exit
code is the number of samples that differ.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from aria_finetune.conversion import ConversionOptions, convert
from aria_finetune.errors import TooManyRejects, UserError


def main() -> int:
    """Print the table; how many samples differ."""
    file, *names = sys.argv[1:]
    expected = json.loads(Path(file).read_text(encoding="utf-8"))
    differing = compared_samples = 0
    for name, wanted in expected.items():
        if names and not any(part in name for part in names):
            continue
        problems = differences(Path(file).parent, name, wanted)
        compared_samples, differing = compared_samples + 1, differing + bool(problems)
        print(f"{'ok  ' if not problems else 'DIFF'} {name}")
        for problem in problems:
            print(f"       {problem}")
    print(f"{differing} of {compared_samples} differ")
    return differing


def differences(folder: Path, name: str, wanted: dict[str, Any]) -> list[str]:
    """What a sample's conversion gives that is not expected."""
    root = folder / wanted.get("media_root", Path(name).parent)
    found = []
    for verify, key in (("none", "structural"), ("decode", "with_media_present")):
        if key not in wanted:
            found += [] if key == "structural" else other_facts(folder / name, wanted)
            continue
        records, rejects, problem = converted(folder / name, root, verify)
        if problem:
            found.append(f"{verify}: {problem}")
            continue
        found += [f"{verify}: {text}" for text in compared(counts(records), wanted[key])]
        if verify == "none":
            found += [f"first: {text}" for text in compared_first(records, wanted.get("first"))]
        else:
            found += compared_rejects(rejects, wanted["rejected"])
    return found


def converted(source: Path, root: Path, verify: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str | None]:
    """Records and rejects of a conversion, or why there was none."""
    with tempfile.TemporaryDirectory() as made:
        output = Path(made) / "set"
        options = ConversionOptions(media_roots=(root, source.parent), max_rejects=10**9, verify=verify)  # type: ignore[arg-type]
        try:
            convert(source, output, options)
        except (UserError, TooManyRejects) as error:
            return [], [], str(error)
        lines = [
            line for shard in sorted(output.glob("data-*.jsonl")) for line in shard.read_text("utf-8").splitlines()
        ]
        rejects = (output / "rejects.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines], [json.loads(line) for line in rejects], None


def counts(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What `expected.json` says of records."""
    messages = [message for record in records for message in record["messages"]]
    return {
        "records": len(records),
        "messages": len(messages),
        "roles": dict(Counter(message["role"] for message in messages)),
        "parts": dict(Counter(part["type"] for message in messages for part in message["content"])),
    }


def compared(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Counts that differ."""
    return [f"{key} {found[key]}, expected {wanted[key]}" for key in found if found[key] != wanted[key]]


def compared_first(records: list[dict[str, Any]], wanted: dict[str, Any] | None) -> list[str]:
    """Differences of the first record; texts in parentheses stand for a prompt of the converter."""
    if wanted is None or not records:
        return []
    messages = records[0]["messages"]
    found = {
        "roles": [message["role"] for message in messages],
        "part_order": [[part["type"] for part in message["content"]] for message in messages],
    }
    problems = [f"{key} {found[key]}, expected {wanted[key]}" for key in found if found[key] != wanted[key]]
    for role in ("user", "assistant"):
        text = next((first_text(message) for message in messages if message["role"] == role), "")
        expected = wanted[f"{role}_text"]
        if not expected.startswith("(") and not text.startswith(expected):
            problems.append(f"{role} text {text[: len(expected) + 20]!r}, expected {expected!r}")
    return problems


def first_text(message: dict[str, Any]) -> str:
    """The first text of a message."""
    return next((part["text"] for part in message["content"] if part["type"] == "text"), "")


def compared_rejects(rejects: list[dict[str, Any]], wanted: dict[str, Any]) -> list[str]:
    """Rejects that differ: by ordinals where these are expected, else by number."""
    problems = []
    reasons = {reject["reason"] for reject in rejects}
    for reason in sorted(reasons | set(wanted)):
        ordinals = [reject["ordinal"] for reject in rejects if reject["reason"] == reason]
        expected = wanted.get(reason, 0)
        if (len(ordinals) if isinstance(expected, int) else ordinals) != expected:
            problems.append(f"rejected {reason} {ordinals}, expected {expected}")
    return problems


def other_facts(source: Path, wanted: dict[str, Any]) -> list[str]:
    """Samples of which other things are expected than counts of records."""
    if "cues" in wanted:
        return compared_cues(source, wanted)
    verify = "decode" if "pages" in wanted else "none"
    records, rejects, problem = converted(source, source if source.is_dir() else source.parent, verify)
    if problem:
        return [problem]
    found: dict[str, Any] = {
        "source_records": len({record["source"]["ordinal"] for record in [*records]}) + len(rejects)
    }
    if "pages" in wanted:
        found["pages"] = {Path(record["media"][0]["origin"]).name: record["media"][0]["frames"] for record in records}
    if "complete" in wanted:
        found["complete"] = [json.loads(record["meta"]).get("__key__") for record in records]
        found["first_caption"] = first_text(records[0]["messages"][-1])
    if "first_text" in wanted:
        # What is expected is the text of the source, in which the image has its mark.
        found["first_text"] = "<__dj__image>" + first_text(records[0]["messages"][-1])
    return [
        f"{key} {found[key]}, expected {wanted[key]}" for key in found if key in wanted and found[key] != wanted[key]
    ]


def compared_cues(source: Path, wanted: dict[str, Any]) -> list[str]:
    """Differences of subtitles."""
    from aria_finetune.data_formats.reading.subtitles import read  # noqa: PLC0415

    cues = read(source.read_bytes()).cues
    first = [cues[0].start, cues[0].end, cues[0].text]
    found = {"cues_with_text_and_length": len(cues), "first": first, "last_end": cues[-1].end}
    return [f"{key} {found[key]}, expected {wanted[key]}" for key in found if found[key] != wanted[key]]


if __name__ == "__main__":
    sys.exit(main())
