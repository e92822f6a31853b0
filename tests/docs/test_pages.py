"""The guides leave nothing out that a person can type or read, and their links lead to a heading that is there."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import gradaccum
from gradaccum.cli.completion import parsers
from gradaccum.core.fields import FIELDS
from gradaccum.core.training import Training
from tests.structure.source import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_words(page: str) -> set[str]:
    """What the page sets as code."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)))


def keys(value: object) -> set[str]:
    """Every key of a JSON value, at any depth."""
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")


def lost_anchors(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    lost = []
    for file, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", text):
        target = (page.parent / file) if file else page
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if anchor not in map(slug, headings):
            lost.append(f"{file}#{anchor}")
    return lost


OF_ITS_OWN = {"fit": ("fit.md", "probe.md"), "audit": ("audit.md",)}
"""Commands whose options stand on pages of their own."""


@pytest.mark.parametrize("command", parsers())
def test_every_option_is_on_the_page_of_its_command_or_of_the_command_line(command):
    options = {flag for action in parsers()[command]._actions for flag in action.option_strings}
    pages = ("command-line.md", *OF_ITS_OWN.get(command, ()))
    assert sorted(options - set().union(*map(code_words, pages))) == []


def test_every_other_spelling_is_on_the_page_of_the_command_line():
    aliases = {alias for field in FIELDS for alias in field.aliases}
    assert sorted(aliases - code_words("command-line.md")) == []


def test_every_key_of_the_contract_is_on_the_page_of_the_json():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500, learning_rate=0.1, base_batch=256)
    found = keys(plan.to_dict())
    assert {"schema_version", "source", "rule", "neighbours"} <= found
    assert sorted(found - code_words("json.md")) == []


def test_every_keyword_and_every_result_is_on_the_page_of_python():
    names = {field.name for field in FIELDS} | {"preset"}
    names |= {field.name for kind in (gradaccum.Plan, Training) for field in dataclasses.fields(kind)}
    assert sorted(names - code_words("python.md")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_a_heading(page: Path):
    assert lost_anchors(page) == []


def test_a_lost_anchor_is_found(tmp_path: Path):
    (tmp_path / "a.md").write_text("# One `two`, three\n")
    (tmp_path / "b.md").write_text("[x](a.md#one-two-three) [y](a.md#four) [z](#five)\n")
    assert lost_anchors(tmp_path / "b.md") == ["a.md#four", "#five"]
