"""VideoChat2 records against drafts written by hand."""

import pytest
from video_drafts import asked, candidates, clip, convert

from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.video.videochat2 import FORMAT


def text(content):
    return Part("text", text=content)


def pair(question, answer, **rest):
    return {"q": question, "a": answer, **rest}


def record(*pairs, **rest):
    return {"video": "a.mp4", "QA": list(pairs), **rest}


def test_a_conversation_with_an_instruction():
    source = record(pair("What?", "A pot.", i="Be brief."), pair("And then?", "It boils.", id=4), start=1, end=5.5)
    source["source"] = "x"
    assert convert(FORMAT, source) == Draft(
        messages=(
            Message("system", (text("Be brief."),)),
            Message("user", (Part("video", media=0), text("What?"))),
            Message("assistant", (text("A pot."),)),
            Message("user", (text("And then?"),)),
            Message("assistant", (text("It boils."),)),
        ),
        media=(clip("a.mp4", 1.0, 5.5),),
        meta={"source": "x", "QA": {"1": {"id": 4}}},
    )


def test_captions_are_records_of_their_own():
    source = record(pair("", "One."), pair(" ", "Two."), pair(None, "Three.", i="Say it briefly."))
    drafts = candidates(FORMAT, source)
    prompts = ("Describe the video.", "Describe the video.", "Say it briefly.")
    meta = {"QA": {"2": {"i": "Say it briefly."}}}
    assert drafts == [
        asked(clip("a.mp4"), prompt, answer, meta=meta)
        for prompt, answer in zip(prompts, ("One.", "Two.", "Three."), strict=True)
    ]


def test_one_instruction_for_all_captions():
    drafts = candidates(FORMAT, record(pair("", "One.", i="Go."), pair("", "Two.", i="Go.")))
    assert [draft.messages[0].content[1].text for draft in drafts] == ["Go.", "Go."]
    assert drafts[0].meta == {}


def test_a_bad_caption_does_not_lose_the_others():
    found = candidates(FORMAT, record(pair("", 3), pair("", "Two."), {"q": ""}, pair("", "x", i=7)))
    reasons = [getattr(candidate, "reason", "fine") for candidate in found]
    assert reasons == ["bad_schema", "fine", "bad_schema", "bad_schema"]


def test_a_first_question_that_is_empty_is_asked_by_the_instruction():
    draft = convert(FORMAT, record(pair("", "A pot.", i="Look."), pair("Why?", "So.")))
    assert [message.role for message in draft.messages] == ["user", "assistant", "user", "assistant"]
    assert draft.messages[0].content == (Part("video", media=0), text("Look."))


def test_an_empty_question_later_goes_on_with_the_answer():
    draft = convert(FORMAT, record(pair("Why?", "So."), pair("", "And so.")))
    assert [message.role for message in draft.messages] == ["user", "assistant", "assistant"]


def test_other_instructions_are_kept():
    draft = convert(FORMAT, record(pair("Why?", "So.", i="One."), pair("How?", "Thus.", i="Two.")))
    assert draft.meta == {"QA": {"1": {"i": "Two."}}}


def test_an_image():
    draft = convert(FORMAT, {"image": "a.jpg", "QA": [pair("", "A cat.")]})
    assert draft.media == (MediaReference("image", "a.jpg"),)
    assert draft.messages[0].content == (Part("image", media=0), text("Describe the image."))


def test_time_tokens_stay_text_and_are_noticed():
    draft = convert(FORMAT, record(pair("When?", "<time_token_3> - <time_token_9>"), source="d"))
    assert draft.messages[1].content == (text("<time_token_3> - <time_token_9>"),)
    assert draft.repairs == ("relative_times_in_text",)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (record(), "bad_schema"),
        ({"video": "a.mp4", "QA": None}, "bad_schema"),
        ({"video": "a.mp4"}, "bad_schema"),
        (record("What?"), "bad_schema"),
        (record(pair("What?", "x"), image="a.jpg"), "bad_schema"),
        (record(pair("What?", "x"), video=None), "bad_schema"),
        (record(pair("What?", "x"), start=5, end=5), "bad_schema"),
        (record(pair("What?", "x", i=3)), "bad_schema"),
        (record(pair(3, "x")), "bad_schema"),
        (record({"q": "What?"}), "bad_schema"),
        (record(pair("What?", None)), "empty_answer"),
        (record(pair("", "")), "empty_answer"),
    ],
)
def test_bad_records(source, reason):
    with pytest.raises(RecordError, match=reason):
        convert(FORMAT, source)


def test_what_is_recognised():
    assert FORMAT.matches({"video": "a", "QA": []})
    assert FORMAT.matches({"image": "a", "QA": []})
    assert not FORMAT.matches({"key": "a", "qa": []})
    assert not FORMAT.matches({"QA": []})
