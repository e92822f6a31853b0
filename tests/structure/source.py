"""The package as text: its modules, their syntax trees and what they import. Nothing is executed."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "gradaccum"


@dataclass(frozen=True)
class Module:
    """One source file. `name` is dotted and without `.__init__`; `parts` is the name split."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.name.split("."))

    @property
    def room(self) -> str:
        """The part of the house it belongs to: `core`, `errors`, ...; `__init__` for the package itself."""
        return self.parts[1] if len(self.parts) > 1 else "__init__"

    def at(self, node: ast.AST) -> str:
        """`core/plan.py:12`, for messages."""
        return f"{self.path.name if len(self.parts) < 2 else self._below_package()}:{getattr(node, 'lineno', 1)}"

    def _below_package(self) -> str:
        depth = len(self.parts) - (0 if self.path.name == "__init__.py" else 1)
        return "/".join(self.path.parts[-depth:])


@cache
def modules(package: Path = PACKAGE) -> dict[str, Module]:
    """Every module of a package folder, by dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return found


def imports(module: Module, known: dict[str, Module]) -> Iterator[tuple[str, ast.stmt]]:
    """Every import, wherever it stands: at the top, in a function, or for type checkers only.

    `from package import name` is the module `package.name` where there is one, else `package`.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in known else base), node


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    inside = module.parts if module.path.name == "__init__.py" else module.parts[:-1]
    above = inside[: len(inside) - (node.level - 1)]
    return ".".join([*above, *([node.module] if node.module else [])])


def for_type_checkers(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:`, whose body never runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
