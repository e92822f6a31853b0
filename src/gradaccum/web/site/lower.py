"""Python as we write it -> Python as MicroPython reads it. Only notation is lowered; what a line does stays.

    from __future__ ..., TYPE_CHECKING blocks, annotations   dropped
    @dataclass                                               a class with __init__, __eq__ and __hash__
    [*a, b], (*a, b), {"k": a, **b}                          calls that build the same
    f"..."                                                   str.format
    functools.cache                                          a list beside the function

Whatever else MicroPython lacks is reported with file and line by `complaints` (portable.py), not guessed around.
"""

from __future__ import annotations

import ast

from gradaccum.errors import GradaccumError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class LoweringError(GradaccumError):
    """A construct that the lowering does not know."""

    def __init__(self, path: str, node: ast.AST, what: str) -> None:
        super().__init__(f"{path}:{getattr(node, 'lineno', 0)}: {what}")


def lower(source: str, path: str) -> str:
    """The lowered text of one module. path: what messages name. Raises LoweringError."""
    tree = ast.parse(source, path)
    lowered = _Lower(path).visit(tree)
    return ast.unparse(ast.fix_missing_locations(lowered)) + "\n"


class _Lower(ast.NodeTransformer):
    def __init__(self, path: str) -> None:
        self.path = path

    # What is only there for readers and type checkers

    def visit_Module(self, node: ast.Module) -> ast.Module:
        node.body = [each for each in self._body(node.body) if not _is_docstring(each)] or [ast.Pass()]
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        if node.module in ("__future__", "dataclasses"):
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
        if node.args.args or node.args.kwonlyargs:
            raise LoweringError(self.path, node, "functools.cache is lowered for functions without parameters alone")
        remember = f"""
def {node.name}(_kept=[]):
    if not _kept:
        _kept.append(_uncached_{node.name}())
    return _kept[0]
"""
        renamed = node.name
        node.name = f"_uncached_{renamed}"
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
        """`{a: 1, **b}` as `_ordered([(a, 1)], b)`: dictionaries keep no order there, and a JSON answer has one."""
        self.generic_visit(node)
        parts: list[ast.expr] = []
        for key, value in zip(node.keys, node.values):
            if key is None:
                parts.append(value)
                continue
            pair = ast.Tuple([key, value], ast.Load())
            if parts and isinstance(parts[-1], ast.List):
                parts[-1].elts.append(pair)
            else:
                parts.append(ast.List([pair], ast.Load()))
        return _call("_ordered", *parts)

    # Text

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """`f"{a:,} of {b!r}"` as `"{:,} of {!r}".format(a, b)`: f-strings do not nest there."""
        template, values = "", []
        for part in node.values:
            if not isinstance(part, ast.FormattedValue):
                template += str(ast.literal_eval(part)).replace("{", "{{").replace("}", "}}")
                continue
            spec = "" if part.format_spec is None else ast.unparse(part.format_spec)[2:-1]
            if "{" in spec:
                raise LoweringError(self.path, node, "a format specification that is computed")
            template += "{" + ("!r" if part.conversion == ord("r") else "") + (f":{spec}" if spec else "") + "}"
            values.append(self.visit(part.value))
        text = ast.Constant(template if values else template.replace("{{", "{").replace("}}", "}"))
        return ast.Call(ast.Attribute(text, "format", ast.Load()), values, []) if values else text

    # Dataclasses

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
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
