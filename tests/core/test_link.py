"""A plan's link, against the page that reads it: the same plan, whatever was asked, at whatever address."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import gradaccum
from gradaccum import InputError, Request
from gradaccum.core.plan import make_plan
from gradaccum.units import Ratio
from gradaccum.web.page import answer

PAGE = "https://host/some/folder/"
PLAN = gradaccum.plan(micro_batch=3, num_gpus=8, target_batch=500, sequence_length=2048)


def read_back(link):
    """The plan that the page makes of a link, by the standard library's idea of where its query is."""
    asked = answer(urlsplit(link).query)
    assert asked.problems == ()
    return asked.plan


def assert_same(plan, page=PAGE):
    assert json.dumps(read_back(plan.link(page)).to_dict()) == json.dumps(plan.to_dict())


# Every kind of request

WRITTEN = ["2k", "2Ki", "4M", "1_024", "1,024", "2^9", "16x2", "1e3", "0.5M", " 512 "]
COUNTS = st.one_of(
    st.integers(1, 64), st.integers(1, 10**7), st.integers(10**50, 10**95), st.sampled_from([4, 8, 500, 2048, *WRITTEN])
)
SHARES = st.one_of(
    st.floats(1e-9, 1),
    st.integers(0, 10**40).map(lambda digits: f"0.{digits:040}"),
    st.sampled_from([0, 1, "3%", "12.3456789%"]),
)
EPOCHS = st.one_of(st.floats(1e-3, 1e6), st.integers(1, 10**30), st.sampled_from([1.5, "0.333333333333", "2.50"]))
RATES = st.one_of(st.floats(1e-30, 9e29), st.integers(1, 10**29), st.sampled_from(["3e-4", "0.00012345678", 2.5e-5]))
OPTIONAL = {
    "rounding": st.sampled_from(["round", "ceil", "floor", "exact"]),
    "vary": st.sampled_from(["num_gpus", "micro_batch"]),
    "dataset_size": COUNTS,
    "last_group": st.sampled_from(["step", "drop", "carry"]),
    "supervised_fraction": SHARES,
    "params": COUNTS,
    "gradient_dtype": st.sampled_from(["fp32", "bf16", "fp16"]),
}


@st.composite
def requests(draw):
    """Inputs of which most make a plan: three of the four that are solved for each other, and anything besides."""
    inputs = draw(st.fixed_dictionaries({}, optional=OPTIONAL))
    target = draw(st.sampled_from(["target_batch", "target_tokens"]))
    names = ["micro_batch", "num_gpus", target, "accum_steps"]
    names.remove(draw(st.sampled_from(["accum_steps", *names])))
    inputs.update({name: draw(COUNTS) for name in names})
    if "micro_batch" in inputs and "accum_steps" not in inputs and draw(st.booleans()):
        inputs["max_micro_batch"] = inputs.pop("micro_batch")
    if target in inputs and not isinstance(inputs[target], int):
        inputs[target] = draw(st.sampled_from([inputs[target], "4M", "0.5M"]))
    if draw(st.booleans()) or target == "target_tokens" or "supervised_fraction" in inputs:
        inputs["sequence_length"] = draw(COUNTS)
    if isinstance(inputs.get("num_gpus"), int) and draw(st.booleans()):
        degrees = draw(st.lists(st.integers(1, 12), min_size=3, max_size=3))
        inputs.update(zip(("tensor_parallel", "pipeline_parallel", "context_parallel"), degrees))
        inputs["num_gpus"] *= degrees[0] * degrees[1] * degrees[2]
        if degrees[1] > 1:
            inputs["virtual_pipeline"] = draw(st.integers(1, 4))
    lengths = ["updates"] + ["token_budget"] * ("sequence_length" in inputs) + ["epochs"] * ("dataset_size" in inputs)
    length = draw(st.sampled_from(["", *lengths]))
    if length:
        inputs[length] = draw(EPOCHS if length == "epochs" else COUNTS)
    warmups = ["warmup_updates", "warmup_fraction"] + ["warmup_tokens"] * ("sequence_length" in inputs)
    warmup = draw(st.sampled_from(["", *warmups]))
    if warmup:
        inputs[warmup] = draw(SHARES if warmup == "warmup_fraction" else COUNTS)
    if draw(st.booleans()):
        inputs.update(learning_rate=draw(RATES), base_batch=draw(COUNTS))
    return inputs


@given(requests())
def test_a_link_reads_back_as_the_same_plan(inputs):
    try:
        plan = gradaccum.plan(**inputs)
    except InputError:
        assume(False)
    assert_same(plan)


@pytest.mark.parametrize("run", [run for run in gradaccum.published_runs() if not run.missing], ids=lambda run: run.id)
def test_a_published_run_reads_back(run):
    assert_same(gradaccum.plan(preset=run.id))


@pytest.mark.parametrize(
    ("inputs", "query"),
    [
        ({"micro_batch": 4, "num_gpus": 8, "target_batch": 500, "sequence_length": 2048}, ""),
        ({"micro_batch": 3, "num_gpus": 8, "target_batch": 500, "sequence_length": 2048}, "micro_batch=3"),
        ({"micro_batch": 4, "num_gpus": 8, "target_batch": 500}, "sequence_length="),
        ({"micro_batch": 4, "num_gpus": 8, "accum_steps": 16, "sequence_length": 2048}, "accum_steps=16"),
        # Findings speak of what was written: "2048?", "tokens?"
        (
            {"micro_batch": 4, "num_gpus": 8, "target_batch": "4M", "sequence_length": "2k"},
            "target_batch=4M&sequence_length=2k",
        ),
        ({"micro_batch": 4, "num_gpus": 8, "target_batch": "4M tokens", "sequence_length": 2048}, "target_tokens=4M"),
    ],
)
def test_a_link_is_as_short_as_the_pages_own(inputs, query):
    plan = gradaccum.plan(**inputs)
    assert plan.link(PAGE) == PAGE + ("?" + query if query else "")
    assert_same(plan)


@pytest.mark.parametrize(
    ("name", "value", "digits"),
    [
        ("epochs", 1.23456789, "1.23456789"),
        ("epochs", "0.12345678901234567890123", "0.12345678901234567890123"),
        ("warmup_fraction", "1.23456%", "0.0123456"),
        ("learning_rate", 0.000123456789, "0.000123456789"),
        ("learning_rate", 1e-5, "1e-05"),
    ],
)
def test_no_digit_is_lost(name, value, digits):
    others = {"dataset_size": 10**6, "epochs": 1, "learning_rate": 0.1, "base_batch": 256}
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500, **{**others, name: value})
    assert f"{name}={digits}" in plan.link(PAGE)
    assert getattr(read_back(plan.link(PAGE)).request, name) == getattr(plan.request, name)


def test_a_text_that_no_longer_belongs_to_its_value_is_not_used():
    request = Request(
        micro_batch=4, num_gpus=8, target_batch=500, sequence_length=4096, written=(("target_batch", "4M"),)
    )
    assert make_plan(request).link(PAGE) == PAGE + "?sequence_length=4096"


# What does not go into a link


@pytest.mark.parametrize(
    ("inputs", "field", "nearest"),
    [
        ({"target_batch": 10**100}, "target_batch", ()),
        ({"target_batch": 10**5000}, "target_batch", ()),
        ({"dataset_size": 1, "epochs": Ratio(1, 3)}, "epochs", ("0.3333",)),
        ({"dataset_size": 1, "epochs": Ratio(10**5000)}, "epochs", ("1e5000",)),
        ({"learning_rate": 5e-324, "base_batch": 1}, "learning_rate", ()),
    ],
)
def test_a_number_without_an_exact_text_is_refused(inputs, field, nearest):
    plan = gradaccum.plan(**{"micro_batch": 4, "num_gpus": 8, "target_batch": 500, **inputs})
    with pytest.raises(InputError, match="cannot be written in a link: no number of at most 100 digits") as error:
        plan.link(PAGE)
    (problem,) = error.value.problems
    assert (problem.field, problem.nearest) == (field, nearest)


def test_a_link_is_no_longer_than_the_page_reads():
    name = {"micro_batch": "1x" * 90 + "4", "sequence_length": "1x" * 90 + "2048"}
    long = ("num_gpus", "target_batch", "dataset_size", "updates", "warmup_updates", "params", "base_batch")
    name.update(dict.fromkeys(long, "1*" * 99 + "1"))
    plan = gradaccum.plan(**name, learning_rate=0.1)
    with pytest.raises(InputError, match=r"the link's query has .* characters; the page reads 2000"):
        plan.link(PAGE)


# The address


@pytest.mark.parametrize(
    ("page", "link"),
    [
        ("https://host/some/folder/", "https://host/some/folder/?micro_batch=3"),
        ("https://host/some/folder", "https://host/some/folder/?micro_batch=3"),
        ("  https://host/v1.0  ", "https://host/v1.0/?micro_batch=3"),
        ("https://host", "https://host/?micro_batch=3"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/?micro_batch=3"),
        ("HTTPS://user@host:8443/a", "HTTPS://user@host:8443/a/?micro_batch=3"),
        ("https://host/folder/index.html", "https://host/folder/index.html?micro_batch=3"),
        ("https://host/folder/?", "https://host/folder/?micro_batch=3"),
        ("https://host/folder?embed=1", "https://host/folder/?micro_batch=3&embed=1"),
        ("https://host/?embed=1&loop=fsdp2", "https://host/?micro_batch=3&loop=fsdp2&embed=1"),
        ("https://host/#GA005", "https://host/?micro_batch=3#GA005"),
        ("https://host/index.html?weighting=mean#a?b", "https://host/index.html?micro_batch=3&weighting=mean#a?b"),
        ("file:///site/index.html", "file:///site/index.html?micro_batch=3"),
        ("file:///site/", "file:///site/index.html?micro_batch=3"),
        ("file://server/share/site", "file://server/share/site/index.html?micro_batch=3"),
    ],
)
def test_the_page_may_be_named_in_each_usual_way(page, link):
    assert PLAN.link(page) == link
    assert_same(PLAN, page)


def test_how_the_page_shows_the_plan_stays():
    asked = answer(urlsplit(PLAN.link("https://host/?embed=1&loop=fsdp2&weighting=mean")).query)
    assert asked.view == {"embed": "1", "loop": "fsdp2", "weighting": "mean"}


@pytest.mark.parametrize(
    ("page", "why", "nearest"),
    [
        ("", "begins with none of https://", ()),
        ("host", "begins with none of https://", ()),
        ("javascript:alert(1)", "begins with none of https://", ()),
        ("a.org/x?m=2&loop=ddp", "begins with none of https://", ("https://a.org/x/?loop=ddp",)),
        ("user.github.io/gradaccum/", "begins with none of https://", ("https://user.github.io/gradaccum/",)),
        ("localhost:8000/", "begins with none of https://", ("http://localhost:8000/",)),
        ("htps://host/", "begins with none of https://", ("https://host/",)),
        ("ftp://host/", "begins with none of https://", ()),
        ("/my site/index.html", "begins with none of https://", ("file:///my%20site/index.html",)),
        ("C:\\site\\index.html", "begins with none of https://", ("file:///C:/site/index.html",)),
        ("file:/site/index.html", "begins with none of https://", ("file:///site/index.html",)),
        ("https://", "names no place", ()),
        ("https:///folder", "names no place", ()),
        ("file:///", "names no place", ()),
        ("https://host/a b/", "characters that an address must encode", ("https://host/a%20b/",)),
        ('https://host/"><script>', "characters that an address must", ("https://host/%22%3E%3Cscript%3E",)),
        ("https://host/?micro_batch=4&embed=1", "has 'micro_batch=4' in its query", ("https://host/?embed=1",)),
        ("https://host/?preset=bloom-176b#a", "has 'preset=bloom-176b' in its query", ("https://host/#a",)),
        ("https://host/?utm_source=x", "has 'utm_source=x' in its query", ("https://host/",)),
        ("https://host/?embed=1&embed=1", "has 'embed=1' in its query", ("https://host/?embed=1",)),
        ("https://host/?embed=yes", "has 'embed=yes' in its query", ("https://host/",)),
    ],
)
def test_what_is_no_address_of_the_page(page, why, nearest):
    with pytest.raises(InputError) as error:
        PLAN.link(page)
    (problem,) = error.value.problems
    assert (problem.field, problem.nearest) == ("page", nearest)
    assert why in problem.message
    for each in nearest:
        assert_same(PLAN, each)


def test_an_address_is_text():
    with pytest.raises(InputError, match="page: must be the address of the live page as text, not 'None'"):
        PLAN.link(None)


PIECES = """
    https:// http:// file:/// host / folder index.html ? & = # embed=1 embed %41 loop=ddp loop=no micro_batch=2 m=2
    preset=x \u00e9 . :
""".split()
PAGES = st.builds(
    lambda start, pieces: start + "".join(pieces),
    st.sampled_from(["", "https://", "https://host/", "file:///"]),
    st.lists(st.sampled_from([*PIECES, " "]), max_size=9),
)


@given(PAGES)
def test_a_page_gives_the_plan_or_an_error_never_another_plan(page):
    try:
        link = PLAN.link(page)
    except InputError as error:
        for nearest in error.problems[0].nearest:
            PLAN.link(nearest)
        return
    asked, got = urlsplit(page.strip()), urlsplit(link)
    assert_same(PLAN, page)
    assert (got.scheme, got.netloc, got.fragment) == (asked.scheme, asked.netloc, asked.fragment)
    assert got.path.startswith(asked.path.rstrip("/"))
