"""What the terminal can show: colour only where somebody sees it and wants it."""

from __future__ import annotations

import os
import sys

from gradaccum.show.text import PLAIN, Style

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO


def style(no_color: bool, stream: TextIO | None = None) -> Style:
    """Colour on a terminal; NO_COLOR, TERM=dumb and --no-color turn it off, FORCE_COLOR turns it on. stream: stdout."""
    if no_color or os.environ.get("NO_COLOR"):
        return PLAIN
    if os.environ.get("FORCE_COLOR"):
        return Style(colour=True)
    return Style(colour=(stream or sys.stdout).isatty() and os.environ.get("TERM") != "dumb")


def columns(stream: TextIO | None = None) -> int:
    """The width of that terminal; 80 where there is none, as in a pipe."""
    text = os.environ.get("COLUMNS", "")
    if text.isdigit() and 0 < len(text) < 6 and int(text) > 0:
        return int(text)
    try:
        return os.get_terminal_size((stream or sys.stdout).fileno()).columns or 80
    except (OSError, ValueError):
        return 80
