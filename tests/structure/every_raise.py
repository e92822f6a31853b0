"""A pytest plugin: the run fails where a `raise` of the package was never reached.

Only a run of the whole suite can tell, so it is asked for by name: `pytest -p tests.structure.every_raise`,
as `make test` does. The package is compiled with a note before each `raise`, which costs nothing elsewhere; a
coverage of all lines would double the time. What only a child process reaches does not count: the test belongs
in this process.
"""

from __future__ import annotations

import ast
import builtins
import sys
from importlib.machinery import PathFinder, SourceFileLoader
from typing import TYPE_CHECKING, Any

import pytest

from tests.structure.source import PACKAGE, Module, modules

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

NOTE = "__raise_reached__"

# The file and the line of each `raise` that was reached.
Reached = set[tuple[str, int]]


def unreached(package: dict[str, Module], reached: Collection[tuple[str, int]]) -> list[str]:
    """`core/plan.py:12: raise InputError(...)` for each raise statement that is not among the reached."""
    return [
        f"{module.at(node)}: {ast.unparse(node)}"
        for module in package.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Raise) and (str(module.path), node.lineno) not in reached
    ]


class _Noted(ast.NodeTransformer):
    """Puts a call of NOTE before each `raise`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def visit_Raise(self, node: ast.Raise) -> list[ast.stmt]:
        place: list[ast.expr] = [ast.Constant(self.path), ast.Constant(node.lineno)]
        note = ast.Expr(ast.Call(ast.Name(NOTE, ast.Load()), place, []))
        return [ast.fix_missing_locations(ast.copy_location(note, node)), node]


class NotingLoader(SourceFileLoader):
    """Compiles a module with its notes, and keeps clear of the cache that other runs read."""

    def get_code(self, fullname: str) -> CodeType:
        tree = _Noted(self.path).visit(ast.parse(self.get_data(self.path), self.path))
        code: CodeType = compile(tree, self.path, "exec", dont_inherit=True)
        return code


class EveryRaise:
    """Counts in this process, or in each of pytest-xdist's workers, whose notes come together in the one that asks."""

    def __init__(self) -> None:
        self.reached: Reached = set()
        self.unreached: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As a finder of `sys.meta_path`: the package's modules come with notes."""
        if fullname.partition(".")[0] != PACKAGE.name:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and spec.origin and type(spec.loader) is SourceFileLoader:
            spec.loader = NotingLoader(fullname, spec.origin)
        return spec

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.reached.update(map(tuple, getattr(node, "workeroutput", {}).get("reached", ())))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["reached"] = sorted(self.reached)
        # After a failure the list would repeat what the failed tests did not come to.
        elif session.exitstatus == pytest.ExitCode.OK:
            self.unreached = unreached(modules(), self.reached)
            if self.unreached:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unreached:
            terminalreporter.section("raise statements that no test reached", red=True)
            for line in self.unreached:
                terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    early = [name for name in sys.modules if name.partition(".")[0] == PACKAGE.name]
    if early:
        raise pytest.UsageError(f"{early[0]} was imported before the notes of every_raise could be put into it.")
    plugin = EveryRaise()
    setattr(builtins, NOTE, lambda path, line: plugin.reached.add((path, line)))
    sys.meta_path.insert(0, plugin)
    config.pluginmanager.register(plugin)
