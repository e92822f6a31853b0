"""A tiny element builder that always escapes: `el("p", {"class": "hint"}, "4 < 5", el("b", None, 8))`.

Text becomes markup in `el` alone; only a Markup, made by `el`, `fragment` or `raw`, goes in as it is.
Attributes are written in alphabetical order, since not every Python keeps the order of a dict.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias

    Attribute: TypeAlias = str | int | None
    Child: TypeAlias = "Markup | str | int | Sequence[Child] | None"

VOID = {"br", "hr", "input", "link", "meta"}
"""HTML elements that hold nothing and have no end tag. SVG has none of them."""


class Markup:
    """Text that is markup already. `str(markup)` is that text."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


EMPTY = Markup("")


def escape(text: str) -> str:
    """`text` as it may stand between tags and in a double-quoted attribute."""
    if "&" in text:  # five looks are faster than one pattern, and much faster under MicroPython
        text = text.replace("&", "&amp;")
    if "<" in text:
        text = text.replace("<", "&lt;")
    if ">" in text:
        text = text.replace(">", "&gt;")
    if '"' in text:
        text = text.replace('"', "&quot;")
    if "'" in text:
        text = text.replace("'", "&#39;")
    return text


def el(tag: str, attributes: Mapping[str, Attribute] | None = None, *children: Child) -> Markup:
    """An element. An attribute that is None or False is left out; True stands alone, as `checked` does.

    Raises TypeError for what is neither text, integer nor markup: a float would print other digits elsewhere.
    """
    written = "".join([attribute(name, attributes[name]) for name in sorted(attributes)]) if attributes else ""
    if tag in VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{content(children)}</{tag}>")


def fragment(*children: Child) -> Markup:
    """Several children without an element around them."""
    return Markup(content(children))


def raw(text: str) -> Markup:
    """`text` as markup, unescaped: for constants of this package, never for what a person wrote."""
    return Markup(text)


def attribute(name: str, value: Attribute) -> str:
    """One attribute as `el` writes it, with the space before it."""
    if value is None or value is False:
        return ""
    return " " + name if value is True else f' {name}="{_text(value)}"'


def content(child: Child) -> str:
    """A child as `el` writes it: text escaped, markup as it is, several one after the other, None as nothing."""
    if isinstance(child, Markup):
        return child.text
    if isinstance(child, str):
        return escape(child)
    if isinstance(child, (list, tuple)):
        return "".join([content(each) for each in child])
    return "" if child is None else _text(child)


def _text(value: object) -> str:
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"only text, integers and markup are shown, not {value!r}")


def outward(address: str, label: Child) -> Markup:
    """A link to another site. It opens beside the page, whose inputs stay; in a frame it could not be shown anyway."""
    return el("a", {"href": address, "rel": "noreferrer", "target": "_blank"}, label)


def linked(text: str) -> Markup:
    """`text` with its https addresses and arXiv numbers as links, for sources."""
    parts: list[Child] = []
    for word in text.split(" "):
        plain = word.rstrip(".,;)")
        rest = word[len(plain) :]
        address = plain if plain.startswith("https://") else ""
        if plain.startswith("arXiv:"):
            address = "https://arxiv.org/abs/" + plain[6:]
        shown: Child = plain
        if address:
            label = plain[8:] if plain.startswith("https://") else plain
            shown = outward(address, label)
        parts.append([" " if parts else None, shown, rest])
    return fragment(parts)
