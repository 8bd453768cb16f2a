"""Images as data sets of questions and captions name them: by a file, its stem or a COCO number.

Where a record leaves out the folder or the ending of a name, the usual ones are given as alternatives.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from aria_finetune.data_formats.building import fields
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import MediaReference

FILE_ENDING = re.compile(r"\.(?:jpe?g|png|webp|gif|bmp|tiff?)", re.IGNORECASE)
_STEM_ENDINGS = (".jpg", ".png", ".jpeg")
_COCO_NAME = re.compile(r"COCO_((?:train|val|test)20\d\d)_\d{12}")
_COCO_SPLIT = re.compile(r"(train|val|test)(?:-dev)?(2014|2015|2017)")
# COCO numbers its images once for all splits, so a number never finds another picture than the one meant.
_COCO_SPLITS = ("val2014", "train2014", "test2015", "test2014")
_COCO_2017 = ("", "images/", "train2017/", "val2017/", "test2017/")
_LARGEST_NUMBER = 10**12


def has_ending(name: str) -> bool:
    """Whether a name ends as image files do."""
    return FILE_ENDING.fullmatch(PurePosixPath(name).suffix) is not None


def named(name: str, *folders: str) -> MediaReference:
    """The image `name`, looked for in `folders`, each with its `/`, as well, and in the folder of its COCO split.

    A name without an ending is looked for with the usual ones. A URL or a path from the root is only what it is.

    Raises:
        RecordError: `bad_schema`, the name is empty.
    """
    if not name:
        raise RecordError("bad_schema", "the name of the image is empty")
    if name.startswith(("/", "data:")) or "://" in name:
        return MediaReference("image", name)
    base = PurePosixPath(name).name
    split = _COCO_NAME.match(base)
    endings = ("",) if has_ending(name) else ("", *_STEM_ENDINGS)
    places = [f"{folder}{name}{ending}" for folder in ("", "images/", *folders) for ending in endings]
    if split:
        # No two COCO images have the same name, whatever folder they are in; other images may.
        in_split = (f"{split[1]}/", f"images/{split[1]}/", "", "images/")
        places += [f"{folder}{base}{ending}" for folder in in_split for ending in endings]
    return _first_of(places)


def coco(number: int, *hints: str) -> MediaReference:
    """The COCO image of a number; the first of `hints` with a split in it, as a file's name, tells where to look first.

    Raises:
        RecordError: `bad_schema`, COCO can't have the number.
    """
    if not 0 <= number < _LARGEST_NUMBER:
        raise RecordError("bad_schema", "the number of the image is none that COCO can have")
    found = next((match for match in map(_COCO_SPLIT.search, hints) if match), None)
    hinted = f"{found[1]}{found[2]}" if found else _COCO_SPLITS[0]
    # The images of 2017 are those of 2014 without the split in their names.
    new = [f"{folder}{number:012d}.jpg" for folder in (f"{hinted}/", *_COCO_2017)]
    old = [place for split in (hinted, *_COCO_SPLITS) for place in _coco_places(split, number)]
    own = [f"{folder}{number}{ending}" for folder in ("", "images/") for ending in _STEM_ENDINGS]
    return _first_of([*new, *old, *own] if hinted.endswith("2017") else [*old, *new, *own])


def of_id(value: object, where: str, *folders: str, hints: tuple[str, ...] = ()) -> MediaReference:
    """The image of an `image_id`: a COCO number, a file name or its stem.

    Raises:
        RecordError: `bad_schema`.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return coco(value, *hints)
    return named(fields.text(value, where), *folders)


def _coco_places(split: str, number: int) -> list[str]:
    name = f"COCO_{split}_{number:012d}.jpg"
    return [f"{folder}{name}" for folder in ("", f"{split}/", f"images/{split}/", "images/")]


def _first_of(places: list[str]) -> MediaReference:
    first, *others = dict.fromkeys(places)
    return MediaReference("image", first, alternatives=tuple(others))
