"""The document as a whole."""

from __future__ import annotations

import gradaccum
from gradaccum.errors import Problem
from gradaccum.show.html import EMPTY, el, fragment
from gradaccum.show.page import FIRST, REST, document, first_results, no_results, title_of
from gradaccum.show.rest import rest_results
from tests.show.markup import parse, words

PLAN = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500, sequence_length=2048)


def page(embed=False, **changes):
    parts = {**first_results(PLAN), **rest_results(PLAN, lambda changes: "?", {})}
    given = {"form": el("form", None), "origin": EMPTY, "parts": parts, "query": "micro_batch=3", **changes}
    return document("A <title>", 'what "it" says', embed=embed, assets="files/", **given)


def test_it_is_a_whole_document_with_one_heading_and_one_main():
    text = page()
    assert text.startswith("<!DOCTYPE html>\n")
    root = parse(text.split("\n", 1)[1])
    assert root.find("html").get("lang") == "en"
    assert words(root.find("html/head/title")) == "A <title>"
    assert len(list(root.iter("h1"))) == len(list(root.iter("main"))) == 1
    order = [each.get("id")[5:] for each in root.iter("div") if each.get("id", "").startswith("part-")]
    assert order == ["origin", *FIRST, "fit", *REST]
    ids = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(ids) == len(set(ids))


def test_every_address_is_relative_and_nothing_is_inline():
    root = parse(page().split("\n", 1)[1])
    loaded = [each.get("href") for each in root.iter("link")] + [each.get("src") for each in root.iter("script")]
    assert loaded == ["files/icon.svg", "files/page.css", "files/page.js"]
    assert {each.get("href") for each in root.find(".//header").iter("a")} == {
        "?",
        "api/plan?micro_batch=3",
        "openapi.json",
    }
    assert not any(name.startswith("on") or name == "style" for each in root.iter() for name in each.attrib)
    assert all(not words(each) for each in root.iter("script"))


def test_embedded_it_says_so():
    assert parse(page(embed=True).split("\n", 1)[1]).find("html").get("class") == "embed"


def test_without_a_plan_it_says_what_is_wrong_and_where():
    problems = [Problem("num_gpus", "is wrong"), Problem("", "these contradict")]
    parts = no_results(problems, [fragment("A < b."), fragment("C.")])
    root = parse(str(parts["answer"]))
    assert words(root.find(".//h2")) == "No plan yet"
    assert [words(each) for each in root.iter("li")] == ["A < b. Go to the field", "C."]
    assert [each.get("href") for each in root.iter("a")] == ["#num_gpus"]


def test_the_title_begins_with_the_answer():
    assert title_of(PLAN) == "16 steps, batch 512 (+12) \u00b7 gradaccum"
    exact = gradaccum.plan(micro_batch=1, num_gpus=1, target_batch=1)
    assert title_of(exact) == "1 step, batch 1 \u00b7 gradaccum"
    huge = gradaccum.plan(micro_batch=1, num_gpus=1, target_batch=10**100 - 1)
    assert len(title_of(huge)) < 80
