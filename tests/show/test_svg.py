"""The pieces that pictures are made of."""

from __future__ import annotations

from xml.etree import ElementTree

from gradaccum.show.svg import PLAIN_LOOK, box, dot, filled, line, picture, text
from tests.show.drawing import Box, boxes, dots, read


def test_a_picture_is_named_described_and_in_proportion():
    root = read(picture("Name <b>", "What & why", 300, 100))
    assert (root[0].text, root[1].text) == ("Name <b>", "What & why")
    assert (root.get("viewBox"), root.get("width"), root.get("height")) == ("0 0 300 100", "300", "100")


def test_boxes_and_dots_are_drawn_where_they_are_said_to_be():
    shapes = [filled("forward", [box(1, 2, 30, 4), box(5, 6, 7, 8)]), filled("point", [dot(50, 40, 3)])]
    root = read(picture("a", "b", 90, 90, shapes))
    assert boxes(root, "forward") == [Box(1, 2, 30, 4), Box(5, 6, 7, 8)]
    assert dots(root, "point") == [(50, 40)]


def test_nothing_to_fill_is_no_element():
    assert filled("sync", []) is None


def test_without_a_stylesheet_every_kind_still_differs_in_the_texts_own_colour():
    shapes = {kind: ElementTree.fromstring(str(filled(kind, [box(0, 0, 1, 1)]))) for kind in PLAIN_LOOK}
    assert {each.get("fill") for each in shapes.values()} == {"currentColor"}
    in_one_picture = [shapes[kind].get("fill-opacity") for kind in ("forward", "backward", "sum", "sync", "optimizer")]
    assert len(set(in_one_picture)) == 5


def test_lines_and_texts():
    dashed = ElementTree.fromstring(str(line("target", "M0 0H9", dashed=True)))
    assert (dashed.get("stroke-dasharray"), dashed.get("fill")) == ("3 3", "none")
    turned = ElementTree.fromstring(str(text(5, 6, "<up>", anchor="middle", kind="strong", turned=True)))
    assert (turned.text, turned.get("transform"), turned.get("text-anchor")) == ("<up>", "rotate(-90 5 6)", "middle")
    assert ElementTree.fromstring(str(text(5, 6, "x"))).get("text-anchor") is None
