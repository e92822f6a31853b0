"""The Starlette app: the page, what an edit changes, and the JSON API, all over `page.py`.

    GET /                 the page                    GET /api/plan     one plan as JSON
    GET /live[/rest|/fit] what an edit changes        GET /api/table    a bounded sweep as JSON
    GET /static/...       stylesheet, script, icon    GET /api/fit      what fits, as JSON
    POST /trace           a traced fit, see trace.py  GET /openapi.json, /healthz

Else GET and HEAD alone; no state, no cookie, no log. Every answer carries a strict Content-Security-Policy, and a
request to a host name that is not ours is refused (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import ipaddress
import os

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gradaccum.core.plan import SCHEMA_VERSION
from gradaccum.core.sweep import sweep
from gradaccum.errors import InputError
from gradaccum.web.fit import fit_or_errors, render_fit
from gradaccum.web.openapi import openapi
from gradaccum.web.page import plan_or_errors, read, render_live, render_page, render_rest
from gradaccum.web.trace import Traces, can_trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")

ASSETS = {
    "page.css": ("show", "text/css"),
    "page.js": ("web", "text/javascript"),
    "ask.js": ("web", "text/javascript"),
    "trace.js": ("web", "text/javascript"),
    "icon.svg": ("web", "image/svg+xml"),
}
"""The page's files, the room that each lies in, and its media type."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors "
)

FRESH = {"Cache-Control": "no-cache"}
"""A browser may keep it, and asks again each time: a new version of the package shows at once."""

KEPT = {"Cache-Control": "max-age=3600"}
"""The icon, which a browser would else ask for whenever the address changes."""


def create_app(hosts: Collection[str] = LOOPBACK) -> Starlette:
    """The app. hosts: the names and addresses that it answers to, whatever the port; "*" is any address, no name."""
    return Starlette(
        routes=[
            Route("/", _page),
            Route("/live", _live),
            Route("/live/rest", _rest),
            Route("/live/fit", _fit),
            Route("/live/fit/panel", _fit_panel),
            Route("/api/plan", _plan),
            Route("/api/table", _table),
            Route("/api/fit", _api_fit),
            Route("/trace", Traces().trace, methods=["POST"]),
            Route("/openapi.json", _openapi),
            Route("/healthz", _health),
            *[Route(f"/static/{name}", _asset(room, name, kind)) for name, (room, kind) in ASSETS.items()],
        ],
        middleware=[Middleware(Guard, hosts=frozenset(hosts))],
        exception_handlers={HTTPException: _refused},
    )


async def _page(request: Request) -> Response:
    return Response(render_page(request.url.query, tracing=can_trace()), media_type="text/html", headers=FRESH)


async def _live(request: Request) -> Response:
    return JSONResponse(render_live(request.url.query))


async def _rest(request: Request) -> Response:
    return JSONResponse(render_rest(request.url.query))


async def _fit(request: Request) -> Response:
    return JSONResponse(render_fit(request.url.query, tracing=can_trace()))


async def _fit_panel(request: Request) -> Response:
    return JSONResponse(render_fit(request.url.query, whole=True, tracing=can_trace()))


async def _api_fit(request: Request) -> Response:
    ok, found = fit_or_errors(request.url.query)
    return JSONResponse(found, 200 if ok else 422)


async def _plan(request: Request) -> Response:
    ok, found = plan_or_errors(request.url.query)
    return JSONResponse(found, 200 if ok else 422)


def _table(request: Request) -> Response:
    """A plain function, so that Starlette runs it beside the event loop: a full sweep takes a while."""
    values, _, _, _, problems = read(request.url.query)
    if problems:
        return _wrong(InputError(*problems))
    try:
        rows = sweep(values)
    except InputError as error:
        return _wrong(error)
    found = [row.to_dict() for row in rows]
    return JSONResponse({"schema_version": SCHEMA_VERSION, "total": len(found), "rows": found})


async def _openapi(request: Request) -> Response:
    return JSONResponse(openapi(), headers=FRESH)


async def _health(request: Request) -> Response:
    return PlainTextResponse("ok")


def _wrong(error: InputError) -> Response:
    return JSONResponse({"errors": [problem.to_dict() for problem in error.problems]}, status_code=422)


async def _refused(request: Request, error: Exception) -> Response:
    """404 and 405 in one plain line."""
    assert isinstance(error, HTTPException)
    return PlainTextResponse(error.detail + "\n", error.status_code, error.headers)


def _asset(room: str, name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of one file, which is read once. A browser that holds this version is told so."""
    with open(os.path.join(os.path.dirname(os.path.dirname(__file__)), room, name), "rb") as file:
        content = file.read()
    headers = {
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"',
        **(KEPT if name == "icon.svg" else FRESH),
    }

    async def send(request: Request) -> Response:
        if headers["ETag"] in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return send


class Guard:
    """Around every request: refuses foreign hosts, and adds the headers that keep the page safe."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        framed = scope["path"] == "/" and b"embed=1" in scope["query_string"].split(b"&")

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY + ("*" if framed else "'none'")
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                if not framed:
                    headers["X-Frame-Options"] = "DENY"
            await send(message)

        answer_with: ASGIApp = self.app
        if not self._is_ours(_host_of(scope)):
            names = ", ".join(sorted(self.hosts))
            answer_with = PlainTextResponse(f"This server answers to {names} alone.\n", 421)
        await answer_with(scope, receive, send_guarded)

    def _is_ours(self, host: str) -> bool:
        return host in self.hosts or ("*" in self.hosts and _is_address(host))


def _host_of(scope: Scope) -> str:
    """The Host header without its port; "" where there is none, or more than one."""
    values = [value for name, value in scope["headers"] if name == b"host"]
    if len(values) != 1:
        return ""
    host: str = values[0].decode("latin-1").lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(host: str) -> bool:
    """Whether it is an IP address: an attacker's page can rebind a name, not an address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
