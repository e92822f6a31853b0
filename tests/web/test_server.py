"""The served page and API over ASGI: the contract, refusals, headers, hosts, and hostile values on every route."""

from __future__ import annotations

import html
import json
from urllib.parse import quote, urlencode

import pytest
from starlette.testclient import TestClient

import gradaccum
from gradaccum.core.fields import FIELDS
from gradaccum.web.openapi import openapi
from gradaccum.web.server import ASSETS, create_app

ROUTES = ["/", "/live", "/live/rest", "/api/plan", "/api/table"]


@pytest.fixture(scope="module")
def client():
    return TestClient(create_app(), base_url="http://127.0.0.1:8000")


# The contract


def test_a_plan_is_the_object_of_the_python_api(client):
    inputs = {"micro_batch": 4, "num_gpus": 8, "target_batch": 500, "sequence_length": 2048}
    answer = client.get("/api/plan", params=inputs)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == json.loads(json.dumps(gradaccum.plan(**inputs).to_dict()))


def test_names_and_values_of_the_design(client):
    shown = client.get("/api/plan?micro_batch=4&num_gpus=8&target_batch=500&sequence_length=2048").json()
    wanted = {
        "schema_version": 1, "micro_batch": 4, "num_gpus": 8, "tensor_parallel": 1, "pipeline_parallel": 1,
        "context_parallel": 1, "data_parallel": 8, "target_batch": 500, "target_tokens": None, "rounding": "round",
        "device_batch": 32, "accum_steps": 16, "effective_batch": 512, "drift": 12, "drift_percent": "2.40",
        "sequence_length": 2048, "tokens_per_step": 1048576, "last_micro_batch": 4, "updates": None,
    }  # fmt: skip
    assert {name: shown[name] for name in wanted} == wanted
    assert shown["neighbours"][0] == {
        "rounding": "floor", "accum_steps": 15, "effective_batch": 480, "drift": -20, "drift_tokens": None,
    }  # fmt: skip


def test_missing_inputs_take_the_pages_defaults(client):
    assert client.get("/api/plan").json()["effective_batch"] == 512
    assert client.get("/api/plan?accum_steps=2&target_batch=").json()["target_batch"] == 64


def test_integers_are_exact_at_any_size(client):
    micro, target = 10**60 + 7, 10**99 + 1
    shown = client.get(f"/api/plan?micro_batch={micro}&num_gpus=3&target_batch={target}").json()
    steps = (2 * target + 3 * micro) // (6 * micro)
    assert (shown["accum_steps"], shown["effective_batch"]) == (steps, steps * 3 * micro)


def test_a_preset_reads_like_on_the_page(client):
    assert client.get("/api/plan?preset=bloom-176b").json()["accum_steps"] == 128


def test_wrong_fields_are_named_one_by_one(client):
    answer = client.get("/api/plan?micro_batch=0&num_gpus=x&target_batch=5&target_batch=6&foo=1")
    assert answer.status_code == 422
    errors = {each["field"]: each for each in answer.json()["errors"]}
    assert list(errors) == ["target_batch", "foo", "micro_batch", "num_gpus"]
    assert errors["micro_batch"] == {
        "field": "micro_batch", "message": "must be at least 1, not 0", "nearest": ["1"],
    }  # fmt: skip
    assert "twice" in errors["target_batch"]["message"]


def test_a_table_is_sorted_by_drift(client):
    rows = client.get("/api/table?micro_batch=1..6&num_gpus=8,16").json()["rows"]
    assert len(rows) == 12
    assert [abs(row["drift"]) for row in rows] == sorted(abs(row["drift"]) for row in rows)
    assert all(row["drift"] == row["micro_batch"] * row["num_gpus"] * row["accum_steps"] - 500 for row in rows)


@pytest.mark.parametrize(
    "query", ["micro_batch=1..1000000000", "micro_batch=1..10000&num_gpus=8,16", "foo=1", "micro_batch=x,y"]
)
def test_a_table_too_long_or_wrong_is_refused(client, query):
    answer = client.get("/api/table?" + query)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["message"]


def test_the_description_names_every_input_and_is_served(client):
    described = client.get("/openapi.json").json()
    assert described == json.loads(json.dumps(openapi()))
    for path in ("/api/plan", "/api/table"):
        named = [each["name"] for each in described["paths"][path]["get"]["parameters"]]
        assert named == [*[spec.name for spec in FIELDS], "preset"]


def test_the_schema_of_a_plan_names_every_property(client):
    properties = openapi()["components"]["schemas"]["Plan"]["properties"]
    assert set(properties) == set(client.get("/api/plan").json())


def test_health(client):
    assert client.get("/healthz").text == "ok"


# HTTP


@pytest.mark.parametrize("path", [*ROUTES, "/openapi.json", "/healthz", *[f"/static/{name}" for name in ASSETS]])
def test_head_is_get_without_a_body(client, path):
    got, head = client.get(path), client.head(path)
    assert got.status_code == head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == got.headers["content-length"] == str(len(got.content))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_reading_is_allowed(client, method):
    answer = client.request(method, "/api/plan", content=b"x" * 100)
    assert answer.status_code == 405
    assert answer.text == "Method Not Allowed\n"
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("path", ["/nothing", "/static/", "/static/../server.py", "/static/%2e%2e/page.py", "/api"])
def test_elsewhere_is_nothing(client, path):
    answer = client.get(path)
    assert (answer.status_code, answer.text) == (404, "Not Found\n")


@pytest.mark.parametrize("name", ASSETS)
def test_the_pages_files_are_asked_for_again_and_kept(client, name):
    answer = client.get(f"/static/{name}")
    assert len(answer.content) > 100
    assert answer.headers["content-type"].split(";")[0] == ASSETS[name][1]
    assert answer.headers["cache-control"] == ("max-age=3600" if name == "icon.svg" else "no-cache")
    again = client.get(f"/static/{name}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(f"/static/{name}", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", [*ROUTES, "/nothing", "/static/page.js", "/api/plan?micro_batch=0"])
def test_every_answer_is_guarded(client, path):
    headers = client.get(path).headers
    policy = dict(each.strip().split(" ", 1) for each in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert "set-cookie" not in headers


def test_a_frame_is_allowed_with_embed_alone(client):
    def framing(path):
        headers = client.get(path).headers
        return headers["content-security-policy"].rpartition("frame-ancestors ")[2], headers.get("x-frame-options")

    assert framing("/?embed=1&micro_batch=3") == ("*", None)
    for path in ("/", "/?embed=0", "/?xembed=1", "/?loop=embed=1", "/api/plan?embed=1", "/live?embed=1"):
        assert framing(path) == ("'none'", "DENY"), path


# Who asks


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9000", "localhost", "LOCALHOST:1", "[::1]:8000", "[::1]"])
def test_loopback_names_are_ours(client, host):
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "[",
        "[::2]",
    ],
)
def test_a_foreign_host_is_refused(client, host):
    answer = client.get("/api/plan", headers={"Host": host})
    assert answer.status_code == 421
    assert answer.text == "This server answers to 127.0.0.1, ::1, localhost alone.\n"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_two_host_headers_are_refused(client):
    assert client.get("/", headers=[("Host", "localhost"), ("Host", "evil.example")]).status_code == 421


def test_bound_to_every_interface_any_address_is_ours_but_no_foreign_name():
    client = TestClient(create_app({"localhost", "*", "my-machine"}))
    for host, code in [("10.1.2.3:80", 200), ("[fe80::1]", 200), ("my-machine", 200), ("evil.example", 421)]:
        assert client.get("/healthz", headers={"Host": host}).status_code == code


# Hostile values, in every field, on every route

VALUES = {
    "script": "<script>alert(1)</script>",
    "breaking out": "\"'><img src=x onerror=alert(1)>",
    "all digits that a client sends": "9" * 60_000,
    "100 digits": "9" * 100,
    "101 digits": "9" * 101,
    "nan": "NaN",
    "infinity": "-Infinity",
    "negative": "-5",
    "zero": "0",
    "empty": "",
    "blank": "  ",
    "arabic digits": "\u0661\u0662",
    "superscript": "\u00b2",
    "full width": "\uff14",
    "nul": "\x00",
    "right to left": "\u202e4",
    "half a surrogate": "\udc80",
    "a huge exponent": "1e999999999",
    "a tiny one": "1e-999999999",
    "a tower": "9^999",
    "a huge range": "1..1000000000",
    "an endless list": "1,2," * 300,
    "decimals": "4.5",
    "true": "true",
    "a json object": '{"a":1}',
    "a percent": "%",
}
NAMES = [*[spec.name for spec in FIELDS], "preset", "loop", "weighting", "embed", "<b>foo</b>"]


def encoded(name, value):
    return quote(name) + "=" + quote(value, errors="surrogateescape")


@pytest.mark.slow  # every value in every field on every route
@pytest.mark.parametrize("what", VALUES)
@pytest.mark.parametrize("route", ROUTES)
def test_hostile_values_are_answered_and_never_echoed_as_markup(client, route, what):
    value = VALUES[what]
    names = NAMES if len(value) < 1000 else NAMES[:2]
    for name in names:
        answer = client.get(f"{route}?{encoded(name, value)}")
        assert answer.status_code in ((200, 422) if route.startswith("/api") else (200,)), (name, answer.status_code)
        if route == "/":
            assert "<script>alert" not in answer.text
            assert "<img" not in answer.text
            assert "<b>foo" not in answer.text
            if "<" in value and name in ("micro_batch", "epochs"):
                assert html.escape(value).replace("&#x27;", "&#39;") in answer.text
        else:
            json.loads(answer.text)
        if answer.status_code == 422:
            fields = [each["field"] for each in answer.json()["errors"]]
            assert len(fields) == len(set(fields))


@pytest.mark.parametrize("route", ROUTES)
def test_hostile_values_in_all_fields_at_once_and_repeated_names(client, route):
    for value in VALUES.values():
        if len(value) < 50:
            query = "&".join(encoded(name, value) for name in NAMES)
            assert client.get(f"{route}?{query}").status_code in (200, 422)
    for name in NAMES:
        answer = client.get(f"{route}?{encoded(name, '4')}&{encoded(name, '4')}")
        assert answer.status_code == (422 if route.startswith("/api") else 200)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "query", ["&&&", "=", "=&=", "a", "%", "%zz=%zz", "micro_batch", "?", "micro_batch=%FF", "\u00e9=1", "a=" * 900]
)
def test_broken_queries_are_answered(client, route, query):
    assert client.get(f"{route}?{query}").status_code in (200, 422)


def test_a_query_beyond_the_bound_is_refused_unread(client):
    answer = client.get("/api/plan?" + urlencode({"micro_batch": "1" * 5000}))
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"field": "", "message": "the query has 5,012 characters; at most 2000 are read", "nearest": []}
    ]
