"""Markup that what it shows can't break."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from aria_finetune.viewing.markup import Html, element, escaped, joined, text
from aria_finetune.viewing.pieces import visible


def test_text_is_never_markup() -> None:
    hostile = "<script>alert('x')</script> & \"quoted\""
    assert element("p", hostile) == "<p>&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;quoted&quot;</p>"
    assert element("a", title='"><script>') == '<a title="&quot;&gt;&lt;script&gt;"></a>'


def test_markup_nests_and_names_are_as_html_has_them() -> None:
    made = element("p", "a", element("br"), None, Html("&#8629;"), class_="x", aria_label="y", id=None, width=3)
    assert made == '<p class="x" aria-label="y" width="3">a<br/>&#8629;</p>'
    assert joined("<", None, element("i", "&")) == "&lt;<i>&amp;</i>"
    assert element("meta", name="viewport") == '<meta name="viewport"/>'


def test_secrets_go_from_text_and_attributes() -> None:
    address = "https://user:correct-horse@example.org/"
    assert text(address) == "https://***@example.org/"
    assert element("img", alt=address, src=Html("data:,a")) == '<img alt="https://***@example.org/" src="data:,a"/>'
    assert escaped(address) == address


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_whatever_is_shown_a_strict_parser_reads_it_back(shown: str, title: str) -> None:
    parsed = ET.fromstring(element("p", escaped(shown), title=escaped(title)))  # noqa: S314 (made here)
    assert (parsed.text or "") == visible(shown)
    assert list(parsed) == []
    assert parsed.attrib["title"] == visible(title).replace("\n", " ").replace("\t", " ")
