"""What may be asked of a conversion, and how its counts are kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from aria_finetune.conversion import ConversionOptions, ConversionReport, Reject
from aria_finetune.data_formats.format import Settings
from aria_finetune.errors import UserError


@pytest.mark.parametrize(
    ("media", "verify", "policy"),
    [
        (None, "none", "reference"),
        (None, "stat", "copy"),
        (None, "header", "copy"),
        (None, "decode", "copy"),
        ("copy", "stat", "copy"),
        ("hardlink", "header", "hardlink"),
        ("reference", "decode", "reference"),
        ("reference", "none", "reference"),
    ],
)
def test_what_becomes_of_media(media: str | None, verify: str, policy: str) -> None:
    assert ConversionOptions(media=media, verify=verify).media_policy == policy  # type: ignore[arg-type]


@pytest.mark.parametrize("media", ["copy", "hardlink"])
def test_files_that_nobody_looks_for_are_not_copied(media: str) -> None:
    with pytest.raises(UserError, match=f"--media {media} needs the files") as caught:
        _ = ConversionOptions(media=media, verify="none").media_policy  # type: ignore[arg-type]
    assert (
        caught.value.fix == "leave the files where they are with --media reference, or look for them with --verify stat"
    )


def test_options_as_json() -> None:
    options = ConversionOptions(
        media_roots=(Path("a"), Path("b")), companions=(Path("c.json"),), converter=Path("d.py"), columns={"id": "nr"}
    )
    told = options.to_dict()
    assert json.loads(json.dumps(told)) == told
    assert (told["media_roots"], told["companions"], told["converter"]) == (["a", "b"], ["c.json"], "d.py")
    assert (told["verify"], told["media"], told["columns"]) == ("header", None, {"id": "nr"})


def test_what_converters_are_told() -> None:
    options = ConversionOptions(answers="letter", take="chosen", columns={"answer": "a"})
    assert options.settings == Settings("letter", "chosen", {"answer": "a"})


def test_counts_add_up() -> None:
    report = ConversionReport(3, 2, 1, Counter(bad_json=1), Counter(placeholder_added=2), Counter(llava=3), 1.5)
    report.add(ConversionReport(1, 4, 2, Counter(bad_json=1, bad_roles=1), Counter(), Counter(llava=6), 2.0))
    assert report.to_dict() == {
        "source_records": 4,
        "read": 9,
        "written": 6,
        "rejected": 3,
        "reasons": {"bad_json": 2, "bad_roles": 1},
        "repairs": {"placeholder_added": 2},
        "formats": {"llava": 9},
        "seconds": 1.5,
    }
    assert ConversionReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_a_reject_in_one_line() -> None:
    reject = Reject("data.jsonl", 7, 2, "llava:data.jsonl:7.2", "bad_roles", "two system turns")
    assert reject.describe() == "data.jsonl:7: bad_roles: two system turns"
