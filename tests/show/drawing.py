"""What a drawn SVG holds, read by an XML parser: an independent look at pictures."""

from __future__ import annotations

import re
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

SPACE = "{http://www.w3.org/2000/svg}"


class Box(NamedTuple):
    x: int
    y: int
    width: int
    height: int


def read(svg: object) -> Element:
    """The picture as XML: well-formed, named and described, in integers throughout."""
    root = ElementTree.fromstring(str(svg))
    assert root.tag == SPACE + "svg"
    assert root.get("role") == "img"
    assert [each.tag for each in root[:2]] == [SPACE + "title", SPACE + "desc"]
    assert all(each.text for each in root[:2])
    for element in root.iter():
        for name in ("x", "y", "cx", "cy", "r", "d", "width", "height", "viewBox"):
            assert "." not in element.get(name, ""), (element.tag, name)
    return root


def description(root: Element) -> str:
    return root[1].text or ""


def boxes(root: Element, kind: str) -> list[Box]:
    """The rectangles of one kind, row by row; the legend's swatches, which are square, are left out."""
    paths = [each.get("d", "") for each in root.iter(SPACE + "path") if each.get("class") == "ga-" + kind]
    numbers = [re.findall(r"M(-?\d+) (-?\d+)h(\d+)v(\d+)h-\d+z", path) for path in paths]
    found = [Box(*map(int, each)) for path in numbers for each in path]
    return sorted((box for box in found if box.width != box.height), key=lambda box: (box.y, box.x))


def dots(root: Element, kind: str) -> list[tuple[int, int]]:
    """The centres of the discs of one kind, from left to right."""
    paths = [each.get("d", "") for each in root.iter(SPACE + "path") if each.get("class") == "ga-" + kind]
    found = [re.findall(r"M(-?\d+) (-?\d+)a(\d+) ", path) for path in paths]
    return sorted((int(x) + int(radius), int(y)) for path in found for x, y, radius in path)


def texts(root: Element) -> list[str]:
    return [each.text or "" for each in root.iter(SPACE + "text")]


def inside(root: Element) -> bool:
    """Whether every box and the start of every text lie within the picture."""
    _, _, width, height = map(int, root.get("viewBox", "").split())
    shapes = [box for kind in ("forward", "backward", "sum", "sync", "optimizer") for box in boxes(root, kind)]
    starts = [(int(each.get("x", "")), int(each.get("y", ""))) for each in root.iter(SPACE + "text")]
    ends = [(box.x + box.width, box.y + box.height) for box in shapes] + [(box.x, box.y) for box in shapes]
    return all(0 <= x <= width and 0 <= y <= height for x, y in starts + ends)
