"""From a query string to the page: what is understood, said, linked and remembered. No server."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradaccum.core.fields import NAME_OF
from gradaccum.web.page import answer, render_live, render_page, render_rest
from tests.show.markup import having, parse, the, words


def tree(query):
    return parse(render_page(query).split("\n", 1)[1])


def fields(root):
    """What the form would send: name -> text."""
    sent = {}
    for each in root.find(".//form").iter("input"):
        if each.get("type") != "radio" or "checked" in each.attrib:
            sent[each.get("name")] = each.get("value")
    for each in root.find(".//form").iter("select"):
        sent[each.get("name")] = next(option.get("value") for option in each if "selected" in option.attrib)
    return sent


def as_query(values):
    from urllib.parse import urlencode

    return urlencode(values)


def numbers(query):
    return [words(each) for each in having(tree(query), "number")][:4]


def test_an_empty_query_is_the_worked_example():
    assert numbers("") == ["16", "512", "+12", "1,048,576"]


QUERIES = [
    "",
    "micro_batch=3",
    "target_batch=4M+tokens&sequence_length=4Ki",
    "target_tokens=1M",
    "micro_batch=&accum_steps=8&target_batch=512",
    "target_batch=&accum_steps=4",
    "max_micro_batch=12&micro_batch=",
    "num_gpus=64&tensor_parallel=4&rounding=exact",
    "dataset_size=1e6&epochs=1.5&last_group=carry&warmup_fraction=3%25&supervised_fraction=0.4",
    "learning_rate=3e-4&base_batch=256&gradient_dtype=bf16&vary=num_gpus&loop=fsdp2&weighting=mean&embed=1",
    "sequence_length=",
    "preset=bloom-176b",
    "preset=bloom-176b&num_gpus=768",
    "preset=resnet50-imagenet-8k",
]


@pytest.mark.parametrize("query", QUERIES)
def test_the_permalink_asks_the_same(query):
    asked = answer(query)
    assert asked.plan is not None
    again = answer(asked.query())
    assert again.plan.to_dict() == asked.plan.to_dict()
    assert again.query() == asked.query()
    assert len(asked.query()) <= len(query) + 200


@pytest.mark.parametrize("query", QUERIES)
def test_submitting_the_form_without_a_script_gives_the_same_plan(query):
    submitted = answer(as_query(fields(tree(query))))
    assert submitted.plan.to_dict() == answer(query).plan.to_dict()


@pytest.mark.parametrize("query", QUERIES)
def test_every_link_on_the_page_leads_to_a_plan(query):
    links = [each.get("href") for each in tree(query).iter("a") if "data-apply" in each.attrib]
    assert len(links) > 40  # the published runs are among them
    for link in links:
        assert link.startswith("?")
        assert answer(link[1:]).plan is not None


def test_defaults_are_left_out_of_the_permalink():
    assert answer("micro_batch=4&num_gpus=8&target_batch=500&rounding=round&epochs=").query() == ""
    assert answer("embed=0&loop=auto").query() == ""
    assert answer("loop=<script>").query() == ""


def test_a_closer_plan_is_one_link_away():
    (link,) = [each.get("href") for each in tree("").iter("a") if words(each) == "3 \u00d7 8 \u00d7 21"]
    assert link == "?micro_batch=3"
    assert numbers(link[1:])[:2] == ["21", "504"]


def test_a_preset_fills_the_form_and_names_its_source():
    root = tree("preset=bloom-176b")
    assert numbers("preset=bloom-176b") == ["128", "2,048", "0", "4,194,304"]
    assert fields(root)["pipeline_parallel"] == "12"
    origin = the(root, "origin")
    assert "BLOOM-176B" in words(origin)
    assert origin.find(".//a").get("href").startswith("https://")
    assert not having(tree(""), "origin")


def test_what_a_preset_does_not_publish_is_said():
    origin = words(the(tree("preset=gpt3-175b"), "origin"))
    assert "Not published, and filled in by this page: micro-batch, gpus." in origin


def test_a_published_run_of_images_gets_no_tokens():
    assert answer("preset=resnet50-imagenet-8k").plan.tokens_per_step is None


def test_a_person_overrides_and_blanks_what_a_preset_says():
    assert answer("preset=bloom-176b&num_gpus=768").plan.data_parallel == 16
    assert answer("preset=bloom-176b&token_budget=").plan.training.updates is None


def test_a_target_in_tokens_is_shown_in_the_targets_own_field():
    root = tree("target_tokens=4M")
    assert fields(root)["target_batch"] == "4M tokens"
    echoes = {each.get("id"): words(each) for each in having(root, "echo")}
    assert echoes["target_batch-echo"] == "= 4,000,000 tokens"


@pytest.mark.parametrize(
    ("query", "field", "echo"),
    [
        ("micro_batch=4k", "micro_batch", "= 4,000"),
        ("num_gpus=16x8", "num_gpus", "= 128"),
        ("dataset_size=1048576", "dataset_size", "= 1,048,576"),
        ("dataset_size=1,024", "dataset_size", None),
        ("warmup_fraction=3%25&updates=10", "warmup_fraction", "= 0.03"),
        ("target_batch=" + "9" * 100, "target_batch", "= 1e100, 100 digits"),
        ("micro_batch=&accum_steps=8&target_batch=512", "micro_batch", "found: 8"),
        ("num_gpus=&accum_steps=8&target_batch=512", "num_gpus", "found: 16"),
        ("target_batch=&accum_steps=8", "target_batch", "found: 256"),
        ("micro_batch=&max_micro_batch=6&target_batch=480", "micro_batch", "found: 6"),
    ],
)
def test_what_was_understood_stands_beside_the_field(query, field, echo):
    assert render_live(query)["echoes"].get(field) == echo


def test_a_live_answer_is_json_without_numbers():
    def leaves(value):
        if isinstance(value, dict):
            for each in value.values():
                yield from leaves(each)
        else:
            yield value

    live = json.loads(json.dumps(render_live("target_batch=" + "9" * 100)))
    assert live["ok"] is True
    assert all(isinstance(each, (str, bool)) for each in leaves(live))


@pytest.mark.parametrize("query", QUERIES)
def test_a_live_answer_holds_the_parts_of_the_page(query):
    page = render_page(query)
    live, rest = render_live(query), render_rest(query)
    parts = {**live["results"], **rest["results"]}
    for name, part in parts.items():
        assert part in page, name
    assert {"part-" + name for name in (*parts, "fit")} == {
        each.get("id") for each in tree(query).iter() if each.get("id", "").startswith("part-")
    }
    assert f"<title>{rest['title']}</title>" in page
    sent = fields(tree(query))
    assert {name: value for name, value in live["values"].items() if name in sent} == sent


WRONG = [
    ("micro_batch=0", "micro_batch", "Micro-batch must be at least 1, not 0. Nearest: 1"),
    ("num_gpus=x", "num_gpus", "GPUs is not a number: 'x'"),
    ("num_gpus=10&tensor_parallel=4", "num_gpus", "Nearest: 8 or 12"),
    ("target_batch=&target_tokens=abc", "target_batch", "Target in tokens is not a number: 'abc'"),
    ("rounding=flor", "rounding", "Rounding is one of round, ceil, floor, exact, not 'flor'. Nearest: floor"),
    ("micro_batch=1&micro_batch=2", "micro_batch", "stands in the query twice"),
    ("mikro_batch=2", "form", "mikro_batch is not an input. Nearest: micro_batch"),
    ("preset=bloom-17", "form", "preset names no published run: 'bloom-17'"),
    ("embed=yes", "form", "embed is 1 or 0, not 'yes'"),
    (
        "micro_batch=4&num_gpus=8&accum_steps=3&target_batch=500",
        "form",
        "micro_batch x data_parallel x accum_steps is 4 x 8 x 3 = 96, not the target_batch 500",
    ),
    ("micro_batch=" + "1" * 3000, "form", "The query has 3,012 characters; at most 2000 are read"),
]


@pytest.mark.parametrize(("query", "field", "message"), WRONG)
def test_a_wrong_query_says_what_and_where(query, field, message):
    live = render_live(query)
    assert live["ok"] is False
    assert "results" not in live
    assert render_rest(query) == {"ok": False}
    assert list(live["errors"]) == [field]
    assert message in words(parse(live["errors"][field]))
    assert message in words(the(tree(query), "results"))
    (beside,) = [each for each in tree(query).iter() if each.get("id") == field + "-error"]
    assert message in words(beside)


def test_every_wrong_field_is_named_at_once_and_the_others_keep_their_values():
    query = "micro_batch=0&num_gpus=8&epochs=x&foo=1&target_batch=600&target_batch=700"
    live = render_live(query)
    assert sorted(live["errors"]) == ["epochs", "form", "micro_batch", "target_batch"]
    assert fields(tree(query))["target_batch"] == "600"
    assert fields(tree(query))["num_gpus"] == "8"


def test_several_problems_of_one_field_become_one():
    problems = answer("sequence_length=&target_batch=&target_tokens=4M&token_budget=1B").problems
    assert [problem.field for problem in problems] == ["sequence_length"]
    assert "beside target_tokens" in problems[0].message
    assert "beside token_budget" in problems[0].message


HOSTILE = st.one_of(
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><b>',
            "NaN",
            "-1",
            "",
            " ",
            "0",
            "1e999",
            "1e-999",
            "\u0665",
            "\u00b2",
            "0x10",
            "1..5",
            "8,16",
            "%00",
            "\u202e",
            "4M tokens",
            "inf",
            "-0",
            "1.5",
            "1,2",
            "9" * 150,
        ]
    ),
    st.text(max_size=20),
)


@given(st.dictionaries(st.sampled_from([*NAME_OF, "preset", "loop", "weighting", "embed", "x"]), HOSTILE))
def test_no_query_breaks_the_page_or_leaves_it(values):
    query = as_query(values)
    text = render_page(query)
    root = parse(text.split("\n", 1)[1])
    assert [each.get("src") for each in root.iter("script")] == ["static/page.js"]
    assert not [name for each in root.iter() for name in each.attrib if name.startswith("on")]
    live = render_live(query)
    assert live["ok"] == (answer(query).plan is not None)
    json.dumps(live)
