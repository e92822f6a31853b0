"""`core/` and `show/`, and what they use, stay inside the part of Python that MicroPython has.

The lists were made by running each name and construct under MicroPython 1.27 for WebAssembly. A build step will
rewrite what is only notation: dataclasses, annotations, and unpacking inside a display such as [*a, *b]. These are
allowed here although MicroPython has none of them.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from tests.structure.source import Module, for_type_checkers, modules

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOMS = {"errors", "units", "core", "show"}

# The whole standard library of the portable rooms: what is offered there, without the names that are missing.
MODULES: dict[str, set[str]] = {
    "__future__": set(),
    "dataclasses": set(),
    "json": set(),
    "math": set("cbrt comb dist exp2 fsum gcd hypot isqrt lcm log1p nextafter perm prod remainder sumprod ulp".split()),
    "re": set(
        "A ASCII DOTALL I IGNORECASE M MULTILINE U UNICODE X VERBOSE error escape findall finditer fullmatch "
        "split subn".split()
    ),
    "collections": {"ChainMap", "Counter", "UserDict", "UserList", "UserString", "abc"},
    "functools": {"cache", "cached_property", "cmp_to_key", "lru_cache", "singledispatch", "total_ordering"},
}

# Methods of str, int, float, match objects and named tuples that are missing.
METHODS = set(
    "capitalize casefold expandtabs format_map isalnum isascii isdecimal isidentifier isnumeric isprintable "
    "istitle ljust maketrans removeprefix removesuffix rjust swapcase title translate zfill "
    "as_integer_ratio bit_count bit_length fromhex is_integer groupdict groups span _asdict _replace".split()
)

BUILTINS = {"aiter", "anext", "ascii", "breakpoint", "format", "slice", "vars"}

# Keyword arguments that the built-in functions and methods of these names do not take.
KEYWORDS = {
    "zip": {"strict"},
    "sum": {"start"},
    "split": {"maxsplit", "sep"},
    "rsplit": {"maxsplit", "sep"},
    "encode": {"encoding"},
    "dumps": {"indent", "sort_keys", "ensure_ascii", "default"},
    "namedtuple": {"defaults"},
}

FLOAT_SPEC = re.compile(r"[eEfFgGn%]$")
PERCENT_FLOAT = re.compile(r"%[-+ #0]*[0-9*]*(\.[0-9*]+)?[eEfFgG]")
REGEX_EXTRAS = re.compile(r"\(\?[^:]|\{[0-9]|\\[bBAZ]")
GENERIC = {"dict", "frozenset", "list", "set", "tuple", "type"}


def complaints(module: Module) -> list[str]:
    """`core/plan.py:12: what is not portable`, one for each place."""
    return [f"{module.at(node)}: {what}" for node in _running(module.tree) for what in _complaints_at(node)]


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that is still there when the code runs: annotations and imports for type checkers are not."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns"} or (field == "body" and for_type_checkers(node)):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _running(child)


def _complaints_at(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (
                f"imports {alias.name}" for alias in names if alias.name not in MODULES and _foreign(alias.name)
            )
        case ast.ImportFrom(level=0, module=str(name), names=names) if _foreign(name):
            if name not in MODULES:
                yield f"imports {name}"
            yield from (f"{name}.{alias.name} is missing" for alias in names if alias.name in MODULES.get(name, ()))
        case ast.Attribute(value=ast.Name(id=name), attr=attr) if attr in MODULES.get(name, ()):
            yield f"{name}.{attr} is missing"
        case ast.Name(id=name, ctx=ast.Load()) if name in BUILTINS:
            yield f"{name}() is missing"
        case ast.Call():
            yield from _complaints_at_call(node)
        case ast.FormattedValue(format_spec=ast.JoinedStr(values=[*_, ast.Constant(value=str(spec))])):
            if FLOAT_SPEC.search(spec):
                yield f"formats a float (:{spec}); results are shown from integers"
        case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mod()) if PERCENT_FLOAT.search(text):
            yield f"formats a float ({text!r}); results are shown from integers"
        case ast.Match():
            yield "match statement"
        case ast.TryStar():
            yield "except* clause"
        case ast.AsyncFunctionDef() | ast.Await():
            yield "async code"
        case ast.FunctionDef(args=ast.arguments(posonlyargs=[_, *_])):
            yield "positional-only parameters"
        case ast.Slice(step=ast.expr()):
            yield "slice with a step, which strings and tuples do not take"
        case ast.Subscript(value=ast.Name(id=name)) if name in GENERIC:
            yield f"{name}[...] outside an annotation"
        case ast.ClassDef(keywords=[_, *_]):
            yield "class with a keyword (metaclass)"
        case ast.ClassDef(bases=[_, _, *_], name=name) if name.endswith("Error"):
            yield "exception with two bases"
        case ast.FunctionDef(name="__format__" | "__init_subclass__" | "__set_name__" as name):
            yield f"{name} is never called"


def _complaints_at_call(call: ast.Call) -> Iterator[str]:
    keywords = {keyword.arg for keyword in call.keywords}
    match call.func:
        case ast.Name(id=name):
            if name == "round" and len(call.args) + len(call.keywords) > 1:
                yield "round(x, n) goes through a float"
            if name == "isinstance" and isinstance(call.args[1], ast.BinOp):
                yield "isinstance(x, A | B); use a tuple"
        case ast.Attribute(attr=name, value=value):
            if name in METHODS:
                yield f".{name}() is missing"
            if name == "group" and not call.args:
                yield ".group() needs its number"
            if isinstance(value, ast.Name) and value.id == "re" and call.args:
                yield from _complaints_at_pattern(call.args[0])
        case _:
            return
    yield from (f"{name}({word}=...) is not taken" for word in sorted(KEYWORDS.get(name, set()) & keywords))


def _complaints_at_pattern(pattern: ast.expr) -> Iterator[str]:
    if isinstance(pattern, ast.Constant) and (extra := REGEX_EXTRAS.search(str(pattern.value))):
        yield f"regular expression with {extra.group()}"


def _foreign(name: str) -> bool:
    return name.partition(".")[0] != "gradaccum"


def test_the_portable_rooms_are_portable():
    found = [line for module in modules().values() if module.room in ROOMS for line in complaints(module)]
    assert not found, "\n".join(found)


# From here on: the check can fail, and it leaves alone what is fine.


def planted(folder: Path, text: str) -> list[str]:
    (folder / "gradaccum" / "core").mkdir(parents=True)
    (folder / "gradaccum" / "core" / "planted.py").write_text(text)
    return complaints(modules(folder / "gradaccum")["gradaccum.core.planted"])


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
    ],
)
def test_what_is_not_portable_is_found(tmp_path: Path, text: str, message: str):
    (found,) = planted(tmp_path, f"def where():\n    {text}\n")
    assert found.startswith("core/planted.py:2: ")
    assert message in found


def test_what_is_portable_is_left_alone(tmp_path: Path):
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
    assert planted(tmp_path, text) == []
