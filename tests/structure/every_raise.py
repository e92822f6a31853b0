"""A pytest plugin: the run fails where a `raise` of the package was never reached.

Only a run of the whole suite can tell, so it is asked for by name: `pytest -p tests.structure.every_raise`,
as `make test` does. What only a child process reaches does not count: the test belongs in this process.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import coverage
import pytest

from tests.structure.source import PACKAGE, Module, modules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path


def unreached(package: dict[str, Module], lines_run: Callable[[Path], set[int]]) -> list[str]:
    """`core/plan.py:12: raise InputError(...)` for each raise statement of which no line ran."""
    found = []
    for module in package.values():
        ran = lines_run(module.path)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Raise) and ran.isdisjoint(range(node.lineno, (node.end_lineno or 0) + 1)):
                found.append(f"{module.at(node)}: {ast.unparse(node)}")
    return found


class EveryRaise:
    """Counts in this process, or in each of pytest-xdist's workers, whose lines come together in the one that asks."""

    def __init__(self) -> None:
        self.coverage = coverage.Coverage(data_file=None, config_file=False, source=[str(PACKAGE)])
        self.ran: dict[str, set[int]] = {}
        self.unreached: list[str] = []

    def pytest_sessionstart(self) -> None:
        self.coverage.start()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._add(getattr(node, "workeroutput", {}).get("lines", {}))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.coverage.stop()
        data = self.coverage.get_data()
        self._add({path: data.lines(path) or () for path in data.measured_files()})
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["lines"] = {path: sorted(lines) for path, lines in self.ran.items()}
        # After a failure the list would repeat what the failed tests did not come to.
        elif session.exitstatus == pytest.ExitCode.OK:
            self.unreached = unreached(modules(), lambda path: self.ran.get(str(path), set()))
            if self.unreached:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _add(self, lines: Mapping[str, Iterable[int]]) -> None:
        for path, numbers in lines.items():
            self.ran.setdefault(path, set()).update(numbers)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unreached:
            terminalreporter.section("raise statements that no test reached", red=True)
            for line in self.unreached:
                terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(EveryRaise())
