"""Subtitles of every kind as cues: times, text without tags, encodings, and what is dropped."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aria_finetune.data_formats.errors import FormatError
from aria_finetune.data_formats.reading.subtitles import Cue, read

SRT = "1\n00:00:01,000 --> 00:00:02,500\nHello.\n\n2\n00:00:03,000 --> 00:00:04,000\nTwo\nlines\n"
CUES = (Cue(1.0, 2.5, "Hello."), Cue(3.0, 4.0, "Two\nlines"))
ASS = """[Script Info]
Title: x

[V4+ Styles]
Style: Default,Arial,broken

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,Two\\Nlines
Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\i1}Hello.{\\i0}
Comment: 0,0:00:05.00,0:00:06.00,Default,,0,0,0,,a note
Dialogue: 0,0:00:07.00,0:00:08.00,Default,,0,0,0,,{\\p1}m 0 0 l 10 10{\\p0}
"""


def cues(text, **options):
    return read(text.encode(), **options).cues


class TestSRT:
    def test_cues(self):
        assert read(SRT.encode()).cues == CUES
        assert read(SRT.encode()).dropped == {}

    @pytest.mark.parametrize("end", ["\r\n", "\r"])
    def test_line_ends(self, end):
        assert cues(SRT.replace("\n", end)) == CUES

    def test_without_numbers(self):
        assert cues("00:00:01,000 --> 00:00:02,500\nHello.\n\n00:00:03,000 --> 00:00:04,000\nTwo\nlines") == CUES

    def test_without_empty_lines(self):
        assert cues(SRT.replace("\n\n", "\n")) == CUES

    @pytest.mark.parametrize(
        ("timing", "start", "end"),
        [
            ("00:00:01.000 --> 00:00:02,5", 1.0, 2.5),
            ("0:0:1 --> 0:0:2", 1.0, 2.0),
            ("00:01,250-->00:02,000", 1.25, 2.0),
            ("01:00:00,000 --> 100:00:00,000  X1:10 Y1:2", 3600.0, 360000.0),
        ],
    )
    def test_times(self, timing, start, end):
        assert cues(f"1\n{timing}\nHello.") == (Cue(start, end, "Hello."),)

    @pytest.mark.parametrize("number", ["1\x1d", "\u2028 1", "\u0663", "9" * 5000])
    def test_odd_numbers(self, number):
        """What counts as white space before and behind a number is more than what `int` passes over."""
        assert cues(f"{number}\n00:01,0 --> 00:02,0\nHello.") == (Cue(1.0, 2.0, "Hello."),)

    def test_a_number_may_be_what_is_said(self):
        text = "1\n00:01,0 --> 00:02,0\nHe said\n42\n\n2\n00:03,0 --> 00:04,0\n7\n\n3\n00:05,0 --> 00:06,0\nin\n1984\n"
        assert [cue.text for cue in cues(text)] == ["He said\n42", "7", "in\n1984"]

    def test_a_number_at_the_end_of_a_cue_without_numbers(self):
        text = "00:01,0 --> 00:02,0\nHe said\n42\n00:03,0 --> 00:04,0\nYes."
        assert [cue.text for cue in cues(text)] == ["He said\n42", "Yes."]

    def test_an_empty_line_within_a_cue(self):
        text = "1\n00:01,0 --> 00:02,0\nOne\n\nmore\n\n2\n00:03,0 --> 00:04,0\nYes."
        assert [cue.text for cue in cues(text)] == ["One\nmore", "Yes."]

    def test_an_arrow_in_a_text_is_no_timing(self):
        assert cues("1\n00:01,0 --> 00:02,0\n10:00 --> noon") == (Cue(1.0, 2.0, "10:00 --> noon"),)

    @pytest.mark.parametrize(
        ("written", "said"),
        [
            ("<i>Hello</i> <b>you</b>", "Hello you"),
            ('<font color="#fff">Hello</font>', "Hello"),
            ("{\\an8}Hello", "Hello"),
            ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
            ("<laughs> a<b", "<laughs> a<b"),
            ("A &amp; B", "A &amp; B"),
            ("{x} of {y}", "{x} of {y}"),
        ],
    )
    def test_tags(self, written, said):
        assert cues(f"1\n00:01,0 --> 00:02,0\n{written}") == (Cue(1.0, 2.0, said),)

    def test_cues_without_text_or_length_are_dropped_and_counted(self):
        text = (
            "1\n00:01,0 --> 00:01,0\nHello.\n\n2\n00:05,0 --> 00:04,0\nBack.\n\n"
            "3\n00:05,0 --> 00:06,0\n\n4\n00:06,0 --> 00:07,0\n<i> </i>\n\n5\n00:07,0 --> 00:08,0\nYes.\n"
        )
        found = read(text.encode())
        assert found.cues == (Cue(7.0, 8.0, "Yes."),)
        assert found.dropped == {"zero_length": 2, "no_text": 2}

    def test_cues_come_in_the_order_of_time(self):
        text = "1\n00:05,0 --> 00:06,0\nb\n\n2\n00:01,0 --> 00:02,0\na\n"
        assert [cue.text for cue in cues(text)] == ["a", "b"]


class TestWebVTT:
    def test_header_notes_styles_settings_and_identifiers_are_no_text(self):
        text = (
            "WEBVTT - a title\nKind: captions\n\nSTYLE\n::cue { color: red }\n\nNOTE a\nlong note\n\n"
            "intro\n00:01.000 --> 00:02.500 align:start position:0%\nHello.\n\nNOTE another\n\n"
            "second one\n00:00:03.000 --> 00:00:04.000\nTwo\nlines\n\nNOTE the end\n"
        )
        assert cues(text) == CUES

    def test_a_timing_ends_the_cue_before(self):
        assert cues(f"WEBVTT\n\n{SRT.replace('2' + chr(10), '', 1).replace(chr(10) * 2, chr(10))}")[0].text == "Hello."

    @pytest.mark.parametrize(
        ("written", "said"),
        [
            ("this<00:00:01.199><c> will</c><c.colorE5E5E5><00:01.379><c> happen</c></c>", "this will happen"),
            ("<v Roger>Hi</v> <c.yellow.bg>there</c> <lang en>you</lang>", "Hi there you"),
            ("A &amp; B &lt;3&nbsp;x", "A & B <3\xa0x"),
            ("<ruby>a<rt>b</rt></ruby>", "ab"),
            (f"a &#{'9' * 5000}; b", f"a &#{'9' * 5000}; b"),
        ],
    )
    def test_tags(self, written, said):
        assert cues(f"WEBVTT\n\n00:01.000 --> 00:02.000\n{written}\n") == (Cue(1.0, 2.0, said),)

    def test_a_file_without_cues(self):
        assert cues("WEBVTT\n\nNOTE nothing\n") == ()


class TestASS:
    def test_cues_without_styles_comments_and_drawings(self):
        found = read(ASS.encode())
        assert found.cues == CUES
        assert found.dropped == {"no_text": 1}

    def test_ssa(self):
        text = ASS.replace("V4+", "V4").replace("Dialogue: 0", "Dialogue: Marked=0")
        assert cues(text) == CUES

    def test_a_broken_time(self):
        with pytest.raises(FormatError, match="broken ASS"):
            cues(ASS.replace("0:00:01.00", "soon"))


class TestEncodings:
    TEXT = SRT.replace("Hello.", "Grüße, 你好")

    @pytest.mark.parametrize("name", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
    def test_told_by_the_byte_order_mark(self, name):
        assert read(self.TEXT.encode(name)).cues[0].text == "Grüße, 你好"

    @pytest.mark.parametrize(
        ("name", "mark"), [("utf-16-be", b"\xfe\xff"), ("utf-32-be", b"\0\0\xfe\xff"), ("utf-32-le", b"\xff\xfe\0\0")]
    )
    def test_other_byte_orders(self, name, mark):
        assert read(mark + self.TEXT.encode(name)).cues[0].text == "Grüße, 你好"

    def test_a_bad_byte_is_told_with_its_place(self):
        data = SRT.encode() + b"\n3\n00:00:05,0 --> 00:00:06,0\nGr\xfc\xdfe\n"
        with pytest.raises(FormatError, match=f"byte {data.index(0xFC)} of the subtitles is not UTF-8"):
            read(data)
        assert read(data, encoding="cp1252").cues[2].text == "Grüße"

    def test_the_place_counts_the_mark(self):
        with pytest.raises(FormatError, match="byte 4 of the subtitles is not UTF-8"):
            read(b"\xef\xbb\xbfa\xff")

    def test_an_unknown_encoding(self):
        with pytest.raises(FormatError, match="there is no encoding 'latin-99'"):
            read(b"x", encoding="latin-99")

    def test_a_replacement_character_is_data(self):
        assert read(SRT.replace("Hello.", "a\ufffdb").encode()).cues[0].text == "a\ufffdb"


@pytest.mark.parametrize("text", ["", "Hello.", "{}", "[1, 2]", "<tt xmlns='http://www.w3.org/ns/ttml'/>", "1 --> 2"])
def test_no_subtitles(text):
    with pytest.raises(FormatError, match="no subtitles"):
        cues(text)


class TestRepeats:
    ROLLING = (
        "WEBVTT\n\n00:01.000 --> 00:02.000\nfirst line\n\n00:02.000 --> 00:02.010\nfirst line\n\n"
        "00:02.010 --> 00:04.000\nfirst line\nsecond line\n\n00:04.000 --> 00:04.010\nsecond line\n\n"
        "00:04.010 --> 00:06.000\nsecond line\nthird line\n"
    )

    def test_each_line_is_said_once(self):
        found = read(self.ROLLING.encode(), collapse_repeats=True)
        assert found.cues == (
            Cue(1.0, 2.01, "first line"),
            Cue(2.01, 4.01, "second line"),
            Cue(4.01, 6.0, "third line"),
        )
        assert found.dropped == {"repeats": 2}

    def test_only_if_asked_for(self):
        assert len(cues(self.ROLLING)) == 5

    def test_what_is_said_twice_with_something_between_stays(self):
        text = "WEBVTT\n\n00:01.000 --> 00:02.000\nno\n\n00:02.000 --> 00:03.000\nyes\n\n00:03.000 --> 00:04.000\nno\n"
        assert [cue.text for cue in cues(text, collapse_repeats=True)] == ["no", "yes", "no"]


PIECES = st.sampled_from(
    ["WEBVTT", "1", "2", "00:01,0 --> 00:02,0", "00:03.000 --> 00:02.000", "", "text", "<c>", "NOTE", "[Events]",
    "Dialogue: 0,0:00:01.00,0:00:02.00,D,,0,0,0,,x", "Dialogue: 0", "Dialogue: x,y,z", "<00:01.000>", "\u2028"]
)  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(lines=st.lists(PIECES | st.text(max_size=8), max_size=12), data=st.binary(max_size=30))
def test_nothing_but_a_format_error_is_raised_and_cues_are_sound(lines, data):
    for content in ("\n".join(lines).encode("utf-8", "surrogatepass"), data):
        for collapse in (False, True):
            try:
                found = read(content, collapse_repeats=collapse).cues
            except FormatError:
                continue
            assert all(cue.start < cue.end and cue.text.strip() for cue in found)
            assert [cue.start for cue in found] == sorted(cue.start for cue in found)
