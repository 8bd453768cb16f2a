"""The formats there are, and which of them a source is written in.

The table is static. A format is recognised by the keys of its records alone; nothing is guessed.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from aria_finetune.data_formats import plugins
from aria_finetune.data_formats.captions import coco, flickr, label_lists
from aria_finetune.data_formats.chat import (
    alpaca,
    anthropic,
    aria,
    bedrock,
    cauldron,
    data_juicer,
    gemini,
    humaneval,
    internvl,
    llava,
    mantis,
    messages,
    minicpm_v,
    plain_text,
    preferences,
    qwen_vl,
    swift,
    tarsier,
    xtuner,
)
from aria_finetune.data_formats.documents import dude, mmc4, obelics, omnicorpus, pdf_folder, pdf_questions
from aria_finetune.data_formats.errors import FormatError
from aria_finetune.data_formats.format import Format
from aria_finetune.data_formats.questions import (
    arc,
    chartqa,
    image_qa,
    nlvr2,
    ocr_vqa,
    pope,
    refcoco,
    scienceqa,
    text_vqa,
    vlmevalkit,
    vqav2,
)
from aria_finetune.data_formats.tables import columns, donut, embedded, imagefolder, webdataset
from aria_finetune.data_formats.video import (
    activitynet_qa,
    dense_captions,
    egoschema,
    grounding,
    longvideobench,
    msrvtt,
    nextqa,
    sharegpt4video,
    tgif_qa,
    tvqa,
    video_chatgpt,
    video_choices,
    videochat2,
)

DETECTION_RECORDS = 100
"""How many records at the head of a source have to agree on its format."""

FAMILIES: dict[str, tuple[Format, ...]] = {
    "chat": (
        aria.FORMAT,
        llava.FORMAT,
        messages.FORMAT,
        *alpaca.FORMATS,
        anthropic.FORMAT,
        bedrock.FORMAT,
        cauldron.FORMAT,
        data_juicer.FORMAT,
        gemini.FORMAT,
        humaneval.FORMAT,
        internvl.FORMAT,
        *mantis.FORMATS,
        minicpm_v.FORMAT,
        plain_text.FORMAT,
        *preferences.FORMATS,
        qwen_vl.FORMAT,
        *swift.FORMATS,
        tarsier.FORMAT,
        xtuner.FORMAT,
    ),
    "questions": (
        arc.FORMAT,
        chartqa.FORMAT,
        image_qa.FORMAT,
        nlvr2.FORMAT,
        ocr_vqa.FORMAT,
        *pope.FORMATS,
        refcoco.FORMAT,
        scienceqa.FORMAT,
        *text_vqa.FORMATS,
        vlmevalkit.FORMAT,
        vqav2.FORMAT,
    ),
    "captions": (
        *coco.FORMATS,
        *flickr.FORMATS,
        label_lists.FORMAT,
    ),
    "video": (
        activitynet_qa.FORMAT,
        dense_captions.FORMAT,
        egoschema.FORMAT,
        *grounding.FORMATS,
        longvideobench.FORMAT,
        *msrvtt.FORMATS,
        nextqa.FORMAT,
        sharegpt4video.FORMAT,
        tgif_qa.FORMAT,
        tvqa.FORMAT,
        video_chatgpt.FORMAT,
        *video_choices.FORMATS,
        videochat2.FORMAT,
    ),
    "documents": (
        dude.FORMAT,
        mmc4.FORMAT,
        obelics.FORMAT,
        omnicorpus.FORMAT,
        pdf_folder.FORMAT,
        *pdf_questions.FORMATS,
    ),
    "tables": (
        columns.FORMAT,
        donut.FORMAT,
        embedded.FORMAT,
        imagefolder.FORMAT,
        webdataset.FORMAT,
    ),
}
"""All formats that come with the program by what they hold, in the order they are listed to people."""

FORMATS: tuple[Format, ...] = tuple(form for family in FAMILIES.values() for form in family)
"""All formats that come with the program."""

_MENTIONED_KEYS = 12


def formats(converter: Path | None = None) -> tuple[Format, ...]:
    """All formats: ours, those of installed packages, and those of the Python file `converter`.

    Raises:
        FormatError: a foreign one can't be loaded, or has the name of another.
    """
    known = (*FORMATS, *plugins.installed(), *(plugins.of_file(converter) if converter else ()))
    names = [form.name for form in known]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FormatError(f"there are two formats called {twice[0]!r}", fix="rename the one that is not built in")
    return known


def get(name: str, formats: Sequence[Format] = FORMATS) -> Format:
    """The format called `name`.

    Raises:
        FormatError: there is none; it names the nearest.
    """
    for known in formats:
        if known.name == name:
            return known
    nearest = difflib.get_close_matches(name, [known.name for known in formats], n=1)
    meant = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise FormatError(f"there is no format {name!r}", fix=f"{meant}known formats: {_names(formats)}")


def detect(records: Sequence[object], formats: Sequence[Format] = FORMATS) -> Format:
    """The one format that fits all of the first `DETECTION_RECORDS` records.

    Of two that fit, one that is `narrower_than` the other wins if any record has its marks (or it needs none), and
    gives way if none has. Two that remain are never chosen between.

    Raises:
        FormatError: no record, no format that fits, records of different formats, or two formats that fit.
    """
    head = records[:DETECTION_RECORDS]
    if not head:
        raise FormatError("there is no record to recognise the format by", fix="check that the source is JSON")
    fitting = [{known.name for known in formats if known.matches(record)} for record in head]
    if not all(fitting):
        raise _unknown(head, fitting, formats)
    names = set.intersection(*fitting)
    if not names:
        raise _mixed(fitting)
    kept = _without_neighbours([known for known in formats if known.name in names], head)
    if len(kept) == 1:
        return kept[0]
    names_kept = _names(kept)
    raise FormatError(f"more than one format fits: {names_kept}", fix=f"choose with --format, one of {names_kept}")


def _without_neighbours(fitting: Sequence[Format], head: Sequence[object]) -> list[Format]:
    names = {known.name for known in fitting}
    out: set[str] = set()
    for known in fitting:
        wider = names.intersection(known.narrower_than)
        if wider:
            marked = known.marks is None or any(known.marks(record) for record in head)
            out |= wider if marked else {known.name}
    return [known for known in fitting if known.name not in out]


def _unknown(head: Sequence[object], fitting: Sequence[set[str]], formats: Sequence[Format]) -> FormatError:
    number = next(number for number, names in enumerate(fitting) if not names)
    keys = _keys(head[number])
    if any(fitting):
        seen = ", ".join(sorted(set().union(*fitting)))
        message = f"mixed records: record {number} ({_shown(head[number])}) fits no format, others fit {seen}"
        return FormatError(message, fix="mend the record, or name the format with --format to have it rejected")
    nearest = max(formats, key=lambda known: len(known.keys & keys) / max(len(known.keys | keys), 1))
    hint = f"the nearest is {nearest.name} (`aria-finetune formats {nearest.name}`); " if nearest.keys & keys else ""
    hint += "if it is one of them all the same, name it with --format (format: in a recipe); "
    message = f"no known format fits its records ({_shown(head[number])})"
    return FormatError(message, fix=f"{hint}known formats: {_names(formats)}")


def _mixed(fitting: Sequence[set[str]]) -> FormatError:
    for number, names in enumerate(fitting):
        if not names & fitting[0]:
            first, other = " or ".join(sorted(fitting[0])), " or ".join(sorted(names))
            message = f"mixed records: record 0 is {first}, record {number} is {other}"
            break
    else:
        message = "mixed records: no one format fits all of the first records"
    return FormatError(message, fix="split the source by format, or choose one with --format to have the rest rejected")


def _keys(record: object) -> set[str]:
    return set(record) if isinstance(record, dict) else set()


def _shown(record: object) -> str:
    if not isinstance(record, dict):
        return f"a {type(record).__name__}, not an object"
    names = sorted(record)[:_MENTIONED_KEYS]
    more = ", ..." if len(record) > _MENTIONED_KEYS else ""
    return f"keys: {', '.join(names)}{more}" if names else "no keys"


def _names(formats: Sequence[Format]) -> str:
    return ", ".join(known.name for known in formats)
