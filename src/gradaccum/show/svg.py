"""What the pictures share: inline SVG from integers, readable without colour, without a stylesheet and by ear.

Each shape has a class, which the page's stylesheet colours, and a plain look in the text's own colour for where no
stylesheet reaches it, as in a notebook that strips them.
"""

from __future__ import annotations

from gradaccum.show.html import el

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.show.html import Child, Markup

PLAIN_LOOK = {
    "forward": "0.2",
    "backward": "0.45",
    "sum": "0.9",
    "sync": "0.3",
    "optimizer": "0.75",
    "point": "0.6",
    "more": "0.6",
}
"""Class of a filled shape -> its opacity where no stylesheet says otherwise."""


def picture(title: str, description: str, width: int, height: int, *children: Child) -> Markup:
    """The `svg` element: `width` units wide, shrinking with its container. title, description: what is read out."""
    return el(
        "svg",
        {
            "class": "ga-svg",
            "font-size": 12,
            "height": height,
            "role": "img",
            "viewBox": f"0 0 {width} {height}",
            "width": width,
            "xmlns": "http://www.w3.org/2000/svg",
        },
        el("title", None, title),
        el("desc", None, description),
        *children,
    )


def box(x: int, y: int, width: int, height: int) -> str:
    """One rectangle as a piece of path data: many of a kind make one element."""
    return f"M{x} {y}h{width}v{height}h-{width}z"


def dot(x: int, y: int, radius: int) -> str:
    """One disc as a piece of path data."""
    return f"M{x - radius} {y}a{radius} {radius} 0 1 0 {2 * radius} 0a{radius} {radius} 0 1 0-{2 * radius} 0z"


def filled(kind: str, shapes: list[str]) -> Markup | None:
    """All boxes or dots of one kind, a key of PLAIN_LOOK; None where there are none."""
    if not shapes:
        return None
    return el(
        "path",
        {"class": "ga-" + kind, "d": "".join(shapes), "fill": "currentColor", "fill-opacity": PLAIN_LOOK[kind]},
    )


def line(kind: str, path: str, dashed: bool = False) -> Markup:
    """A thin line along `path`."""
    return el(
        "path",
        {
            "class": "ga-" + kind,
            "d": path,
            "fill": "none",
            "stroke": "currentColor",
            "stroke-dasharray": "3 3" if dashed else None,
            "stroke-opacity": "0.5",
        },
    )


def text(x: int, y: int, content: str, anchor: str = "start", kind: str = "text", turned: bool = False) -> Markup:
    """A line of text. anchor: start, middle or end; kind: "text", or "strong"; turned: reads upwards."""
    return el(
        "text",
        {
            "class": "ga-" + kind,
            "fill": "currentColor",
            "font-weight": "600" if kind == "strong" else None,
            "text-anchor": None if anchor == "start" else anchor,
            "transform": f"rotate(-90 {x} {y})" if turned else None,
            "x": x,
            "y": y,
        },
        content,
    )
