"""POST /trace: what fits by a trace of the model's real step, which a person asks for and waits for.

The trace is `gradaccum fit --engine both` in a process of its own, so that the server imports no torch, and a trace
that goes astray takes nothing with it. It runs presets of the catalog alone, never code that a visitor names; for this
page alone, one at a time, with a limit on time and on memory; and it ends when nobody waits for it any longer.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import os
import signal
import sys
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from gradaccum.core.query import MAX_QUERY
from gradaccum.show.fit_panel import traced_parts
from gradaccum.web.fit import applying, fit_answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from gradaccum.web.fit import FitAnswer

SECONDS = 120
"""How long a trace may take."""

MEMORY = 4 * 2**30
"""Bytes that its process may have, where the operating system lets a process be bound (Linux)."""


@functools.cache
def can_trace() -> bool:
    """Whether what a trace needs is installed here. It is looked for, not imported."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


class Traces:
    """The endpoint, and whether a trace is running."""

    def __init__(self) -> None:
        self.running = False

    async def trace(self, request: Request) -> Response:
        """403 for another page, 422 for wrong input, 409 while one is running; else a stream of JSON lines.

        A line holds `seconds` while it runs, and at last `html` or `error`.
        """
        if not _is_own(request):
            return PlainTextResponse("A trace is started by this server's own page alone.\n", 403)
        query = await _body(request)
        if query is None:
            return PlainTextResponse(f"A query has at most {MAX_QUERY} characters.\n", 413)
        found = fit_answer(query)
        if found.fit is None:
            return JSONResponse({"errors": [problem.to_dict() for problem in found.problems]}, 422)
        if self.running:
            return PlainTextResponse("A trace is running already. One at a time: try again when it has ended.\n", 409)
        self.running = True
        return _Stream(self, _lines(found))


class _Stream(StreamingResponse):
    """The answer, after which the next trace may start, however this one ended."""

    def __init__(self, traces: Traces, lines: AsyncIterator[bytes]) -> None:
        super().__init__(lines, media_type="application/x-ndjson")
        self.traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.traces.running = False


def _is_own(request: Request) -> bool:
    """Whether a page of this very origin asks. A browser says so, and no page can make it say otherwise."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return urlsplit(request.headers.get("origin", "")).netloc == request.headers.get("host")


async def _body(request: Request) -> str | None:
    """The query in the request's body; None where it is too long."""
    read = b""
    async for part in request.stream():
        read += part
        if len(read) > MAX_QUERY:
            return None
    return read.decode("latin-1")


def _command(found: FitAnswer) -> list[str]:
    """The command line of the trace: names of the catalog, words of ours and numbers, none of them as it was typed."""
    assert found.fit is not None
    gpu = found.fit.gpu
    memory = f"{gpu.memory_bytes}bytes" if gpu.usable_from == "given" else gpu.id
    words = ["--model", found.fit.setup.name, "--gpu", memory]
    for name, value in found.how.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return [sys.executable, "-m", "gradaccum", "fit", *words, "--engine", "both", "--json"]


async def _lines(found: FitAnswer) -> AsyncIterator[bytes]:
    """How long it has been running, each second; then what came of it."""
    process = await asyncio.create_subprocess_exec(
        *_command(found),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    start = asyncio.get_running_loop().time()
    reading = asyncio.ensure_future(process.communicate())
    try:
        _bind(process.pid)
        while (passed := asyncio.get_running_loop().time() - start) < SECONDS:
            yield _line(seconds=int(passed), limit=SECONDS)
            await asyncio.wait([reading], timeout=1)
            if reading.done():
                yield _outcome(found, process.returncode, *reading.result())
                return
        _kill(process)
        await reading
        yield _line(error=f"The trace took longer than {SECONDS} seconds and was stopped.")
    finally:
        if not reading.done():
            _kill(process)  # `reading` ends with it


def _outcome(found: FitAnswer, code: int | None, out: bytes, err: bytes) -> bytes:
    if code == 0:
        assert found.fit is not None
        shown = traced_parts(json.loads(out), found.fit.gpu.name, applying(found.asked))
        return _line(html=str(shown))
    said = err.decode(errors="replace").strip().splitlines()
    why = said[-1].removeprefix("gradaccum: ")[:500] if said else f"its process ended with status {code}"
    return _line(error=f"There is no trace: {why}")


def _line(**content: object) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _bind(process: int) -> None:
    """Bound the memory of a process, where that can be done from outside."""
    try:
        import resource

        resource.prlimit(process, resource.RLIMIT_DATA, (MEMORY, MEMORY))
    except (ImportError, AttributeError, OSError):
        pass  # no such call here, or the process has ended already


def _kill(process: asyncio.subprocess.Process) -> None:
    """End the process and what it has started."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except ProcessLookupError:
        pass
