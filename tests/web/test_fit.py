"""From a query to what fits: the API, the panel, what is shared with the calculator, and wrong input. No server."""

from __future__ import annotations

import json
from dataclasses import fields
from urllib.parse import quote

import jsonschema_rs
import pytest
from starlette.testclient import TestClient

import gradaccum
from gradaccum.core.fields import BY_NAME
from gradaccum.errors import InputError
from gradaccum.memory.setup import CHOICES, Setup
from gradaccum.web.fit import _value, applying, fit_or_errors, render_fit
from gradaccum.web.fit_options import FLAG, NAMES, WORD
from gradaccum.web.openapi import openapi
from gradaccum.web.page import answer, plan_or_errors, render_page
from gradaccum.web.server import create_app
from gradaccum.web.trace import can_trace
from tests.show.markup import having, parse, words
from tests.web.test_server import VALUES

ASKED = "model=llama-3.2-1b&gpu=rtx-4090"


@pytest.fixture(scope="module")
def client():
    return TestClient(create_app(), base_url="http://127.0.0.1:8000")


def panel(query):
    return parse(render_fit(query, whole=True)["fit"]["panel"])


@pytest.mark.parametrize(
    ("query", "how"),
    [
        ("num_gpus=1", {}),
        ("num_gpus=1&sequence_length=1024&target_batch=64", {"sequence_length": 1024, "target_batch": 64}),
        ("num_gpus=8&strategy=fsdp2&target_batch=", {"num_gpus": 8, "strategy": "fsdp2", "target_batch": None}),
        ("num_gpus=4&dtype=fp32&optimizer=sgd", {"num_gpus": 4, "dtype": "fp32", "optimizer": "sgd"}),
        ("num_gpus=1&target_tokens=131072", {"target_batch": 64}),
        ("num_gpus=1&target_tokens=130000", {"target_batch": 63}),  # 63.48 sequences
        ("num_gpus=1&accum_steps=1&target_batch=", {"accum_steps": 1, "target_batch": None}),
        (
            "num_gpus=&micro_batch=4&accum_steps=2&target_batch=64",
            {"num_gpus": 8, "target_batch": 64},  # the steps follow from what fits
        ),
    ],
)
def test_the_api_answers_as_python_does(client, query, how):
    shown = client.get(f"/api/fit?{ASKED}&{query}")
    assert shown.status_code == 200
    wanted = gradaccum.fit(model="llama-3.2-1b", gpu="rtx-4090", **{"target_batch": 500, **how}).to_dict()
    assert shown.json() == json.loads(json.dumps(wanted))


@pytest.mark.parametrize("there", [True, False])
def test_a_trace_is_offered_where_it_can_be_made(client, monkeypatch, there):
    import importlib.util

    found = importlib.util.find_spec
    can_trace.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found("json") if there else None)
    try:
        for place in ("/", "/live/fit", "/live/fit/panel"):
            assert ("Trace the real step" in client.get(f"{place}?{ASKED}&num_gpus=1").text) == there
    finally:
        can_trace.cache_clear()


def test_an_image_model_has_the_tokens_of_an_image(client):
    """Whatever the calculator counts of text."""
    found = client.get("/api/fit?model=vit-b-16&gpu=t4&num_gpus=1&sequence_length=2048").json()
    assert found["memory"] == gradaccum.fit(model="vit-b-16", gpu="t4", target_batch=500).to_dict()["memory"]
    assert "GA032" not in [each["code"] for each in found["findings"]]


def test_the_schema_of_a_fit_describes_it(client):
    schemas = openapi()["components"]["schemas"]
    described = {**schemas["Fit"], "components": {"schemas": schemas}}
    for query in (ASKED, "model=gpt2&gpu=24GiB&num_gpus=1&target_batch=", "model=llama-3.1-8b&gpu=t4"):
        shown = client.get("/api/fit?" + query).json()
        jsonschema_rs.validate(described, shown)
        assert set(schemas["Fit"]["properties"]) <= set(shown)
        assert set(schemas["Fit"]["properties"]["memory"]["properties"]) <= set(shown["memory"])
    named = [each["name"] for each in openapi()["paths"]["/api/fit"]["get"]["parameters"]]
    assert named == [*NAMES, *BY_NAME, "preset"]


def test_every_option_of_the_setup_is_in_the_panel():
    assert {field.name for field in fields(Setup)} <= {*NAMES, *BY_NAME}
    names = {each.get("name") for each in panel(ASKED).iter() if each.get("form") == "inputs" and each.get("name")}
    assert names == set(NAMES)
    for name, choices in CHOICES.items():
        if name in BY_NAME:
            continue  # the calculator has it
        (select,) = [each for each in panel(ASKED).iter("select") if each.get("name") == name]
        assert {words(option) for option in select} >= set(choices) - {"single"}


@pytest.mark.parametrize(
    ("query", "field", "part"),
    [
        ("gpu=t4", "model", "is missing"),
        ("model=gpt2&gpu=", "gpu", "is missing"),
        ("model=llama-9b&gpu=t4", "model", "'llama-9b'"),
        ("model=config.json&gpu=t4", "model", "names no model of the catalog: 'config.json'"),
        ("model=os:system&gpu=t4", "model", "names no model"),
        ("model=gpt2&gpu=rtx-5", "gpu", "'rtx-5'"),
        ("model=gpt2&gpu=1e40GiB", "gpu", ""),
        ("model=gpt2&gpu=t4&attention=magic", "attention", "is one of flash, "),
        ("model=gpt2&gpu=t4&strategy=single", "strategy", "is single"),
        ("model=gpt2&gpu=t4&num_gpus=x", "num_gpus", "is not a number: 'x'"),
        ("model=gpt2&gpu=t4&sequence_length=", "sequence_length", "is missing"),
        ("model=gpt2&gpu=t4&target_batch=x", "target_batch", "is not a number"),
        ("model=gpt2&gpu=t4&gpuss=3", "gpuss", "is not an input"),
        ("model=gpt2&gpu=t4&sequence_length=0", "sequence_length", "must be at least 1, not 0"),
        ("model=gpt2&gpu=t4&model=gpt2", "model", "stands in the query twice"),
    ],
)
def test_what_is_wrong_is_said_by_field(client, query, field, part):
    shown = client.get("/api/fit?" + query)
    assert shown.status_code == 422
    errors = {each["field"]: each["message"] for each in shown.json()["errors"]}
    assert part in errors[field]
    live = render_fit(query)["fit"]
    if field in NAMES:
        assert live["errors"][field]
        (control,) = [each for each in panel(query).iter() if each.get("id") == field]
        assert control.get("aria-invalid") == "true"
    else:
        assert part in words(parse(live["found"]))


def test_nearest_names_are_links_that_apply_them():
    shown = render_fit("model=llama-9b&gpu=t4&target_batch=64")["fit"]["errors"]["model"]
    assert 'href="?target_batch=64&amp;model=llama-1-7b&amp;gpu=t4"' in shown


@pytest.mark.parametrize("what", VALUES)
def test_hostile_values_are_answered_and_never_echoed_as_markup(client, what):
    for name in (*NAMES, "num_gpus", "sequence_length"):
        others = {"model": "gpt2", "gpu": "t4", "num_gpus": "1"}
        pairs = [f"{other}={value}" for other, value in others.items() if other != name]
        query = "&".join([*pairs, f"{name}={quote(VALUES[what], errors='surrogateescape')}"])
        assert client.get("/api/fit?" + query).status_code in (200, 422)
        live, whole = (client.get(f"/live/fit{way}?{query}").json()["fit"] for way in ("", "/panel"))
        page = client.get("/?" + query)
        assert page.status_code == 200
        for shown in (live["found"], *live["errors"].values(), whole["panel"], page.text):
            assert "<script>alert" not in shown
            assert "<img" not in shown


# Beside the calculator


def test_a_plain_query_has_no_panel_and_a_link_to_it():
    root = parse(render_page("target_batch=640").split("\n", 1)[1])
    assert having(root, "fit") == []
    (way,) = having(root, "way-to-fit")
    assert way.get("href") == "?target_batch=640&model=llama-3.2-1b&gpu=a100-sxm-80gb"
    assert fit_or_errors(way.get("href")[1:])[0]
    assert answer("target_batch=640").fit == {}


def test_the_permalink_carries_the_panel_and_leaves_blanks_out():
    query = "target_batch=64&model=gpt2&gpu=RTX+4090&dtype=&optimizer=sgd&strategy=&embed=1"
    assert answer(query).query() == "target_batch=64&model=gpt2&gpu=RTX+4090&optimizer=sgd&embed=1"
    assert answer(answer(query).query()).fit == {"model": "gpt2", "gpu": "RTX 4090", "optimizer": "sgd"}
    assert answer("preset=bloom-176b&model=gpt2&gpu=t4").query() == "preset=bloom-176b&model=gpt2&gpu=t4"
    assert answer(query).link(dict.fromkeys(NAMES, "")) == "?target_batch=64&embed=1"


def test_a_dtype_is_the_models_where_there_is_one_and_else_the_gradients():
    assert answer("dtype=bf16").values["gradient_dtype"] == "bf16"
    asked = answer("dtype=bf16&model=gpt2&gpu=t4")
    assert (asked.fit["dtype"], asked.values.get("gradient_dtype")) == ("bf16", None)
    assert plan_or_errors("dtype=bf16&model=gpt2&gpu=t4") == plan_or_errors("")
    ok, found = plan_or_errors("attention=flash")
    assert not ok
    assert found["errors"][0]["field"] == "attention"


def test_the_calculators_gradient_dtype_is_the_usual_one_where_it_is_the_models():
    words = ("auto", "fp32")
    for gradients, dtype, wanted in (
        ("bf16", "", None),
        ("fp16", "fp16", None),
        ("fp32", "", "fp32"),
        ("fp16", "", "fp16"),
    ):
        asked = answer(f"gradient_dtype={gradients}&model=gpt2&gpu=t4" + (f"&dtype={dtype}" if dtype else ""))
        assert _value(asked, "gradient_dtype", WORD, words) == wanted


def test_use_puts_the_micro_batch_into_the_calculator_and_keeps_the_target():
    query = "model=llama-3.2-1b&gpu=rtx-4090&num_gpus=1&target_batch=64&sequence_length=1024&micro_batch=&accum_steps=4"
    (way,) = [each for each in panel(query).iter("a") if words(each).startswith("Use micro-batch")]
    after = answer(way.get("href")[1:])
    found = fit_or_errors(query)[1]
    assert after.plan.micro_batch == found["micro_batch"]
    assert after.plan.target_batch == 64
    assert after.plan.effective_batch == found["plan"]["effective_batch"]
    again = panel(way.get("href")[1:])
    assert "as the calculator has it" in words(again)


def test_the_calculators_own_micro_batch_is_judged():
    query = "model=llama-3.2-1b&gpu=rtx-4090&num_gpus=1&target_batch=64&micro_batch="
    assert "Your micro-batch of 4 does not fit:" in words(panel(query + "4"))
    assert "Your micro-batch" not in words(panel(query + "1"))


def test_a_change_is_a_link_that_applies_it():
    (way,) = [each for each in panel(ASKED + "&num_gpus=1").iter("a") if "8-bit AdamW" in words(each)]
    before, after = fit_or_errors(ASKED + "&num_gpus=1")[1], fit_or_errors(way.get("href")[1:])[1]
    (change,) = [each for each in before["changes"] if "8-bit" in each["change"]]
    assert after["max_micro_batch"] >= before["max_micro_batch"]
    assert change["set"] == {"optimizer": "adamw-8bit"}
    assert (
        before["memory"]["peak_bytes"] - change["bytes"]
        == gradaccum.fit(model="llama-3.2-1b", gpu="rtx-4090", optimizer="adamw-8bit").curve[0][1].peak_bytes
    )


def test_a_flag_is_yes_or_no():
    asked = answer("model=gpt2&gpu=t4&attention=yes")
    assert _value(asked, "attention", FLAG, ("no", "yes")) is True
    assert _value(answer("model=gpt2&gpu=t4&attention=no"), "attention", FLAG, ("yes", "no")) is False
    with pytest.raises(InputError, match="is yes or no, not 'maybe'"):
        _value(answer("model=gpt2&gpu=t4&attention=maybe"), "attention", FLAG, ("yes", "no"))


def test_applying_leaves_defaults_out():
    link = applying(answer("model=gpt2&gpu=t4&optimizer=sgd&strategy=fsdp2"))
    assert link({"optimizer": "adamw", "attention": "eager"}) == "?model=gpt2&gpu=t4&attention=eager&strategy=fsdp2"
    assert link({"optimizer": None, "strategy": True}) == "?model=gpt2&gpu=t4&strategy=yes"


def test_a_screen_reader_hears_both_answers():
    assert render_fit(ASKED + "&num_gpus=1&target_batch=64")["summary"].endswith(
        "Micro-batch 1 fits on GeForce RTX 4090 24 GB."
    )
    marginal = "model=llama-3.2-1b&gpu=rtx-4090&num_gpus=1&sequence_length=1024"
    assert render_fit(marginal)["summary"].endswith("Micro-batch 3 is marginal on GeForce RTX 4090 24 GB.")
    assert "marginal: 2 surely, 5 at best, on GeForce RTX 4090" in str(render_fit(marginal)["fit"])
    assert render_fit("model=llama-3.1-8b&gpu=t4&num_gpus=1")["summary"].endswith("Nothing fits on Tesla T4 16 GB.")
    assert "Model is missing." in render_fit("gpu=t4")["summary"]


def test_closed_again_the_panel_is_empty():
    assert render_fit("target_batch=64", whole=True)["fit"] == {"panel": ""}
