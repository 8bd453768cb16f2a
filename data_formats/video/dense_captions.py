"""ActivityNet Captions: for each video the scenes in it, with the seconds at which each begins and ends.

`{VIDEO: {"duration": SECONDS, "timestamps": [[START, END]], "sentences": [TEXT]}}` (Krishna et al. 2017), and rows of the
same with `video_id`. The answer is one line a scene, in the order in which they begin: `[00:00 - 00:19] ...`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aria_finetune.data_formats.building import fields, questions
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Format
from aria_finetune.data_formats.record import Draft
from aria_finetune.data_formats.video import clips

PROMPT = (
    "Describe the scenes of this video one by one, each on its own line after the times at which it begins and ends, "
    "written as [MM:SS - MM:SS]."
)

_KEYS = frozenset({"timestamps", "sentences"})
_NAMES = ("video_id", "video", "id")
_SEEN = 100

Scene = tuple[float, float, str]


def matches(record: object) -> bool:
    """Videos by name with `timestamps` and `sentences`, or one such video with its name beside them."""
    if not isinstance(record, dict) or not record:
        return False
    if record.keys() >= _KEYS:
        return any(key in record for key in _NAMES)
    head = [value for value, _ in zip(record.values(), range(_SEEN), strict=False)]
    return all(isinstance(value, dict) and value.keys() >= _KEYS for value in head)


def unfold(records: Iterator[object], context: Context) -> Iterator[object]:  # noqa: ARG001
    """Every video with its name."""
    for record in records:
        if not isinstance(record, dict) or record.keys() & _KEYS:
            yield record
            continue
        for name, video in record.items():
            yield {**video, "video_id": name} if isinstance(video, dict) else video


def convert(record: object, context: Context = PLAIN) -> Iterator[Draft]:  # noqa: ARG001
    """The scenes of one video.

    Raises:
        RecordError: `bad_schema`, also where there are more times than sentences or none of either.
    """
    source = fields.mapping(record, "the video")
    key = next((key for key in _NAMES if source.get(key) is not None), None)
    if key is None:
        raise RecordError("bad_schema", "the video has no name")
    scenes, swapped = _scenes(source)
    told = "\n".join(f"[{_clock(start)} - {_clock(end)}] {text}" for start, end, text in scenes)
    meta = {
        **fields.rest(source, ("timestamps", "sentences")),
        "windows": [[start, end] for start, end, _ in scenes],
        "windows_unit": "seconds",
        "sentences": [text for *_, text in scenes],
    }
    media = clips.clip(clips.identifier(source[key], key))
    repairs = ("times_swapped",) if swapped else ()
    yield questions.asked([media], PROMPT, told, references=(told,), meta=meta, repairs=repairs)


def _scenes(source: Mapping[str, Any]) -> tuple[list[Scene], bool]:
    """The scenes in the order in which they begin, and whether the times of one stood the wrong way round."""
    times = fields.array(fields.required(source, "timestamps", "the video"), "timestamps")
    sentences = fields.array(fields.required(source, "sentences", "the video"), "sentences")
    if not times or len(times) != len(sentences):
        raise RecordError("bad_schema", f"{len(times)} timestamps for {len(sentences)} sentences")
    found, swapped = [], False
    for number, (pair, sentence) in enumerate(zip(times, sentences, strict=True)):
        ends = fields.array(pair, f"timestamps[{number}]")
        if len(ends) != 2:
            raise RecordError("bad_schema", f"timestamps[{number}] has {len(ends)} values, not start and end")
        first, second = (clips.seconds(value, f"timestamps[{number}]") for value in ends)
        text = " ".join(fields.text(sentence, f"sentences[{number}]").split())
        if not text:
            raise RecordError("bad_schema", f"sentences[{number}] is empty")
        swapped |= second < first
        found.append((min(first, second), max(first, second), text))
    return sorted(found, key=lambda scene: scene[:2]), swapped


def _clock(seconds: float) -> str:
    """As the times before frames are written: whole seconds, rounded down."""
    return f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"


FORMAT = Format(
    name="activitynet-captions",
    title="ActivityNet Captions, the scenes of each video with their times",
    schema='{VIDEO: {"duration": SECONDS, "timestamps": [[START, END]], "sentences": [TEXT]}}',
    example={
        "v_0aBcDeFgH1i": {
            "duration": 30.5,
            "timestamps": [[0.4, 12.9], [12.0, 30.5]],
            "sentences": ["A man waters the garden.", "A dog runs off with the hose."],
        }
    },
    traps=(
        "the video is <name>.mp4 and the like, beside the source, in videos/ or in video/",
        "scenes may overlap; they are told in the order in which they begin, in whole seconds rounded down",
        "a scene that ends before it begins has its times swapped (times_swapped)",
        "exact times stay among the metadata as windows",
    ),
    keys=frozenset({"duration", *_KEYS, *_NAMES}),
    matches=matches,
    convert=convert,
    unfold=unfold,
)
