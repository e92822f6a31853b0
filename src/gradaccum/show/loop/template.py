"""Fill a template: the few lines that let a text be written once and read as if by hand."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def fill(template: str, fragments: Mapping[str, str]) -> str:
    """The template with every `{name}` replaced by its fragment. Fragments may hold names themselves.

    A line that is only `{name}` takes the fragment's lines at its own indentation, and goes away where the fragment
    is empty.
    """
    lines: list[str] = []
    for line in template.split("\n"):
        if "{" in line:
            lines += _filled(line, fragments)
        else:
            lines.append(line)
    return "\n".join(lines)


def _filled(line: str, fragments: Mapping[str, str]) -> list[str]:
    """What becomes of one line."""
    start, *rest = line.split("{")
    if len(rest) == 1 and rest[0][-1:] == "}" and not start.strip():
        fragment = fragments.get(rest[0][:-1])
        if fragment is not None:
            lines = fill(fragment, fragments).split("\n") if fragment else []
            return [start + each if each else each for each in lines]
    for piece in rest:
        name, brace, after = piece.partition("}")
        fragment = fragments.get(name) if brace else None
        start += "{" + piece if fragment is None else fill(fragment, fragments) + after
    return [start]


def join_lines(*lines: str) -> str:
    """The lines that are not empty, one below the other."""
    return "\n".join([line for line in lines if line])
