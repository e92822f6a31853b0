"""A plan in a notebook: no script, no rule that reaches beyond it, no colour of its own for text."""

from __future__ import annotations

import re

import gradaccum
from tests.show.markup import parse, the, words

PLAN = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500, sequence_length=2048, dataset_size=10_000)


def shown():
    return parse(PLAN._repr_html_())


def test_a_plan_shows_itself():
    text = words(shown())
    for part in ("Accumulation steps 16", "512 \u00d7 2,048", "3 \u00d7 8 \u00d7 21", "Updates per epoch 20"):
        assert part in text


def test_there_is_no_script_no_address_to_load_and_no_id_that_two_plans_would_share():
    root = shown()
    assert not [each for each in root.iter() if each.tag in ("script", "link", "img", "iframe", "form")]
    assert not [name for each in root.iter() for name in each.attrib if name.startswith("on") or name in ("id", "name")]
    assert not [each for each in root.iter("a") if not each.get("href").startswith("https://")]


def test_every_selector_is_under_one_class_and_nothing_is_imported():
    style = the(shown(), "gradaccum-plan").find("style").text
    assert "@" not in style
    assert "url(" not in style
    for selectors in re.findall(r"([^{}]+)\{[^{}]*\}", style):
        for selector in selectors.split(","):
            assert selector.strip().startswith(".gradaccum-plan"), selector


def test_text_takes_the_notebooks_colour():
    style = the(shown(), "gradaccum-plan").find("style").text
    colours = re.findall(r"[^-]color:\s*([^;]+);", style)
    assert set(colours) == {"inherit"}
    assert {each.get("fill") for each in shown().iter("text")} == {"currentColor"}


def test_without_tags_stripped_of_style_the_numbers_remain():
    """GitHub and mail strip the style element: the text alone still holds the answer."""
    html = re.sub(r"<style>.*?</style>", "", PLAN._repr_html_(), flags=re.DOTALL)
    assert "16 micro-steps per update" in words(parse(html))
