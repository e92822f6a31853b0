"""`el("p", {"class": "hint"}, text)` -> markup that is written already but for what is not known yet.

    _Markup("".join(['<p class="hint">', _content(text), "</p>"]))

A page is made of hundreds of elements, whose names and attributes stand in the source. The lowering writes them once,
so that MicroPython need not sort, escape and join them anew for each page: elements within elements become one text.
What is written, here and there, is written by the same functions of show/html.py.
"""

from __future__ import annotations

import ast

from gradaccum.show.html import VOID, attribute, content

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Part: TypeAlias = str | ast.expr

HTML = "gradaccum.show.html"
CALLED = ("Markup", "attribute", "content", "escape")
"""What folded calls use. A module imports it with an underscore before it."""


def fold(tree: ast.Module) -> ast.Module:
    """The module with its calls of `el` folded, as far as their tags and attributes' names are known."""
    imports = [each for each in tree.body if isinstance(each, ast.ImportFrom) and each.module == HTML]
    if any(alias.name == "el" and alias.asname is None for each in imports for alias in each.names):
        _Fold().visit(tree)
        imports[0].names += [ast.alias(name, "_" + name) for name in CALLED]
    return tree


class _Fold(ast.NodeTransformer):
    """A part of an element is text that is known, or the expression that gives it."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        parts = self.element(node)
        return self.generic_visit(node) if parts is None else _call("Markup", _joined(parts))

    def element(self, node: ast.expr) -> list[Part] | None:
        """The parts of an element in their order; None for what is no such call."""
        names: list[ast.expr | None] = []
        values: list[ast.expr] = []
        children: list[ast.expr] = []
        match node:
            case ast.Call(ast.Name("el"), [ast.Constant(str(tag)), *more], []):
                pass
            case _:
                return None
        match more:
            case []:
                pass
            case [ast.Constant(None), *children]:
                pass
            case [ast.Dict(names, values), *children]:
                pass
            case _:
                return None
        known = [each.value for each in names if isinstance(each, ast.Constant)]
        if len(known) < len(names):
            return None
        parts: list[Part] = [f"<{tag}"]
        for name, value in sorted(zip(known, values), key=lambda pair: str(pair[0])):
            parts += self.attribute(str(name), value)
        parts.append(">")
        if tag not in VOID:
            parts += [part for child in children for part in self.child(child)]
            parts.append(f"</{tag}>")
        return parts

    def attribute(self, name: str, value: ast.expr) -> list[Part]:
        match value:
            case ast.Constant():
                return [attribute(name, value.value)]  # type: ignore[arg-type]
            case ast.JoinedStr() | ast.BinOp(ast.Constant(str())):
                return [f' {name}="', _call("escape", self.visit(value)), '"']
            case ast.IfExp():
                return [self.either(value, *(self.attribute(name, each) for each in (value.body, value.orelse)))]
        return [_call("attribute", ast.Constant(name), self.visit(value))]

    def child(self, node: ast.expr) -> list[Part]:
        match node:
            case ast.Constant():
                return [content(node.value)]  # type: ignore[arg-type]
            case ast.JoinedStr() | ast.BinOp(ast.Constant(str())):
                return [_call("escape", self.visit(node))]
            case ast.List() | ast.Tuple():
                return [part for each in node.elts for part in self.child(each)]
            case ast.Starred():
                return self.child(node.value)
            case ast.IfExp():
                return [self.either(node, self.child(node.body), self.child(node.orelse))]
            case ast.ListComp():
                several = ast.ListComp(_joined(self.child(node.elt)), [self.visit(each) for each in node.generators])
                return [_text_of(several)]
        return self.element(node) or [_call("content", self.visit(node))]

    def either(self, node: ast.IfExp, body: list[Part], orelse: list[Part]) -> ast.expr:
        return ast.IfExp(self.visit(node.test), _joined(body), _joined(orelse))


def _joined(parts: list[Part]) -> ast.expr:
    """One text of all parts: what is known and stands side by side is one constant."""
    pieces: list[ast.expr] = []
    known = ""
    for part in [*parts, None]:
        if isinstance(part, str):
            known += part
            continue
        if known:
            pieces.append(ast.Constant(known))
        if part is not None:
            pieces.append(part)
        known = ""
    if not pieces:
        return ast.Constant("")
    return pieces[0] if len(pieces) == 1 else _text_of(ast.List(pieces, ast.Load()))


def _text_of(pieces: ast.expr) -> ast.Call:
    return ast.Call(ast.Attribute(ast.Constant(""), "join", ast.Load()), [pieces], [])


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name("_" + name, ast.Load()), list(arguments), [])
