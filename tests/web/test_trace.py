"""The trace on demand: who may ask, one at a time, its limits, and what is said. A stand-in takes the trace's place."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

import gradaccum
from gradaccum.web import trace
from gradaccum.web.fit import fit_answer
from gradaccum.web.server import create_app

OWN = {"Origin": "http://127.0.0.1:8000"}
ASKED = "model=gpt2&gpu=t4&num_gpus=1&target_batch=64"


@pytest.fixture
def client():
    return TestClient(create_app(), base_url="http://127.0.0.1:8000")


@pytest.fixture
def stand_in(monkeypatch):
    """stand_in(code): a trace is this Python code."""
    return lambda code: monkeypatch.setattr(trace, "_command", lambda found: [sys.executable, "-c", code])


def post(client, query=ASKED, **headers):
    return client.post("/trace", content=query, headers={**OWN, **headers})


def lines(answer):
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.splitlines()]


def test_the_command_is_made_of_names_of_ours():
    asked = "model=Meta+Llama+3.2+1B&gpu=24GiB&num_gpus=8&sequence_length=1k&optimizer=sgd&strategy=fsdp2"
    command = trace._command(fit_answer(asked.replace("Meta+", "meta-llama/")))
    assert command[:4] == [sys.executable, "-m", "gradaccum", "fit"]
    pairs = dict(zip(command[4:-1:2], command[5::2]))
    assert (
        pairs.items()
        >= {
            "--model": "llama-3.2-1b",
            "--gpu": f"{24 * 2**30}bytes",
            "--num-gpus": "8",
            "--sequence-length": "1000",
            "--optimizer": "sgd",
            "--strategy": "fsdp2",
            "--engine": "both",
        }.items()
    )
    assert command[-1] == "--json"


def test_what_was_traced_is_shown(client, stand_in):
    found = json.dumps(gradaccum.fit(model="gpt2", gpu="t4", target_batch=64).to_dict())
    stand_in(f"import time; time.sleep(1.2); print({found!r})")
    first, *between, last = lines(post(client))
    assert first == {"seconds": 0, "limit": trace.SECONDS}
    assert [each["seconds"] for each in between] == [1]
    assert "By a trace of the real step" in last["html"]
    assert "memory-bar" in last["html"]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys; sys.stderr.write('one\\ngradaccum: no torch here\\n'); sys.exit(2)", "no torch here"),
        ("import sys; sys.exit(3)", "its process ended with status 3"),
        ("import sys; sys.stderr.write('<b>' * 9999); sys.exit(1)", "<b>" * 166 + "<b"),
    ],
)
def test_where_there_is_no_trace_it_says_why(client, stand_in, code, why):
    stand_in(code)
    assert lines(post(client))[-1] == {"error": f"There is no trace: {why}"}


def test_it_is_stopped_when_it_takes_too_long(client, stand_in, monkeypatch):
    monkeypatch.setattr(trace, "SECONDS", 1)
    stand_in("import time; time.sleep(60)")
    before = time.monotonic()
    assert lines(post(client))[-1] == {"error": "The trace took longer than 1 seconds and was stopped."}
    assert time.monotonic() - before < 30


@pytest.mark.skipif(sys.platform != "linux", reason="no other system binds a process from outside")
def test_its_memory_is_bounded(client, stand_in):
    code = "import resource, sys, time; time.sleep(.5); sys.exit(str(resource.getrlimit(resource.RLIMIT_DATA)))"
    stand_in(code)
    assert lines(post(client))[-1]["error"].endswith(f"({trace.MEMORY}, {trace.MEMORY})")


def test_where_no_process_can_be_bound_it_runs_all_the_same(monkeypatch):
    import resource

    monkeypatch.delattr(resource, "prlimit", raising=False)
    trace._bind(os.getpid())


def test_where_there_are_no_groups_the_process_alone_is_ended(monkeypatch):
    async def ended():
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
        trace._kill(process)
        code = await process.wait()
        trace._kill(process)  # once more, when it is gone already
        return code

    monkeypatch.delattr(os, "killpg")
    assert asyncio.run(ended()) != 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": ""},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:8001"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_no_other_page_can_start_one(client, stand_in, headers):
    stand_in("raise SystemExit('started')")
    answer = post(client, **headers)
    assert (answer.status_code, answer.text) == (403, "A trace is started by this server's own page alone.\n")


def test_a_browser_behind_a_proxy_is_our_page_by_its_own_word(client, stand_in):
    stand_in("raise SystemExit('started')")
    answer = post(client, **{"Origin": "https://example.org", "Sec-Fetch-Site": "same-origin"})
    assert "started" in answer.text


def test_reading_starts_none(client):
    assert client.get("/trace?" + ASKED).status_code == 405


@pytest.mark.parametrize(
    ("query", "code"), [("model=os:system&gpu=t4", 422), ("", 422), ("model=gpt2&gpu=t4&a=1", 422), ("x" * 2001, 413)]
)
def test_wrong_input_starts_none(client, stand_in, query, code):
    stand_in("raise SystemExit('started')")
    answer = post(client, query)
    assert answer.status_code == code
    assert "started" not in answer.text


# With a real server, whose connections can be cut


@pytest.fixture
def traced():
    """What the traces of this test connect to: an open connection is one that runs."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        yield listening


@pytest.fixture
def asked(traced):
    """The address of a server whose trace holds a connection to `traced` for as long as it lives."""
    holds = f"import socket, time\nheld = socket.create_connection({traced.getsockname()!r})\ntime.sleep(50)"
    code = (
        f"import sys\nfrom gradaccum.web import trace\nholds = {holds!r}\n"
        "trace._command = lambda found: [sys.executable, '-c', holds]\n"
        "from gradaccum.web.serve import serve\nserve(port=0)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip()
        server.terminate()


@pytest.mark.slow
def test_one_runs_at_a_time_and_ends_with_its_connection(asked, traced):
    host, port = urlsplit(asked).hostname, urlsplit(asked).port

    @contextlib.contextmanager
    def request(until):
        """A trace is asked for, and its answer read until it holds these words."""
        with socket.create_connection((host, port), timeout=60) as connection:
            head = f"POST /trace HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: http://{host}:{port}\r\n"
            connection.sendall(f"{head}Content-Length: {len(ASKED)}\r\n\r\n{ASKED}".encode())
            said = ""
            while until not in said and (part := connection.recv(4096)):
                said += part.decode()
            assert until in said
            yield

    with request('"seconds"'):
        one, _ = traced.accept()
        with request(" 409 "):
            pass
    with one:
        one.settimeout(30)  # well before it would end by itself
        assert one.recv(1) == b"", "the trace ends with the connection of the one who asked"
    with request('"seconds"'):
        another, _ = traced.accept()
    with another:
        another.settimeout(30)
        assert another.recv(1) == b""
    traced.settimeout(0)
    with pytest.raises(BlockingIOError):
        traced.accept()  # nothing was started for the one that was refused
