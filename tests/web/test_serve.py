"""`gradaccum serve` as a process of its own, and its refusals."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from gradaccum.errors import InputError, MissingExtraError
from gradaccum.web import serve as serving

pytestmark = pytest.mark.slow  # each starts a server of its own

SECONDS = 30


class Running:
    """A server process; `url` is the line that it prints."""

    def __init__(self, *flags: str) -> None:
        # -u would hide a missing flush.
        command = [sys.executable, "-m", "gradaccum", "serve", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        assert ready, "no address was printed"
        self.url = self.process.stdout.readline().strip()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def get(self, path: str = "") -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=SECONDS) as answer:
            return answer.read()

    def end(self, number: int) -> tuple[int, str, str]:
        self.process.send_signal(number)
        rest, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, rest, errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_address_is_printed_answers_at_once_and_a_signal_ends_it_cleanly(number):
    with Running("--port", "0") as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert server.get("healthz") == b"ok"
        assert b"<h1>" in server.get()
        assert server.end(number) == (0, "", "")


def test_a_taken_port_makes_way_for_a_free_one():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Running("--port", str(port)) as server:
            assert server.url != f"http://127.0.0.1:{port}/"
            assert server.get("healthz") == b"ok"
            code, _, errors = server.end(signal.SIGINT)
    own = server.url.rstrip("/").rpartition(":")[2]
    assert (code, errors) == (0, f"gradaccum: port {port} is in use; the page is on port {own}\n")


def test_it_ends_though_a_connection_stays_open():
    with Running("--port", "0") as server:
        port = int(server.url.rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as idle:
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert idle.recv(100)
            assert server.end(signal.SIGINT)[0] == 0


def test_a_million_digits_are_refused_at_once():
    with Running("--port", "0") as server:
        port = int(server.url.rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
            started = time.monotonic()
            request = b"GET /api/plan?micro_batch=" + b"9" * 10**6 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
            with pytest.MonkeyPatch.context():
                try:
                    connection.sendall(request)
                    answer = connection.recv(1000)
                except OSError:  # closed while we were still sending
                    answer = b"HTTP/1.1 400 "
            assert answer.startswith(b"HTTP/1.1 4")
            assert time.monotonic() - started < 5
        assert server.get("healthz") == b"ok"


def test_small_answers_do_not_wait_for_an_acknowledgement():
    """Nagle's algorithm and delayed acknowledgements together would cost 40 ms for each request."""
    listener = serving.listen("127.0.0.1", 0)
    with listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# In this process


def test_listening_where_it_cannot_be_done_says_why():
    with pytest.raises(InputError, match=r"--port: is a number up to 65535, not 70000; nearest: 8000"):
        serving.listen("127.0.0.1", 70000)
    with pytest.raises(InputError, match=r"--host: cannot listen on '203\.0\.113\.1'"):
        serving.listen("203.0.113.1", 0)
    with pytest.raises(InputError, match=r"--host: is empty; nearest: 127\.0\.0\.1"):
        serving.listen("", 0)
    with pytest.raises(InputError, match="--host: cannot listen on 'no such host'"):
        serving.listen("no such host", 0)


def test_a_port_that_needs_privileges_says_so(monkeypatch):
    def refuse(*_: object, **__: object) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(InputError, match="--port: 80 may not be used without privileges"):
        serving.listen("127.0.0.1", 80)


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_the_extra_it_says_what_to_install(monkeypatch, package):
    for name in list(sys.modules):
        if name.partition(".")[0] == package or name == "gradaccum.web.server":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package {package}.*pip install 'gradaccum\[web\]'"):
        serving.serve(port=0)


def test_open_shows_the_address_in_a_browser(monkeypatch):
    import webbrowser

    opened = threading.Event()
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.set() if address == "http://x/" else None)
    serving.open_in_browser("http://x/")
    assert opened.wait(SECONDS)


def test_serving_in_this_process_until_a_signal(capsys, monkeypatch):
    """The same as above without a child, on every interface, and with a browser asked for."""
    import webbrowser

    def visit(address):
        with urllib.request.urlopen(address.replace("0.0.0.0", "127.0.0.1"), timeout=SECONDS) as answer:
            pages.append(answer.status)
        os.kill(os.getpid(), signal.SIGTERM)

    pages = []
    monkeypatch.setattr(webbrowser, "open", visit)
    before = signal.getsignal(signal.SIGTERM)
    assert serving.serve(host="0.0.0.0", port=0, open_browser=True) == 0
    assert pages == [200]
    assert capsys.readouterr().out.startswith("http://0.0.0.0:")
    assert signal.getsignal(signal.SIGTERM) is before
