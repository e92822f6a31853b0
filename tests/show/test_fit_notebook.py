"""A fit in a notebook: under the rules that hold for a plan."""

from __future__ import annotations

import re

import pytest

import gradaccum
from gradaccum.memory.answer import DISPLAY
from tests.show.markup import having, parse, the, words
from tests.show.test_notebook import rules

FIT = gradaccum.fit(model="llama-3.2-1b", gpu="rtx-4090", sequence_length=1024, target_batch=64)


def shown():
    return parse(FIT._repr_html_())


def test_a_fit_shows_itself():
    text = words(shown())
    for part in ("Largest micro-batch 3", "2 \u00d7 1 \u00d7 32 = 64", "end of forward", "8-bit AdamW states"):
        assert part in text
    assert str(FIT).startswith("micro-batch 3 is marginal on GeForce RTX 4090 24 GB")
    assert repr(FIT) == "<Fit llama-3.2-1b on GeForce RTX 4090 24 GB: micro-batch 3>"
    assert FIT._repr_mimebundle_() == {"text/plain": str(FIT), "text/html": FIT._repr_html_()}
    assert "plan" not in [
        each.get("class") for each in parse(gradaccum.fit(model="gpt2", gpu="t4")._repr_html_()).iter()
    ]


def test_it_keeps_the_rules_of_a_notebook():
    root = shown()
    assert not [each for each in root.iter() if each.tag in ("script", "link", "img", "iframe", "form", "h2", "h3")]
    assert not [name for each in root.iter() for name in each.attrib if name.startswith("on") or name in ("id", "name")]
    style = the(root, "gradaccum-plan").find("style").text
    for selectors, declarations in rules(style):
        assert all(each.strip().startswith(".gradaccum-plan") for each in selectors.split(","))
        assert set(re.findall(r"(?<![-\w])color:\s*([^;]+);", declarations)) <= {"inherit"}
    assert {each.get("fill") for each in root.iter("text")} == {"currentColor"}
    hidden = [each for each in having(root, "picture") if each.get("hidden") == "hidden"]
    labelled = [each for each in root.iter("svg") if list(each.iter("text"))]
    assert [each for picture in hidden for each in picture.iter("svg")] == labelled


def test_without_a_renderer_a_fit_is_its_repr(monkeypatch):
    monkeypatch.delitem(DISPLAY, "html")
    monkeypatch.delitem(DISPLAY, "text")
    assert FIT._repr_mimebundle_() == {"text/plain": repr(FIT)}


@pytest.mark.parametrize("exclude", [["text/html"], {"text/html", "image/png"}])
def test_a_notebook_chooses_the_kinds(exclude):
    assert FIT._repr_mimebundle_(exclude=exclude) == {"text/plain": str(FIT)}
