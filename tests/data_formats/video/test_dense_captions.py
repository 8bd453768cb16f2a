"""ActivityNet Captions against conversations written by hand."""

import pytest
from format_checks import broken, check_robust, drafts, reasons
from hypothesis import given, settings

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.record import Draft, Message, Part
from aria_finetune.data_formats.video import clips
from aria_finetune.data_formats.video.dense_captions import FORMAT, PROMPT

VIDEO = {
    "duration": 130.0,
    "timestamps": [[61.9, 130], [0.4, 12.9]],
    "sentences": ["  A dog runs\n off. ", "A man waters the garden."],
}


def test_scenes_are_told_in_the_order_in_which_they_begin():
    told = "[00:00 - 00:12] A man waters the garden.\n[01:01 - 02:10] A dog runs off."
    assert drafts(FORMAT, {"v_a": VIDEO}) == [
        Draft(
            messages=(
                Message("user", (Part("video", media=0), Part("text", text=PROMPT))),
                Message("assistant", (Part("text", text=told),)),
            ),
            media=(clips.clip("v_a"),),
            references=(told,),
            meta={
                "duration": 130.0,
                "video_id": "v_a",
                "windows": [[0.4, 12.9], [61.9, 130.0]],
                "windows_unit": "seconds",
                "sentences": ["A man waters the garden.", "A dog runs off."],
            },
        )
    ]


def test_a_row_of_its_own_means_the_same():
    assert drafts(FORMAT, VIDEO | {"video_id": "v_a"}) == drafts(FORMAT, {"v_a": VIDEO})


def test_times_the_wrong_way_round_are_swapped_and_told():
    (draft,) = drafts(FORMAT, {"v_a": {"timestamps": [[9, 3]], "sentences": ["A dog."]}})
    assert draft.references == ("[00:03 - 00:09] A dog.",)
    assert draft.repairs == ("times_swapped",)


@pytest.mark.parametrize(
    "changes",
    [
        {"timestamps": []},
        {"timestamps": [[0, 1]]},
        {"timestamps": [[0, 1, 2], [0, 1]]},
        {"timestamps": [[0, -1], [0, 1]]},
        {"timestamps": [[0, None], [0, 1]]},
        {"timestamps": "all"},
        {"sentences": ["a", " "]},
        {"sentences": ["a", 3]},
    ],
)
def test_a_bad_video_leaves_its_neighbour_alone(changes):
    assert reasons(FORMAT, {"v_a": VIDEO | changes, "v_b": VIDEO, "v_c": "broken"}) == [
        "bad_schema",
        None,
        "bad_schema",
    ]


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"v_a": VIDEO}, True),
        (VIDEO | {"video_id": "v_a"}, True),
        (VIDEO, False),
        ({"v_a": VIDEO, "info": {}}, False),
        ({}, False),
        ({"v_a": {"sentences": []}}, False),
        ([], False),
    ],
)
def test_detection(record, found):
    assert FORMAT.matches(record) is found
    assert not found or registry.detect([record]) is FORMAT


@settings(max_examples=50, deadline=None, derandomize=True)
@given(record=broken(FORMAT.example))
def test_nothing_but_record_errors(record):
    check_robust(FORMAT, record)
