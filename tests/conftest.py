"""What holds for every test: how properties are searched, the browser, the GPU, and skipped tests."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests import browser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

# The same examples on every run, and no deadline: a busy machine is not a fault of the code.
hypothesis.settings.register_profile(
    "steady",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
# `make test-all` asks for this one: new examples each time, and ten times as many.
hypothesis.settings.register_profile(
    "thorough", hypothesis.settings.get_profile("steady"), derandomize=False, max_examples=1000, print_blob=True
)
hypothesis.settings.load_profile("steady")


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The browser to start; a test that asks for it is skipped where there is none."""
    path = browser.find()
    if path is None:
        pytest.skip(browser.MISSING)
    return path


@pytest.fixture(scope="module")
def chromium(chromium_path: str) -> Iterator[Browser]:
    """That browser, started once for the tests of a module."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium_path, args=["--no-sandbox"])
        yield started
        started.close()


LONGEST = ("test_vectors.py", "test_zoo.py", "test_folder.py", "test_browser.py", "test_fit.py", "test_door.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: at the end each would have the machine to itself, and not fill it."""
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


class NoSkip:
    """With GRADACCUM_NO_SKIP=1 a run in which a test was skipped is a failed run; `gpu` tests may be."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail") and "gpu" not in report.keywords:
            self.skipped.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.section("skipped, and GRADACCUM_NO_SKIP allows none", red=True)
            for nodeid in self.skipped:
                terminalreporter.write_line(nodeid)


def pytest_configure(config: pytest.Config) -> None:
    # A shell's job in the background ignores Ctrl-C, and so would the processes to which tests send it.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("GRADACCUM_NO_SKIP") == "1":
        config.pluginmanager.register(NoSkip())
