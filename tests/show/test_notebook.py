"""A plan in a notebook: no script, no rule that reaches beyond it, no colour of its own for text."""

from __future__ import annotations

import json
import re

import pytest

import gradaccum
from gradaccum.cli import main
from gradaccum.core.plan import DISPLAY
from tests.show.markup import having, parse, the, words

PLAN = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500, sequence_length=2048, dataset_size=10_000)


def shown():
    return parse(PLAN._repr_html_())


def rules(style):
    """(selectors, declarations) of each rule, also of those inside `@container`."""
    return re.findall(r"([^{}]+)\{([^{}]*)\}", re.sub(r"@container gradaccum-plan \([^)]*\) \{", "", style))


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
    assert set(re.findall(r"@[^{;]*", style)) == {"@container gradaccum-plan (max-width: 700px) "}
    assert "url(" not in style
    for selectors, _ in rules(style):
        for selector in selectors.split(","):
            assert selector.strip().startswith(".gradaccum-plan"), selector


def test_text_takes_the_notebooks_colour():
    style = the(shown(), "gradaccum-plan").find("style").text
    colours = re.findall(r"[^-]color:\s*([^;]+);", style)
    assert set(colours) == {"inherit"}
    assert {each.get("fill") for each in shown().iter("text")} == {"currentColor"}
    backgrounds = re.findall(r"background[^:]*:\s*([^;]+);", style)
    assert set(backgrounds) == {"none"}


def test_the_notebooks_table_of_contents_is_left_to_its_author():
    """JupyterLab lists h1 to h6 of outputs too: those of each plan would bury the notebook's own."""
    assert [each.tag for each in shown().iter() if re.fullmatch("h[1-6]", each.tag)] == []
    headings = having(shown(), "heading")
    assert [words(each) for each in headings] == [
        "One update over time",
        "What else is close",
        "What to know",
        "The run",
    ]
    assert {(each.get("role"), each.get("aria-level")) for each in headings} == {("heading", "2")}


def test_without_tags_stripped_of_style_the_numbers_remain():
    """GitHub and mail strip the style element: the text alone still holds the answer."""
    html = re.sub(r"<style>.*?</style>", "", PLAN._repr_html_(), flags=re.DOTALL)
    assert "16 micro-steps per update" in words(parse(html))


def test_where_style_and_pictures_are_stripped_their_labels_do_not_become_text():
    """JupyterLab keeps the words of an `svg` that it strips, and drops an attribute without a value."""
    picture = the(shown(), "picture")
    assert picture.get("hidden") == "hidden"
    (wide,), (narrow,) = (list(the(picture, kind).iter("svg")) for kind in ("wide", "narrow"))
    assert int(narrow.get("width")) <= 360 < int(wide.get("width"))
    outside = [each for each in shown().iter("svg") if each.get("class") != "ga-svg"]
    assert {words(each) for each in outside} == {""}


# What IPython asks for: https://ipython.readthedocs.io/en/stable/config/integrating.html and DisplayFormatter.format

BOTH = ["text/html", "text/plain"]


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({}, BOTH),
        ({"include": None, "exclude": None}, BOTH),
        ({"include": {"text/html"}}, ["text/html"]),
        ({"include": ["text/plain", "image/png"]}, ["text/plain"]),
        ({"include": ("image/png",)}, []),
        ({"exclude": {"text/html"}}, ["text/plain"]),
        ({"exclude": ["image/png"]}, BOTH),
        ({"exclude": set(BOTH)}, []),
        ({"include": BOTH, "exclude": ("text/plain",)}, ["text/html"]),  # exclude takes precedence
        ({"include": [], "exclude": set()}, BOTH),  # as in DisplayFormatter.format, nothing named is no choice
    ],
)
def test_a_notebook_chooses_the_kinds(options, kinds):
    bundle = PLAN._repr_mimebundle_(**options)
    assert sorted(bundle) == kinds
    assert bundle == {kind: PLAN._repr_mimebundle_()[kind] for kind in kinds}


def test_the_bundle_is_json_and_holds_what_the_other_faces_show(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    bundle = json.loads(json.dumps(PLAN._repr_mimebundle_()))
    assert bundle["text/html"] == PLAN._repr_html_()
    assert main(["plan", "-m", "4", "-g", "8", "-t", "500", "-s", "2048", "--dataset-size", "10000"]) == 0
    assert bundle["text/plain"].rstrip() == capsys.readouterr().out.rstrip()


def test_what_nobody_asked_for_is_not_rendered(monkeypatch):
    monkeypatch.setitem(DISPLAY, "html", lambda plan: pytest.fail("rendered in vain"))
    assert PLAN._repr_mimebundle_(exclude=["text/html"]) == {"text/plain": str(PLAN)}
    assert PLAN._repr_mimebundle_(include=["text/plain"]) == {"text/plain": str(PLAN)}


def test_without_a_renderer_a_plan_is_its_repr(monkeypatch):
    monkeypatch.delitem(DISPLAY, "html")
    monkeypatch.delitem(DISPLAY, "text")
    assert PLAN._repr_mimebundle_() == {"text/plain": repr(PLAN)}
    assert PLAN._repr_html_() is None
