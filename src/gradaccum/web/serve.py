"""`serve()`: the live page on this machine, until Ctrl-C."""

from __future__ import annotations

import errno
import signal
import socket
import sys
import threading

from gradaccum.errors import InputError, MissingExtraError, Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    import uvicorn

ANY = ("0.0.0.0", "::")
"""Addresses that stand for every interface of the machine."""


def serve(host: str = "127.0.0.1", port: int = 8000, open_browser: bool = False) -> int:
    """Serve the page until Ctrl-C or SIGTERM, then return 0. The address goes to stdout, remarks to stderr.

    host: the address to listen on. port: a free one is taken where it is 0, or in use. Raises InputError where the
    machine cannot listen there, MissingExtraError without the extra `web`.
    """
    try:
        import uvicorn

        from gradaccum.web.server import LOOPBACK, create_app
    except ModuleNotFoundError as missing:
        raise MissingExtraError("The live page", "web", missing.name or "starlette") from missing
    listener = listen(host, port)
    own_port = listener.getsockname()[1]
    if port not in (0, own_port):
        sys.stderr.write(f"gradaccum: port {port} is in use; the page is on port {own_port}\n")
    address = f"http://{f'[{host}]' if ':' in host else host}:{own_port}/"
    sys.stdout.write(address + "\n")
    sys.stdout.flush()
    hosts = [*LOOPBACK, host.lower()]
    if host in ANY:
        hosts += ["*", socket.gethostname().lower()]
    config = uvicorn.Config(
        create_app(hosts),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    if open_browser:
        open_in_browser(address)
    _run(uvicorn.Server(config), listener)
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens already, so that the address holds as soon as it is printed. Raises InputError."""
    if not 0 <= port <= 65535:
        raise InputError(Problem("--port", f"is a number up to 65535, not {port}", ["8000"]))
    if not host:  # the operating system would take it for every interface
        raise InputError(Problem("--host", "is empty", ["127.0.0.1"]))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and port:
            return listen(host, 0)
        if error.errno == errno.EACCES:
            raise InputError(Problem("--port", f"{port} may not be used without privileges", ["8000"])) from None
        why = error.strerror or str(error)
        raise InputError(Problem("--host", f"cannot listen on {host[:80]!r}: {why}", ["127.0.0.1"])) from None
    # Every connection inherits it. Without it the body would wait 40 ms for the acknowledgement of the headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def open_in_browser(address: str) -> None:
    """Beside the server: some browsers return only when they are closed."""
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until a signal. uvicorn raises a signal again once it has ended; here that is a clean end, not a death."""

    def end(*_: object) -> None:
        server.should_exit = True

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = [(each, signal.signal(each, end)) for each in signals]
    try:
        server.run(sockets=[listener])
    finally:
        for each, handler in before:
            signal.signal(each, handler)
        listener.close()
