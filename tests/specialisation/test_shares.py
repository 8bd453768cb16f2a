"""R_v, R_t and their ratio on counts small enough to work out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aria_finetune.specialisation.shares import DOMAINS, ratios, shared_by_all, shares, table, visual_experts

LOAD = np.array(
    [
        # One layer of four experts: text, images, video frames, pages.
        [[60, 20, 20, 0], [10, 70, 0, 20], [0, 50, 0, 50], [0, 0, 0, 0]],
    ]
)


def test_shares_are_of_all_choices_by_tokens_of_a_domain() -> None:
    found = shares(LOAD)
    assert found[0, 0].tolist() == [0.6, 0.2, 0.2, 0.0]
    assert found[0, 1].tolist() == [0.1, 0.7, 0.0, 0.2]
    assert np.isnan(found[0, 3]).all(), "there are no pages"


def test_ratios_without_text_or_without_either() -> None:
    image, video, page = ratios(LOAD)[0]
    assert image[:2] == pytest.approx([1 / 6, 3.5])
    assert image[2] == 0, "no visual token, some text"
    assert math.isinf(image[3]), "visual tokens and no text"
    assert video.tolist() == [0, 2.5, 0, math.inf]
    assert np.isnan(page).all()
    neither = np.array([[[5, 0], [5, 0], [5, 0], [5, 0]]])
    assert np.isnan(ratios(neither)[0, 0, 1]), "neither visual nor text tokens"


def test_without_text_nothing_has_a_ratio() -> None:
    load = LOAD.copy()
    load[:, 0] = 0
    assert np.isnan(ratios(load)).all()
    assert visual_experts(load, 1.0)["image"] == [[]]


def test_visual_experts_have_the_ratio_and_choices_enough() -> None:
    found = visual_experts(LOAD, 3.0)
    assert found == {"image": [[1, 3]], "video": [[3]]}, "pages, of which there are none, are left out"
    assert shared_by_all(found) == [[3]]
    # An infinite ratio of an eighth of the even share: 1 of 32 choices among 4 experts.
    few = np.array([[[16, 16, 0, 0], [16, 15, 1, 0], [0] * 4, [0] * 4]])
    assert visual_experts(few, 3.0) == {"image": [[]]}
    assert shared_by_all({}) == []


def test_the_table_has_a_line_for_every_layer_domain_and_expert() -> None:
    two = np.concatenate([LOAD, LOAD[:, :, ::-1]])
    made = table(two)
    assert all(len(column) == 2 * len(DOMAINS) * 4 for column in made.values())
    lines = [dict(zip(made, line, strict=True)) for line in zip(*made.values(), strict=True)]
    (line,) = [one for one in lines if (one["layer"], one["domain"], one["expert"]) == (1, "image", 2)]
    assert (line["choices"], line["share"], line["ratio"]) == (70, 0.7, pytest.approx(3.5))
    assert all(math.isnan(one["ratio"]) for one in lines if one["domain"] == "text")
