"""Samples of tar files against conversations written by hand."""

import pytest

from aria_finetune.data_formats import registry
from aria_finetune.data_formats.chat import llava, messages
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.record import Draft, MediaReference, Message, Part
from aria_finetune.data_formats.rules import checked
from aria_finetune.data_formats.tables.webdataset import FORMAT

FORMATS = (FORMAT, llava.FORMAT, messages.FORMAT)


def text(content):
    return Part("text", text=content)


def sample(**members):
    return {"__key__": "in/0001", **{name.replace("__", "."): content for name, content in members.items()}}


def converted(record):
    return [checked(draft) for draft in FORMAT.convert(record)]


def said(draft):
    user, assistant = draft.messages
    return user.content[-1].text, assistant.content[0].text


def test_a_caption():
    record = sample(jpg=b"J", txt=" A cat.\n", json={"caption": " A cat.\n", "url": "https://host"}, npy=b"N")
    assert converted(record) == [
        Draft(
            messages=(
                Message("user", (Part("image", media=0), text("Describe the image."))),
                Message("assistant", (text(" A cat.\n"),)),
            ),
            media=(MediaReference("image", "in/0001.jpg", content=b"J"),),
            references=(" A cat.\n",),
            meta={"__key__": "in/0001", "json": {"url": "https://host"}},
            repairs=("bytes_dropped",),
        )
    ]


@pytest.mark.parametrize(
    ("members", "question", "answer"),
    [
        ({"mp4": b"M", "txt": "A dog."}, "Describe the video.", "A dog."),
        ({"pdf": b"P", "txt": "A letter."}, "Write out the text of the document.", "A letter."),
        ({"jpg": b"J", "caption": "A cat."}, "Describe the image.", "A cat."),
        ({"jpg": b"J", "json": {"caption": "A cat.", "text": "x"}}, "Describe the image.", "A cat."),
        ({"jpg": b"J", "json": {"text": "A cat."}}, "Describe the image.", "A cat."),
        ({"jpg": b"J", "txt": "A cat.", "json": {"caption": "x"}, "cls": "3"}, "Describe the image.", "A cat."),
        ({"jpg": b"J", "cls": "cats"}, "What does the image show?", "cats"),
        ({"jpg": b"J", "json": {"question": "What?", "answer": "A cat."}, "txt": "x"}, "What?", "A cat."),
        ({"jpg": b"J", "json": {"question": "What?", "answers": ["a", "b", "b"]}}, "What?", "b"),
    ],
)
def test_what_is_said(members, question, answer):
    (draft,) = converted(sample(**members))
    assert said(draft) == (question, answer)


def test_what_is_not_used_is_kept():
    (draft,) = converted(sample(jpg=b"J", txt="A cat.", json={"caption": "x", "text": "A cat."}, cls="3"))
    assert draft.meta == {"__key__": "in/0001", "json": {"caption": "x"}, "cls": "3"}
    (draft,) = converted(sample(jpg=b"J", txt="A cat.", json=[1]))
    assert draft.meta == {"__key__": "in/0001", "json": [1]}


def test_each_of_several_captions():
    drafts = converted(sample(jpg=b"J", json={"caption": ["One.", "Two."], "id": 1}))
    assert [said(draft)[1] for draft in drafts] == ["One.", "Two."]
    assert drafts[1].meta == {"__key__": "in/0001", "json": {"id": 1}}


def test_several_media_are_in_the_order_of_their_numbers():
    record = sample(**{"0__jpg": b"0", "1__jpg": b"1", "10__jpg": b"10", "2__jpg": b"2"}, txt="Four.")
    assert [medium.content for medium in converted(record)[0].media] == [b"0", b"1", b"2", b"10"]


def test_media_without_numbers_are_in_the_order_of_the_file():
    record = sample(right__jpg=b"r", left__png=b"l", txt="Two.")
    (draft,) = converted(record)
    assert [medium.content for medium in draft.media] == [b"r", b"l"]
    assert [medium.reference for medium in draft.media] == ["in/0001.right.jpg", "in/0001.left.png"]


def llava_turns(ask="<image>\nWhat?", tell="A cat."):
    return {"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": tell}]}


def chat(content, **rest):
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}], **rest}


TWO = {"0__jpg": b"0", "1__jpg": b"1"}


class TestConversations:
    def test_media_that_are_not_named_take_the_placeholders(self):
        data = {**llava_turns("<image>\nWhat?<video>"), "id": "x"}
        (draft,) = converted(sample(json=data, jpg=b"J", mp4=b"M"))
        assert draft == Draft(
            messages=(
                Message("user", (Part("image", media=0), text("\nWhat?"), Part("video", media=1))),
                Message("assistant", (text("A cat."),)),
            ),
            media=(
                MediaReference("image", "in/0001.jpg", content=b"J"),
                MediaReference("video", "in/0001.mp4", content=b"M"),
            ),
            meta={"__key__": "in/0001", "id": "x"},
        )

    @pytest.mark.parametrize(
        "data", [chat("<image>What?"), chat([{"type": "image"}, {"type": "text", "text": "What?"}])]
    )
    def test_chat_messages(self, data):
        for written in (data, data["messages"]):
            (draft,) = converted(sample(json=written, jpg=b"J"))
            assert draft.messages[0].content == (Part("image", media=0), text("What?"))
            assert draft.media == (MediaReference("image", "in/0001.jpg", content=b"J"),)

    def test_without_placeholders_the_media_go_first(self):
        (draft,) = converted(sample(json=llava_turns("What?"), jpg=b"J"))
        assert draft.messages[0].content == (Part("image", media=0), text("What?"))
        assert draft.repairs == ("placeholder_added",)

    @pytest.mark.parametrize(
        ("names", "contents", "repairs"),
        [
            (["1.jpg", "0.jpg"], [b"1", b"0"], ()),
            (["in/0001.1.jpg", "0001.0.jpg"], [b"1", b"0"], ()),
            (["some/where/1.jpg", "0.jpg"], [b"1", b"0"], ()),
            (["y.jpg", "x.jpg"], [b"0", b"1"], ("media_matched_by_order",)),
            (["x.jpg", "0.jpg"], [b"0", b"1"], ("media_matched_by_order",)),
        ],
    )
    def test_named_media_are_found_in_the_sample(self, names, contents, repairs):
        data = {**llava_turns("<image><image>Same?"), "image": names}
        (draft,) = converted(sample(json=data, **TWO))
        assert [medium.content for medium in draft.media] == contents
        assert [medium.reference for medium in draft.media] == names
        assert draft.repairs == repairs

    def test_one_medium_is_found_whatever_its_name(self):
        (draft,) = converted(sample(json={**llava_turns(), "image": "coco/12.jpg"}, jpg=b"J"))
        assert draft.media == (MediaReference("image", "coco/12.jpg", content=b"J"),)
        assert draft.repairs == ()

    def test_media_named_in_parts(self):
        content = [{"type": "image", "path": "1.jpg"}, {"type": "text", "text": "What?"}]
        (draft,) = converted(sample(json=chat(content), **TWO))
        assert draft.media == (MediaReference("image", "1.jpg", content=b"1"),)
        assert draft.repairs == ("media_not_shown",)

    def test_media_elsewhere_stay_references(self):
        (draft,) = converted(sample(json={**llava_turns(), "image": "a.jpg"}))
        assert draft.media == (MediaReference("image", "a.jpg"),)

    def test_text_alone_and_packed_conversations(self):
        (draft,) = converted(sample(json=llava_turns("Hello")))
        assert draft.media == ()
        packed = [llava_turns("Hello"), {"conversations": 5}, llava_turns("Bye")]
        first, bad, last = FORMAT.convert(sample(json=packed))
        assert (said(first)[0], bad.reason, said(last)[0]) == ("Hello", "bad_schema", "Bye")
        assert last.meta == {"__key__": "in/0001"}

    @pytest.mark.parametrize(
        ("members", "reason"),
        [
            ({"json": {**llava_turns("<image><image>"), "image": ["x", "y"]}, "jpg": b"J"}, "placeholder_mismatch"),
            ({"json": {**llava_turns("<image>"), "image": ["x", "y"]}, **TWO}, "placeholder_mismatch"),
            ({"json": llava_turns("<image>"), **TWO}, "placeholder_mismatch"),
            ({"json": llava_turns("<image>")}, "placeholder_mismatch"),
            ({"json": {"conversations": [{"from": "bing"}]}, "jpg": b"J"}, "bad_roles"),
            ({"json": {"messages": None}, "jpg": b"J"}, "bad_schema"),
            ({"json": {**llava_turns(), "audio": "a.wav"}, "jpg": b"J"}, "unsupported_modality"),
            ({"json": llava_turns(tell=""), "jpg": b"J"}, "empty_answer"),
        ],
    )
    def test_bad_conversations(self, members, reason):
        with pytest.raises(RecordError) as caught:
            converted(sample(**members))
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (sample(jpg=b"J"), "bad_schema"),
        (sample(txt="A cat."), "bad_schema"),
        (sample(jpg="a.jpg", txt="A cat."), "bad_schema"),
        (sample(jpg=b"J", json={"width": 4}), "bad_schema"),
        (sample(jpg=b"J", txt=5), "bad_schema"),
        (sample(jpg=b"J", json={"caption": {"en": "a"}}), "bad_schema"),
        (sample(jpg=b"J", cls="17"), "bad_schema"),
        (sample(jpg=b"J", cls=17), "bad_schema"),
        (sample(jpg=b"J", json={"question": 5, "answer": "a"}), "bad_schema"),
        (sample(flac=b"F", txt="A song."), "unsupported_modality"),
        (sample(jpg=b"J", txt="  "), "empty_answer"),
        (sample(jpg=b"J", json={"caption": None}), "empty_answer"),
        ("0001", "bad_schema"),
    ],
)
def test_bad_samples(record, reason):
    with pytest.raises(RecordError) as caught:
        converted(record)
    assert caught.value.reason == reason


def test_a_sample_is_recognised():
    assert registry.detect([sample(jpg=b"J"), sample(json=llava_turns())], FORMATS) is FORMAT
    assert not FORMAT.matches({"jpg": b"J", "txt": "A cat."})
    assert not FORMAT.matches("__key__")
