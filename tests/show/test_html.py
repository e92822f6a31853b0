"""The element builder, against the standard library's parser and its own escaping."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradaccum.show.html import EMPTY, Markup, el, escape, fragment, linked, raw
from tests.show.markup import parse, words

HOSTILE = ["<script>alert(1)</script>", "\"' onload=x", "&lt;", "]]>", "<!--", "\x00", "a\u2028b", "</p>"]


@given(st.text())
def test_escaping_is_the_standard_librarys(text):
    assert escape(text) == html.escape(text).replace("&#x27;", "&#39;")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text):
    (element,) = parse(str(el("p", {"title": text}, text)))
    assert list(element) == []
    assert element.attrib == {"title": text}
    assert element.text == text


@given(st.text(st.characters(blacklist_characters="\r\x00", blacklist_categories=["Cs"])), st.integers())
def test_what_goes_in_is_read_out_again(text, number):
    (element,) = parse(str(el("p", {"class": text, "width": number}, text, [el("b", None, number), (text,)])))
    assert element.attrib == {"class": text, "width": str(number)}
    assert "".join(element.itertext()) == f"{text}{number}{text}"


def test_attributes_are_written_in_alphabetical_order_and_left_out_when_there_is_nothing_to_say():
    attributes = {"title": "x", "checked": True, "hidden": False, "alt": "", "value": None, "cols": 0}
    assert str(el("p", attributes)) == '<p alt="" checked cols="0" title="x"></p>'


def test_void_elements_have_no_end_tag():
    assert str(el("input", {"name": "a"})) == '<input name="a">'


def test_a_fragment_joins_and_skips_what_is_not_there():
    assert str(fragment("a<", None, [el("b", None, 1), EMPTY], ())) == "a&lt;<b>1</b>"


def test_markup_alone_goes_in_unescaped():
    assert str(el("p", None, raw("<i>"), Markup("</i>"))) == "<p><i></i></p>"


@pytest.mark.parametrize("value", [1.5, True, b"x", {"a": 1}])
def test_a_float_is_refused_because_its_digits_differ_between_pythons(value):
    with pytest.raises(TypeError, match="only text, integers and markup"):
        el("p", None, value)


def test_a_float_is_refused_as_an_attribute():
    with pytest.raises(TypeError, match=r"not 0\.5"):
        el("p", {"width": 0.5})


@pytest.mark.parametrize(
    ("source", "address", "label"),
    [
        ("Goyal et al. 2017, arXiv:1706.02677, section 2", "https://arxiv.org/abs/1706.02677", "arXiv:1706.02677"),
        ("see https://example.org/a?b=1&c=2.", "https://example.org/a?b=1&c=2", "example.org/a?b=1&c=2"),
    ],
)
def test_sources_become_links(source, address, label):
    root = parse(str(linked(source)))
    (link,) = root.iter("a")
    assert (link.get("href"), link.text, link.get("rel")) == (address, label, "noreferrer")
    assert words(root) == source.replace("https://", "")


def test_only_https_addresses_become_links():
    assert not list(parse(str(linked("javascript:alert(1) http://example.org <a href=x>"))).iter("a"))
