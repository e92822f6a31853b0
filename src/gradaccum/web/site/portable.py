"""What of a source would not run, or not do the same, under MicroPython after lowering: each place with file and line.

The lists were made by running each name and construct under MicroPython 1.27 for WebAssembly. What `lower` rewrites is
allowed here although MicroPython has none of it.
"""

from __future__ import annotations

import ast
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# The whole standard library of the portable rooms: what is offered there, without the names that are missing.
MODULES: dict[str, set[str]] = {
    "__future__": set(),
    "builtins": set(),
    "dataclasses": {"asdict", "astuple", "fields", "make_dataclass", "replace", "KW_ONLY", "InitVar"},
    "enum": {"Enum", "Flag", "IntFlag", "EnumMeta", "auto", "unique", "member"},
    "gc": set("callbacks disable enable freeze get_objects get_referrers get_stats is_tracked".split()),
    "json": set(),
    "math": set("cbrt comb dist exp2 fsum gcd hypot isqrt lcm log1p nextafter perm prod remainder sumprod ulp".split()),
    "re": set(
        "A ASCII DOTALL I IGNORECASE M MULTILINE U UNICODE X VERBOSE error escape findall finditer fullmatch "
        "split subn".split()
    ),
    "collections": {"ChainMap", "Counter", "UserDict", "UserList", "UserString", "abc"},
    "functools": {"cached_property", "cmp_to_key", "lru_cache", "singledispatch", "total_ordering"},
}

# Methods of str, int, float, list, match objects and named tuples that are missing, or do something else.
METHODS = set(
    "capitalize casefold expandtabs format_map isalnum isdecimal isidentifier isnumeric isprintable "
    "istitle ljust maketrans removeprefix removesuffix rjust swapcase title translate zfill sort "
    "as_integer_ratio bit_count bit_length fromhex is_integer groupdict groups span _asdict _replace".split()
)

BUILTINS = {"aiter", "anext", "ascii", "breakpoint", "format", "slice", "vars"}

FROM = {"dataclasses", "enum"}
"""Modules whose names are lowered, and which are not there themselves."""

DECORATORS = {"property", "staticmethod", "classmethod", "functools.cache", "dataclass"}

# Keyword arguments that the built-in functions and methods of these names do not take.
KEYWORDS = {
    "zip": {"strict"},
    "sum": {"start"},
    "split": {"maxsplit", "sep"},
    "rsplit": {"maxsplit", "sep"},
    "encode": {"encoding"},
    "dumps": {"indent", "sort_keys", "ensure_ascii", "default"},
    "namedtuple": {"defaults"},
    "field": {"default_factory", "init", "repr", "kw_only", "metadata", "hash"},
    "dataclass": {"order", "slots", "init", "unsafe_hash", "match_args", "weakref_slot"},
}

FLOAT_SPEC = re.compile(r"[eEfFgGn%]$")
PERCENT_FLOAT = re.compile(r"%[-+ #0]*[0-9*]*(\.[0-9*]+)?[eEfFgG]")
REGEX_EXTRAS = re.compile(r"\(\?[^:]|\{[0-9]|\\[bBAZ]")
GENERIC = {"dict", "frozenset", "list", "set", "tuple", "type"}


def complaints(tree: ast.AST, path: str) -> list[str]:
    """`core/plan.py:12: what is not portable`, one for each place."""
    return [f"{path}:{getattr(node, 'lineno', 1)}: {what}" for node in _running(tree) for what in _at(node)]


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that is still there when the code runs: annotations and imports for type checkers are not."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns"} or (field == "body" and _for_type_checkers(node)):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _running(child)


def _for_type_checkers(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:`, whose body never runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _at(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (
                f"imports {alias.name}" for alias in names if alias.name not in MODULES and _foreign(alias.name)
            )
            yield from (f"imports {alias.name}; use from {alias.name} import" for alias in names if alias.name in FROM)
        case ast.ImportFrom(level=0, module=str(name), names=names) if _foreign(name):
            if name not in MODULES:
                yield f"imports {name}"
            yield from (f"{name}.{alias.name} is missing" for alias in names if alias.name in MODULES.get(name, ()))
        case ast.Attribute(value=ast.Name(id=name), attr=attr) if attr in MODULES.get(name, ()):
            yield f"{name}.{attr} is missing"
        case ast.Name(id=name, ctx=ast.Load()) if name in BUILTINS:
            yield f"{name}() is missing"
        case ast.Call():
            yield from _at_call(node)
        case ast.FormattedValue(format_spec=ast.JoinedStr(values=[*_, ast.Constant(value=str(spec))])):
            if FLOAT_SPEC.search(spec):
                yield f"formats a float (:{spec}); results are shown from integers"
        case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mod()) if PERCENT_FLOAT.search(text):
            yield f"formats a float ({text!r}); results are shown from integers"
        case ast.BinOp(op=ast.Div()):
            yield "divides into a float, which large integers do not survive everywhere; use float(Ratio(a, b))"
        case ast.Match():
            yield "match statement; use if and elif"
        case ast.TryStar():
            yield "except* clause"
        case ast.AsyncFunctionDef() | ast.Await():
            yield "async code"
        case ast.FunctionDef():
            yield from _at_function(node)
        case ast.Slice(step=ast.expr()):
            yield "slice with a step, which strings and tuples do not take"
        case ast.Subscript(value=ast.Name(id=name)) if name in GENERIC:
            yield f"{name}[...] outside an annotation"
        case ast.ClassDef():
            yield from _at_class(node)


def _at_function(node: ast.FunctionDef) -> Iterator[str]:
    if node.args.posonlyargs:
        yield "positional-only parameters"
    if node.name in {"__format__", "__init_subclass__", "__set_name__"}:
        yield f"{node.name} is never called"
    yield from _at_decorators(node)


def _at_class(node: ast.ClassDef) -> Iterator[str]:
    if node.keywords:
        yield "class with a keyword (metaclass)"
    if node.name.endswith("Error") and len(node.bases) > 1:
        yield "exception with two bases"
    if node.bases and any(ast.unparse(each).startswith("dataclass") for each in node.decorator_list):
        yield "dataclass with a base class, whose fields are not seen"
    yield from _at_decorators(node)


def _at_decorators(node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    for each in node.decorator_list:
        name = ast.unparse(each).partition("(")[0]
        if name not in DECORATORS and name.partition(".")[0] not in MODULES:  # what these lack is found as such
            yield f"decorator {name}"


def _at_call(call: ast.Call) -> Iterator[str]:
    keywords = {keyword.arg for keyword in call.keywords}
    match call.func:
        case ast.Name(id=name):
            if name == "round" and len(call.args) + len(call.keywords) > 1:
                yield "round(x, n) goes through a float"
            if name == "isinstance" and isinstance(call.args[1], ast.BinOp):
                yield "isinstance(x, A | B); use a tuple"
        case ast.Attribute(attr=name, value=value):
            if name in METHODS:
                yield f".{name}() is missing" if name != "sort" else ".sort() is not stable; use sorted()"
            if name == "group" and not call.args:
                yield ".group() needs its number"
            if isinstance(value, ast.Name) and value.id == "re" and call.args:
                yield from _at_pattern(call.args[0])
        case _:
            return
    yield from (f"{name}({word}=...) is not known there" for word in sorted(KEYWORDS.get(name, set()) & keywords))


def _at_pattern(pattern: ast.expr) -> Iterator[str]:
    if isinstance(pattern, ast.Constant) and (extra := REGEX_EXTRAS.search(str(pattern.value))):
        yield f"regular expression with {extra.group()}"


def _foreign(name: str) -> bool:
    return name.partition(".")[0] != "gradaccum"
