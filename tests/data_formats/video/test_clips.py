"""Names, seconds and answers by number, as video data sets write them."""

import pytest

from aria_finetune.data_formats.building import media_bytes
from aria_finetune.data_formats.errors import RecordError
from aria_finetune.data_formats.format import PLAIN, Context, Settings
from aria_finetune.data_formats.record import MediaReference
from aria_finetune.data_formats.video import clips


class TestNames:
    def test_without_an_ending_all_of_them_are_tried_in_three_folders(self):
        found = clips.clip("a1")
        assert found.reference == "a1.mp4"
        assert found.alternatives[:4] == ("videos/a1.mp4", "video/a1.mp4", "a1.webm", "videos/a1.webm")
        assert {f"a1{ending}" for ending in (".mkv", ".avi", ".mov")} <= set(found.alternatives)
        assert found.alternatives[-3:] == ("a1", "videos/a1", "video/a1")

    @pytest.mark.parametrize("name", ["a.mp4", "b/a.AVI", "a.gif", "x.y.webm"])
    def test_with_an_ending_only_the_folders(self, name):
        assert clips.clip(name) == MediaReference("video", name, alternatives=(f"videos/{name}", f"video/{name}"))

    def test_what_looks_like_an_ending_may_be_part_of_an_id(self):
        assert clips.clip("abc_60.0_210.0").reference == "abc_60.0_210.0.mp4"

    @pytest.mark.parametrize("name", ["https://x.org/a", "/data/a", "data:video/mp4;base64,AA", "s3://b/a.mp4"])
    def test_a_name_of_another_place_is_left_alone(self, name):
        assert clips.clip(name) == MediaReference("video", name)

    def test_several_names_are_tried_in_turn(self):
        found = clips.clip("9/a.mp4", "a.mp4", start=1.0, end=2.0)
        assert (found.reference, found.start, found.end) == ("9/a.mp4", 1.0, 2.0)
        assert found.alternatives[2:4] == ("a.mp4", "videos/a.mp4")

    @pytest.mark.parametrize(
        ("value", "name", "content"),
        [
            ("a.mp4", "a.mp4", None),
            ({"path": "a.mp4"}, "a.mp4", None),
            ({"path": "a.mp4", "bytes": None}, "a.mp4", None),
            ({"path": "a.mp4", "bytes": b"1"}, "a.mp4", b"1"),
            ({"path": None, "bytes": b"1"}, "video", b"1"),
            (b"1", "video", b"1"),
        ],
    )
    def test_a_video_by_name_or_by_its_bytes(self, value, name, content):
        found = clips.named(value, "video", start=3.0)
        assert (found.reference, found.content, found.start) == (name, content, 3.0)

    @pytest.mark.parametrize("value", [None, "", 7, [], {}, {"path": 3}, {"bytes": "text"}])
    def test_no_name(self, value):
        with pytest.raises(RecordError, match="bad_schema"):
            clips.named(value, "video")

    @pytest.mark.parametrize(("value", "name"), [("0042", "0042"), (42, "42")])
    def test_an_id_may_have_become_a_number(self, value, name):
        assert clips.identifier(value, "id") == name

    @pytest.mark.parametrize("value", ["", None, True, 1.5, []])
    def test_no_id(self, value):
        with pytest.raises(RecordError, match="bad_schema"):
            clips.identifier(value, "id")


class TestNumbers:
    @pytest.mark.parametrize(
        ("value", "number"), [(2, 2), ("2", 2), (" 2 ", 2), (2.0, 2), ("2.0", 2), (None, None), ("", None), (-1, None)]
    )
    def test_index(self, value, number):
        assert clips.index(value, "answer") == number

    @pytest.mark.parametrize("value", ["A", 1.5, True, [], "2.5", "1e3"])
    def test_no_index(self, value):
        with pytest.raises(RecordError, match="bad_schema"):
            clips.index(value, "answer")

    @pytest.mark.parametrize(("value", "time"), [(2, 2.0), (2.5, 2.5), ("2.5", 2.5), (" 3 ", 3.0), (".5", 0.5)])
    def test_seconds(self, value, time):
        assert clips.seconds(value, "start") == time

    @pytest.mark.parametrize("value", [-1, "-1", "1:00", "nan", None, True, 10**400, float("inf"), "1_0"])
    def test_no_seconds(self, value):
        with pytest.raises(RecordError, match="bad_schema"):
            clips.seconds(value, "start")

    @pytest.mark.parametrize(
        ("value", "time"), [("75:57", 4557.0), ("00:00", 0.0), ("01:02:03.5", 3723.5), ("1:2:3,25", 3723.25)]
    )
    def test_clock(self, value, time):
        assert clips.clock(value, "time") == time

    @pytest.mark.parametrize("value", ["12", "a:b", "", None, 5, "1:2:3:4", "-1:00"])
    def test_no_clock(self, value):
        with pytest.raises(RecordError, match="bad_schema"):
            clips.clock(value, "time")

    @pytest.mark.parametrize(
        ("start", "end", "found"),
        [(1, 2, (1.0, 2.0)), (None, 2, (None, 2.0)), ("1", None, (1.0, None)), (None, None, (None, None))],
    )
    def test_span(self, start, end, found):
        assert clips.span(start, end, "clip") == found

    @pytest.mark.parametrize(("start", "end"), [(2, 2), (3, 2), (None, 0), ("a", 2)])
    def test_no_span(self, start, end):
        with pytest.raises(RecordError, match="bad_schema"):
            clips.span(start, end, "clip")

    def test_options_are_text(self):
        assert clips.options(["one", "2"], "a") == ["one", "2"]
        with pytest.raises(RecordError, match=r"a\[1\] is null"):
            clips.options(["1", None], "a")


class TestMeta:
    def test_bytes_are_dropped_and_named(self):
        record = {"used": 1, "kept": {"a": b"1", "b": [b"2", 3]}, "thumbnail": b"3"}
        assert media_bytes.rest(record, ("used",)) == ({"kept": {"b": [3]}}, ("bytes_dropped",))

    def test_all_else_stays(self):
        assert media_bytes.rest({"used": b"1", "kept": [{"a": None}]}, ("used",)) == ({"kept": [{"a": None}]}, ())


class TestOpenQuestion:
    @pytest.mark.parametrize(
        ("answer", "right", "accepted", "repairs"),
        [
            ("cat", "cat", ("cat",), ()),
            (3, "3", ("3",), ("number_as_text",)),
            (["cat", "dog", "dog"], "dog", ("cat", "dog"), ()),
        ],
    )
    def test_the_answer_as_the_source_has_it(self, answer, right, accepted, repairs):
        draft = clips.open_question(clips.clip("a"), "What?", answer, meta={"id": 1})
        assert draft.messages[1].content[0].text == right
        assert (draft.references, draft.repairs, draft.meta) == (accepted, repairs, {"id": 1})

    def test_other_right_answers(self):
        draft = clips.open_question(clips.clip("a"), "What?", "cat", others=["pet", "cat"], meta={})
        assert draft.references == ("cat", "pet")

    @pytest.mark.parametrize("answer", [None, []])
    def test_without_an_answer_there_is_only_the_question(self, answer):
        draft = clips.open_question(clips.clip("a"), "What?", answer, meta={})
        assert [message.role for message in draft.messages] == ["user"]

    @pytest.mark.parametrize("answer", [True, {}, [None]])
    def test_no_answer(self, answer):
        with pytest.raises(RecordError, match="bad_schema"):
            clips.open_question(clips.clip("a"), "What?", answer, meta={})


class TestChoice:
    def test_letters_are_written_once_and_all_wordings_are_accepted(self):
        draft = clips.choice([clips.clip("a")], "Which?", ["A. one", "B. two"], 1, PLAIN, meta={"id": 1})
        assert draft.messages[0].content[1].text == "Which?\nA. one\nB. two"
        assert draft.messages[1].content[0].text == "B. two"
        assert draft.references == ("B", "two", "B. two")
        assert draft.meta == {"id": 1}

    @pytest.mark.parametrize(("answers", "text"), [("letter", "B"), ("text", "two"), ("both", "B. two")])
    def test_the_wording_is_chosen(self, answers, text):
        context = Context(settings=Settings(answers=answers))
        draft = clips.choice([clips.clip("a")], "Which?", ["one", "two"], 1, context, meta={})
        assert draft.messages[1].content[0].text == text

    def test_without_an_answer_there_is_only_the_question(self):
        draft = clips.choice([clips.clip("a")], "Which?", ["one", "two"], None, PLAIN, meta={})
        assert [message.role for message in draft.messages] == ["user"]
        assert draft.references == ()

    @pytest.mark.parametrize("right", [2, -2])
    def test_an_option_that_is_not_there(self, right):
        with pytest.raises(RecordError, match="bad_schema"):
            clips.choice([clips.clip("a")], "Which?", ["one", "two"], right, PLAIN, meta={})
