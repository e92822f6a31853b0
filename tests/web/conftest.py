"""A served page and a browser for the tests of each module; what a page may not do fails the test that opened it."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

WIDE = {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def address():
    """Of `gradaccum serve`."""
    command = [sys.executable, "-m", "gradaccum", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@contextmanager
def visiting(chromium, home):
    """visit(query, **context): a page at `home` on which every complaint and every foreign request fails the test."""
    contexts, complaints = [], []

    def open_page(query="", before=lambda page: None, until="load", **options):
        context = chromium.new_context(**{"viewport": WIDE, **options})
        contexts.append(context)

        def route(request):
            if urlsplit(request.request.url).hostname in ("127.0.0.1", None):
                request.fallback()
            else:
                complaints.append(f"asked for {request.request.url}")
                request.abort()

        context.route("**/*", route)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        before(page)
        page.goto(home + (f"?{query}" if query else ""), wait_until=until)
        return page

    open_page.complaints = complaints
    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def visit(chromium, address):
    with visiting(chromium, address) as open_page:
        yield open_page
