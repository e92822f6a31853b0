"""What the browser runs stays inside the part of Python that MicroPython has, as `gradaccum site build` checks too."""

from __future__ import annotations

import ast

import pytest

from gradaccum.web.site.build import portable_files
from gradaccum.web.site.portable import complaints
from tests.structure.source import PACKAGE, modules

ROOMS = {"errors", "units", "core", "catalog", "show"}


def test_the_portable_rooms_are_portable():
    checked = {path for path in portable_files() if path.endswith(".py")}
    checked |= {str(module.path.relative_to(PACKAGE)) for module in modules().values() if module.room in ROOMS}
    found = [line for path in sorted(checked) for line in complaints(ast.parse((PACKAGE / path).read_text()), path)]
    assert not found, "\n".join(found)


# From here on: the check can fail, and it leaves alone what is fine.


def planted(text: str) -> list[str]:
    return complaints(ast.parse(text), "core/planted.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import inspect", "imports inspect"),
        ("from typing import Any", "imports typing"),
        ("from decimal import Decimal", "imports decimal"),
        ("import collections.abc", "imports collections.abc"),
        ("from functools import cached_property", "functools.cached_property is missing"),
        ("math.gcd(4, 6)", "math.gcd is missing"),
        ("f'{x:.2f}'", "formats a float (:.2f)"),
        ("f'{x:,.1%}'", "formats a float"),
        ("'%.2f' % x", "formats a float"),
        ("round(x, 2)", "round(x, n)"),
        ("match x:\n        case 1: pass", "match statement"),
        ("def f(a, /): pass", "positional-only"),
        ("'ab'[::-1]", "slice with a step"),
        ("Rows = tuple[int, ...]", "tuple[...] outside an annotation"),
        ("isinstance(x, int | str)", "use a tuple"),
        ("class A(metaclass=M): pass", "metaclass"),
        ("class AError(B, ValueError): pass", "two bases"),
        ("'a'.ljust(3)", ".ljust() is missing"),
        ("zip(a, b, strict=True)", "zip(strict=...)"),
        ("json.dumps(a, indent=2)", "dumps(indent=...)"),
        ("re.match('a{2}', x)", "regular expression with {2"),
        ("re.compile('(?P<a>b)')", "regular expression with (?P"),
        ("m.group()", ".group() needs its number"),
        ("vars(x)", "vars() is missing"),
        ("def __format__(self, spec): pass", "__format__ is never called"),
        ("rows.sort()", ".sort() is not stable"),
        ("a / b", "divides into a float"),
        ("@functools.lru_cache\n    def f(): pass", "functools.lru_cache is missing"),
        ("@contextmanager\n    def f(): pass", "decorator contextmanager"),
        ("x = field(default_factory=list)", "field(default_factory=...)"),
        ("@dataclass(order=True)\n    class A: pass", "dataclass(order=...)"),
        ("@dataclass\n    class B(A): pass", "dataclass with a base class"),
        ("from enum import Enum", "enum.Enum is missing"),
        ("import enum", "imports enum; use from enum import"),
        ("import dataclasses", "imports dataclasses; use from dataclasses import"),
    ],
)
def test_what_is_not_portable_is_found(text: str, message: str):
    (found,) = planted(f"def where():\n    {text}\n")
    # A definition stands below its decorator.
    line = 3 if "@" in text and ".lru" not in text and "order" not in text else 2
    assert found.startswith(f"core/planted.py:{line}: ")
    assert message in found


def test_what_is_portable_is_left_alone():
    text = """
from __future__ import annotations
import math, re, json
from dataclasses import dataclass
from gradaccum.errors import InputError
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    Rows = tuple[int, ...]

@dataclass(frozen=True)
class A:
    rows: tuple[int, ...] = ()

def f(rows: list[int | None], *more: int, last: dict[str, int] | None = None) -> list[int]:
    if (n := len(rows)) > 2 and isinstance(n, (int, str)):
        raise InputError(f"{n:,} {n:>10} {n:+,d} {n!r}")
    first, *others = [*rows, 0]
    re.match("([0-9]+)(?:k|M)$", "4k")
    return g(*others, **more) or round(2.5) or rows[1:n] or "%d" % n
"""
    assert planted(text) == []
