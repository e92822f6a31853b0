"""Rendered HTML as a tree, read by the standard library's parser, and strictly: a tag out of place is an error."""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

VOID = {"br", "hr", "input", "link", "meta"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.builder = ElementTree.TreeBuilder()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self.builder.end(tag)
        else:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.builder.end(self.open.pop())

    def handle_data(self, data: str) -> None:
        self.builder.data(data)


def parse(text: str) -> Element:
    """The tree of a piece of HTML, under one root."""
    reader = _Reader()
    reader.builder.start("root", {})
    reader.feed(text)
    reader.close()
    assert not reader.open, f"not closed: {reader.open}"
    reader.builder.end("root")
    return reader.builder.close()


def words(element: Element) -> str:
    """All text under an element, blanks collapsed."""
    return " ".join("".join(element.itertext()).split())


def having(root: Element, name: str, tag: str | None = None) -> list[Element]:
    """The elements of a class."""
    return [each for each in root.iter(tag) if name in each.get("class", "").split()]


def the(root: Element, name: str, tag: str | None = None) -> Element:
    """The only element of a class."""
    (found,) = having(root, name, tag)
    return found
