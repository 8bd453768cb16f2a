"""Every metric by its name, and by which of them a record is scored."""

from __future__ import annotations

import difflib
import re

from aria_finetune.data_formats.building.questions import IMAGE_PROMPT, VIDEO_PROMPT
from aria_finetune.data_formats.record import Record
from aria_finetune.errors import UserError
from aria_finetune.metrics.anls import ANLS
from aria_finetune.metrics.boxes import BOX
from aria_finetune.metrics.captions import CAPTIONS
from aria_finetune.metrics.choice import CHOICE
from aria_finetune.metrics.code import CODE
from aria_finetune.metrics.exact import EXACT
from aria_finetune.metrics.long_documents import MMLONGBENCH
from aria_finetune.metrics.metric import Metric
from aria_finetune.metrics.moments import MOMENTS
from aria_finetune.metrics.relaxed import RELAXED
from aria_finetune.metrics.rows import Row, row_of
from aria_finetune.metrics.vqa import FEWEST, VQA
from aria_finetune.metrics.yes_no import YES_NO

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (EXACT, VQA, ANLS, RELAXED, CHOICE, YES_NO, BOX, CAPTIONS, MMLONGBENCH, CODE, MOMENTS)
}

AUTO = "auto"

_OF_FORMAT = {
    "chartqa": RELAXED,
    "docvqa": ANLS,
    "dude": ANLS,
    "ocr-qa": ANLS,
    # ST-VQA comes as TextVQA does, with one answer; the votes of TextVQA are asked for before.
    "textvqa": ANLS,
    "mmlongbench-doc": MMLONGBENCH,
    "nlvr2": YES_NO,
    "pope": YES_NO,
    "mme": YES_NO,
    "refcoco": BOX,
    "coco-captions": CAPTIONS,
    "coco-caption-results": CAPTIONS,
    "karpathy": CAPTIONS,
    "flickr-lines": CAPTIONS,
    "image-captions": CAPTIONS,
    "caption-names": CAPTIONS,
    "msrvtt": CAPTIONS,
    "msrvtt-captions": CAPTIONS,
    "video-captions": CAPTIONS,
    "sharegpt4video": CAPTIONS,
}
_ARIA_BOX = re.compile(
    r"(?:<ref>[^<]*</ref>)?(?:<box>)?\(\s*[\d.]+\s*,\s*[\d.]+\s*\)\s*,\s*\(\s*[\d.]+\s*,\s*[\d.]+\s*\)(?:</box>)?"
)
_VOTED_FORMATS = frozenset({"vqav2", "textvqa"})


def choose(record: Record) -> str:
    """The name of the metric for a record: by what its converter kept, then by its format, then by the answers.

    `code` runs what the model writes, so whoever scores asks first (`Metric.runs_code`).
    """
    return metric_for(row_of(record)).name


def metric_for(row: Row) -> Metric:
    """The metric for a row; one that lacks what its own would need is compared word for word."""
    by_format = CAPTIONS if row.question in {IMAGE_PROMPT, VIDEO_PROMPT} else _OF_FORMAT.get(row.format)
    for metric in (CODE, MOMENTS if "windows" in row.meta else None, BOX if _names_box(row) else None, CHOICE):
        if metric is not None and metric.fits(row):
            return metric
    if _is_voted(row):
        return VQA
    if by_format is not None and by_format.fits(row):
        return by_format
    return YES_NO if YES_NO.fits(row) else EXACT


def _names_box(row: Row) -> bool:
    """Whether a box is what is asked for: RefCOCO, the authors' form of it, or an answer in nothing but Aria's words."""
    whole = row.expected[0].strip() if row.expected else ""
    return row.format == "refcoco" or {"bbox", "hw"} <= row.meta.keys() or _is_aria_box(whole)


def _is_aria_box(text: str) -> bool:
    return _ARIA_BOX.fullmatch(text) is not None


def _is_voted(row: Row) -> bool:
    """Whether several people were asked: then answers may stand among the accepted ones more than once."""
    several = len(row.expected) > len(set(row.expected)) or row.format in _VOTED_FORMATS
    return len(row.expected) >= FEWEST and several


def metric_named(name: str) -> Metric:
    """The metric of a name.

    Raises:
        UserError: there is none.
    """
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, 1)
        known = ", ".join((AUTO, *METRICS))
        raise UserError(f"there is no metric {name!r}", fix=f"did you mean {near[0]}?" if near else f"one of: {known}")
    return METRICS[name]
