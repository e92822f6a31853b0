"""Fill a template: the few lines that let a text be written once and read as if by hand."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def fill(template: str, fragments: Mapping[str, str]) -> str:
    """The template with every `{name}` replaced by its fragment. Fragments may hold names themselves.

    A line that is only `{name}` takes the fragment's lines at its own indentation, and goes away where the fragment
    is empty.
    """
    text = "\n".join([filled for line in template.split("\n") for filled in _fill_line(line, fragments)])
    before = ""
    while text != before:
        before = text
        for name, fragment in fragments.items():
            text = text.replace("{" + name + "}", fragment)
    return text


def _fill_line(line: str, fragments: Mapping[str, str]) -> Iterator[str]:
    body = line.lstrip()
    fragment = fragments.get(body[1:-1]) if body[:1] == "{" and body[-1:] == "}" else None
    if fragment is None:
        yield line
    elif fragment:
        indent = line[: len(line) - len(body)]
        for each in fragment.split("\n"):
            yield from _fill_line(indent + each if each else each, fragments)


def join_lines(*lines: str) -> str:
    """The lines that are not empty, one below the other."""
    return "\n".join([line for line in lines if line])
