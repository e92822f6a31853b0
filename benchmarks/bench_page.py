"""The live page in Chromium, served and as static files: an edit until the DOM and paint, the first visit, the start.

Beside them, in the same browser and turn by turn, the smallest page that makes a round trip (bare_page.py): the ratio
says what our arithmetic and rendering cost beyond it. The static page makes none; a plain host serves its files.
"""

from __future__ import annotations

import http.client
import itertools
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

from benchmarks.common import CACHE, Spread, asked_runs, ratios, spread, table, take_turns, verdict, write_result
from benchmarks.environments import own_environment, plain_environ
from tests import browser as chromium

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from playwright.sync_api import Browser, Page

    Sample = Mapping[str, float]

WHAT = "the live page on loopback, served and as static files: an edit, a first visit and the start, beside a bare page"
RUNS = 300
"""Edits of each page: every one is a key pressed."""
VISITS, STARTS = 20, 10
LIMIT, STATIC_LIMIT = 16, 5
"""Milliseconds from an edit's event to the DOM: served at the 95th percentile, static at the median."""
LIVE_LIMIT, BYTES_LIMIT = 1000, 300_000
"""Of a first visit to the static page: milliseconds to the first result that its engine gives, and bytes in all."""
ASKED = "target_batch=640"
"""A permalink: the served page comes with its result, the static one has to start its engine for it."""
PATIENCE = 10
"""Seconds until what does not answer is a failure."""

OURS, STATIC, BARE = "gradaccum serve", "static files", "bare page"
EVENT_TO_DOM = "edit: event to DOM"
PERMALINK = "first visit by a permalink: its result painted"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Site:
    """A server to measure. command: starts it, and it prints its address. fields: the ids of those to type into."""

    command: tuple[str, ...]
    fields: tuple[str, ...]

    @contextmanager
    def served(self) -> Iterator[str]:
        """Its address, while it runs."""
        with subprocess.Popen(self.command, env=plain_environ(), stdout=subprocess.PIPE, text=True) as server:
            try:
                address = server.stdout.readline().strip() if server.stdout else ""
                if not address.startswith("http://"):
                    sys.exit(f"{' '.join(self.command)} printed no address, but {address!r}")
                yield address
            finally:
                server.terminate()

    def start(self) -> float:
        """Seconds from the start of the process to the whole page."""
        begun = time.perf_counter()
        with self.served() as address:
            connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=PATIENCE)
            connection.request("GET", "/")
            answer = connection.getresponse()
            answer.read()
            took = time.perf_counter() - begun
            connection.close()
            if answer.status != 200:
                sys.exit(f"{address} answered {answer.status}")
        return took


def main() -> None:
    """Starts, then first visits, then edits; the sites take turns in each."""
    runs = asked_runs(WHAT, RUNS)
    executable = chromium.find()
    if executable is None:
        sys.exit(chromium.MISSING)
    environment = own_environment("gradaccum-web", "[web]")
    python = environment.program("python")
    folder = str(CACHE / "site")
    subprocess.run([environment.program("gradaccum"), "site", "build", folder], check=True, stdout=subprocess.DEVNULL)
    fields = ("micro_batch", "num_gpus", "target_batch", "sequence_length")
    sites = {
        BARE: Site((python, str(HERE / "bare_page.py")), ("field",)),
        OURS: Site((environment.program("gradaccum"), "serve", "--port", "0"), fields),
        STATIC: Site((python, str(HERE / "static_host.py"), folder), fields),
    }
    starts = take_turns({name: sites[name].start for name in (BARE, OURS)}, min(runs, STARTS))
    with sync_playwright() as playwright, ExitStack() as running:
        addresses = {name: running.enter_context(site.served()) for name, site in sites.items()}
        # Chromium's sandbox does not start for the superuser, as in a container.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        visits = take_turns({name: partial(visit, browser, addresses[name]) for name in sites}, min(runs, VISITS))
        asked = take_turns(
            {name: partial(visit, browser, f"{addresses[name]}?{ASKED}") for name in (OURS, STATIC)}, min(runs, VISITS)
        )
        sent = _bytes_sent(browser, addresses[STATIC])
        editors = {name: Editor(_open(browser, addresses[name]), site.fields) for name, site in sites.items()}
        edits = take_turns({name: editor.edit for name, editor in editors.items()}, runs)
        version = browser.version
        browser.close()

    times = {
        EVENT_TO_DOM: _column(edits, "dom"),
        "edit: the request": _column(edits, "round_trip"),
        "edit: the script, after the answer": _column(edits, "after_answer"),
        "edit: event to the last part of the page": _column(edits, "whole"),
        "edit: event to paint of all of it": _column(edits, "paint"),
        "first visit: first result painted": _column(visits, "visible"),
        PERMALINK: _column(asked, "asked"),
        "server: start to whole page": {name: [1000 * each for each in starts[name]] for name in starts},
    }
    measured = {name: _beside(column) for name, column in times.items()}
    header = [
        "ms, p50 and p95",
        *(f"{name} {each}" for name in (OURS, STATIC, BARE) for each in ("p50", "p95")),
        "ratio",
    ]
    print(table(header, [_row(*each) for each in measured.items()]))
    first = {name: {key: visits[name][0][key] for key in ("requests", "bytes")} for name in sites}
    first[STATIC]["bytes_with_its_worker"] = sent
    for name, each in first.items():
        print(f"first visit of {name}: {each['requests']:.0f} requests, {each['bytes'] / 1000:.1f} kB")
    limits = [
        verdict("served, 95th percentile of event to DOM, ms", measured[EVENT_TO_DOM][OURS]["p95"], LIMIT),
        verdict("static, median of event to DOM, ms", measured[EVENT_TO_DOM][STATIC]["median"], STATIC_LIMIT),
        verdict("static, first result of its engine, median, ms", measured[PERMALINK][STATIC]["median"], LIVE_LIMIT),
        verdict("static, first visit, bytes in all", sent, BYTES_LIMIT),
    ]
    write_result(
        "page",
        WHAT,
        runs,
        RUNS,
        {name: environment.version(name) for name in ("gradaccum", "starlette", "uvicorn")} | {"chromium": version},
        visits=min(runs, VISITS),
        starts=min(runs, STARTS),
        limits=limits,
        measured_ms=measured,
        first_visit=first,
    )


def visit(browser: Browser, address: str) -> Sample:
    """A visit with nothing cached: requests, bytes on the wire, and milliseconds to the first result on the screen.

    asked: to the result of ASKED, where the address asks for it.
    """
    context = browser.new_context()
    page = context.new_page()
    sizes = []
    page.on("requestfinished", lambda request: sizes.append(request.sizes()))
    page.add_init_script(path=HERE / "page_probe.js")
    page.goto(address, wait_until="networkidle")
    sample = {"visible": page.evaluate("benchmark.visible")}
    if ASKED in address:
        _until(page, "benchmark.asked")
        sample["asked"] = page.evaluate("benchmark.asked")
    context.close()
    return sample | {
        "requests": len(sizes),
        "bytes": sum(each["responseHeadersSize"] + each["responseBodySize"] for each in sizes),
    }


def _bytes_sent(browser: Browser, address: str) -> int:
    """What the static page's host sends for one first visit, its service worker's requests and an edit included."""
    context = browser.new_context()
    before = int(context.request.get(address + "-/sent").text())
    page = context.new_page()
    page.goto(address, wait_until="networkidle")
    _until(page, "!!navigator.serviceWorker.controller")
    page.fill("#target_batch", "640")
    _until(page, "document.title.includes('640')")
    after = int(context.request.get(address + "-/sent").text())
    context.close()
    return after - before


class Editor:
    """Types into a page, a key at each call: a digit at the end of a field, then Backspace, then the next field."""

    def __init__(self, page: Page, fields: Sequence[str]) -> None:
        self._page = page
        digits = itertools.cycle("123456789")
        self._keys = ((field, key) for field in itertools.cycle(fields) for key in (next(digits), "Backspace"))

    def edit(self) -> Sample:
        """Milliseconds from the input event to the new answer, to the last change, and to the frame that shows it."""
        field, key = next(self._keys)
        self._page.focus(f"#{field}")
        self._page.keyboard.press("End")
        self._page.evaluate("benchmark.expect()")
        self._page.keyboard.press(key)
        late = f"new Promise((_, reject) => setTimeout(() => reject('no result changed'), {PATIENCE * 1000}))"
        sample: Sample = self._page.evaluate(f"Promise.race([benchmark.settled, {late}])")
        return sample


def _until(page: Page, condition: str) -> None:
    """Asks from outside: the page's own rules allow no script to be made from text."""
    for _ in range(PATIENCE * 20):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    sys.exit(f"{condition} never held")


def _open(browser: Browser, address: str) -> Page:
    page = browser.new_page()
    page.add_init_script(path=HERE / "page_probe.js")
    page.goto(address, wait_until="networkidle")
    return page


def _column(samples: Mapping[str, Sequence[Sample]], key: str) -> dict[str, list[float]]:
    """The times of every site that has them: without a server there is no request."""
    return {name: [each[key] for each in found] for name, found in samples.items() if key in found[0]}


def _beside(times: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    """Every site, and the served page's ratio to the bare one turn by turn."""
    found = {name: spread(times[name]) for name in (OURS, STATIC, BARE) if name in times}
    return found | ({"ratio": spread(ratios(times[OURS], times[BARE]))} if BARE in times else {})


def _row(name: str, found: Mapping[str, Spread]) -> list[str]:
    cells = [
        f"{found[site][each]:.1f}" if site in found else ""
        for site in (OURS, STATIC, BARE)
        for each in ("median", "p95")
    ]
    return [name, *cells, f"{found['ratio']['median']:.2f}" if "ratio" in found else ""]


if __name__ == "__main__":
    main()
