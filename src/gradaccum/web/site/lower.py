"""Python as we write it -> Python as MicroPython reads it. Only notation is lowered; what a line does stays.

    from __future__ ..., TYPE_CHECKING blocks, annotations   dropped
    @dataclass                                               a class with __init__, __eq__ and __hash__
    class A(StrEnum), class A(IntEnum)                       a class with constants
    [*a, b], (*a, b), {"k": a, **b}                          calls that build the same
    f"..."                                                   str.format
    functools.cache                                          a dictionary beside the function
    el("p", None, text)                                      markup with places for what is not known yet (fold.py)

Calls that MicroPython answers otherwise go to prelude.py. Whatever else it lacks is reported with file and line
(portable.py), not guessed around.
"""

from __future__ import annotations

import ast

from gradaccum.errors import GradaccumError
from gradaccum.web.site.fold import fold
from gradaccum.web.site.portable import complaints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class LoweringError(GradaccumError):
    """Constructs that the lowering does not know, or that MicroPython lacks: one line for each."""


def lower(source: str, path: str) -> str:
    """The lowered text of one module. path: what messages name. Raises LoweringError."""
    tree = ast.parse(source, path)
    if found := complaints(tree, path):
        raise LoweringError("\n".join(found))
    return ast.unparse(ast.fix_missing_locations(_Lower(path).visit(fold(tree)))) + "\n"


class _Lower(ast.NodeTransformer):
    def __init__(self, path: str) -> None:
        self.path = path

    # What is only there for readers and type checkers

    def visit_Module(self, node: ast.Module) -> ast.Module:
        node.body = [each for each in self._body(node.body) if not _is_docstring(each)] or [ast.Pass()]
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        if node.module in ("__future__", "dataclasses", "enum"):
            return None
        if node.module == "functools":
            node.names = [alias for alias in node.names if alias.name != "cache"]
        return node if node.names else None

    def visit_Import(self, node: ast.Import) -> ast.Import | None:
        node.names = [alias for alias in node.names if alias.name != "functools"]
        return node if node.names else None

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt] | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return self._body(node.orelse) if node.orelse else None
        node.test = self.visit(node.test)
        node.body, node.orelse = self._body(node.body), self._body(node.orelse)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.Assign | None:
        (target, *_) = node.targets
        if isinstance(target, ast.Name) and target.id == "TYPE_CHECKING":
            return None
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.Assign | None:
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], self.visit(node.value)), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | list[ast.AST]:
        cached = [each for each in node.decorator_list if ast.unparse(each) == "functools.cache"]
        node.decorator_list = [self.visit(each) for each in node.decorator_list if each not in cached]
        node.returns = None
        node.args = self.visit(node.args)
        node.body = self._body([each for each in node.body if not _is_docstring(each)]) or [ast.Pass()]
        if not cached:
            return node
        if node.args.kwonlyargs or node.args.kwarg:
            raise self._unknown(node, "functools.cache with parameters that are not positional")
        remember = f"""
_kept_by_{node.name} = {{}}
def {node.name}(*key):
    if key not in _kept_by_{node.name}:
        _kept_by_{node.name}[key] = _uncached_{node.name}(*key)
    return _kept_by_{node.name}[key]
"""
        node.name = f"_uncached_{node.name}"
        return [node, *ast.parse(remember).body]

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    # Displays

    def visit_List(self, node: ast.List) -> ast.AST:
        self.generic_visit(node)
        return _joined(node.elts) if isinstance(node.ctx, ast.Load) and _has_star(node.elts) else node

    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load) and _has_star(node.elts):
            return _call("tuple", _joined(node.elts))
        return node

    def visit_Set(self, node: ast.Set) -> ast.AST:
        self.generic_visit(node)
        return _call("set", _joined(node.elts)) if _has_star(node.elts) else node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        """As an OrderedDict: dictionaries keep no order there, and a JSON answer has one."""
        self.generic_visit(node)
        parts: list[ast.expr] = []
        for key, value in zip(node.keys, node.values):
            if key is None:
                parts.append(value)
                continue
            pair = ast.Tuple([key, value], ast.Load())
            if parts and isinstance(parts[-1], ast.Tuple):
                parts[-1].elts.append(pair)
            else:
                parts.append(ast.Tuple([pair], ast.Load()))
        if not parts:
            return _call("OrderedDict")
        return _call("OrderedDict" if len(parts) == 1 and node.keys[0] else "_ordered", *parts)

    def visit_DictComp(self, node: ast.DictComp) -> ast.AST:
        self.generic_visit(node)
        pair = ast.Tuple([node.key, node.value], ast.Load())
        return _call("OrderedDict", ast.ListComp(pair, node.generators))

    # Calls

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """What MicroPython's own do otherwise goes to prelude.py: order, stability, large numbers, white space."""
        self.generic_visit(node)
        match node.func:
            case ast.Name(id="dict"):
                return ast.Call(ast.Name("OrderedDict", ast.Load()), node.args, node.keywords)
            case ast.Attribute(value=ast.Name(id="dict"), attr="fromkeys"):
                return ast.Call(ast.Name("_from_keys", ast.Load()), node.args, [])
            case ast.Name(id="range"):
                return ast.Call(ast.Name("_range", ast.Load()), node.args, [])
            case ast.Name(id="sorted") if node.keywords:
                return ast.Call(ast.Name("_sorted", ast.Load()), node.args, node.keywords)
            case ast.Attribute(value=text, attr="strip" | "lstrip" | "rstrip" as name) if not node.args:
                return _call("_" + name, text)
            case ast.Attribute(value=text, attr="isascii"):
                return _call("_is_ascii", text)
        return node

    # Text

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """`f"{a} of {b!r}"` as `"%s of %r" % (a, b)`, since f-strings do not nest there and this is the fastest of
        their ways to write text. With a specification, `f"{a:,}"`, as `"{:,}".format(a)`.
        """
        values = [self.visit(part.value) for part in node.values if isinstance(part, ast.FormattedValue)]
        specified = any(part.format_spec for part in node.values if isinstance(part, ast.FormattedValue))
        template = "".join(self._piece(part, specified) for part in node.values)
        if specified:
            return ast.Call(ast.Attribute(ast.Constant(template), "format", ast.Load()), values, [])
        if values:
            return ast.BinOp(ast.Constant(template), ast.Mod(), ast.Tuple(values, ast.Load()))
        return ast.Constant(template.replace("%%", "%"))

    def _piece(self, part: ast.expr, for_format: bool) -> str:
        """One part of an f-string in the template: its text, or the place of a value."""
        if not isinstance(part, ast.FormattedValue):
            text = str(ast.literal_eval(part))
            return text.replace("{", "{{").replace("}", "}}") if for_format else text.replace("%", "%%")
        as_repr = part.conversion == ord("r")
        if not for_format:
            return "%r" if as_repr else "%s"
        spec = "" if part.format_spec is None else ast.unparse(part.format_spec)[2:-1]
        if "{" in spec:
            raise self._unknown(part, "a format specification that is computed")
        return "{" + ("!r" if as_repr else "") + (f":{spec}" if spec else "") + "}"

    # Classes

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.bases = [each for each in node.bases if ast.unparse(each) not in ("StrEnum", "IntEnum")]
        options = [each for each in node.decorator_list if ast.unparse(each).startswith("dataclass")]
        fields = _fields(node) if options else []
        node.body = [each for each in node.body if not _is_docstring(each)]
        if options:
            node.decorator_list = [each for each in node.decorator_list if each not in options]
            node.body = [each for each in node.body if not _declares_field(each)]
        node.body = self._body(node.body)
        if options:
            node.body = [*_methods(node, fields, ast.unparse(options[0])), *node.body]
        node.body = node.body or [ast.Pass()]
        return node

    def _unknown(self, node: ast.AST, what: str) -> LoweringError:
        return LoweringError(f"{self.path}:{getattr(node, 'lineno', 0)}: {what}")

    def _body(self, statements: Sequence[ast.stmt]) -> list[ast.stmt]:
        """Every statement visited; those that vanish are left out, and one that becomes several is spread."""
        result: list[ast.stmt] = []
        for statement in statements:
            visited = self.visit(statement)
            result.extend(visited if isinstance(visited, list) else [visited] if visited is not None else [])
        return result or ([ast.Pass()] if statements else [])


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _has_star(elements: Sequence[ast.expr]) -> bool:
    return any(isinstance(each, ast.Starred) for each in elements)


def _joined(elements: Sequence[ast.expr]) -> ast.expr:
    """`[*a, b, *c]` as `list(a) + [b] + list(c)`."""
    parts: list[ast.expr] = []
    for each in elements:
        if isinstance(each, ast.Starred):
            parts.append(_call("list", each.value))
        elif parts and isinstance(parts[-1], ast.List):
            parts[-1].elts.append(each)
        else:
            parts.append(ast.List([each], ast.Load()))
    whole = parts[0]
    for part in parts[1:]:
        whole = ast.BinOp(whole, ast.Add(), part)
    return whole


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _declares_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


class _Field:
    """One field of a dataclass: its name, its default as source text or None, and whether == looks at it."""

    def __init__(self, node: ast.AnnAssign) -> None:
        self.name = ast.unparse(node.target)
        self.default = None if node.value is None else ast.unparse(node.value)
        self.compare = True
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "field":
            keywords = {each.arg: ast.unparse(each.value) for each in node.value.keywords}
            self.default = keywords.get("default")
            self.compare = keywords.get("compare") != "False"


def _fields(node: ast.ClassDef) -> list[_Field]:
    return [_Field(each) for each in node.body if isinstance(each, ast.AnnAssign) and _declares_field(each)]


def _methods(node: ast.ClassDef, fields: Sequence[_Field], options: str) -> list[ast.stmt]:
    """What `dataclass` would have added, as far as the class does not define it and the options do not leave it out."""
    own = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
    star = ["*"] if "kw_only=True" in options else []
    parameters = star + [each.name if each.default is None else f"{each.name}={each.default}" for each in fields]
    lines = [f"def __init__(self, {', '.join(parameters)}):"]
    lines += [f"    self.{each.name} = {each.name}" for each in fields]
    lines += ["    self.__post_init__()"] if "__post_init__" in own else []
    if "eq=False" not in options:
        values = "".join(f"self.{each.name}, " for each in fields if each.compare)
        lines += ["def _values(self):", f"    return ({values})"]
        lines += [
            "def __eq__(self, other):",
            f"    return type(other) is {node.name} and self._values() == other._values()",
        ]
        lines += ["def __hash__(self):", "    return hash(self._values())"]
    return ast.parse("\n".join(lines)).body
