"""docs/audit.md: the report that it shows is what its own loop gives, and its links lead somewhere."""

from __future__ import annotations

import re

import pytest

from tests.show.markup import parse, the, words
from tests.structure import markdown
from tests.structure.source import ROOT

GUIDE = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_report_that_is_shown_is_the_report(capsys):
    loop, shown = markdown.blocks(GUIDE, "python")[0], markdown.blocks(GUIDE, "text")[0]
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(loop, "docs/audit.md", "exec"), names)
    assert markdown.same(capsys.readouterr().out, shown)
    root = parse(names["report"]._repr_html_())
    assert words(the(root, "verdict")) == shown.splitlines()[0]
    (drawn, _) = root.iter("svg")
    assert [each.get("class") for each in drawn.iter("path")][:2] == ["ga-off", "ga-off"]


def test_links_within_the_page_lead_to_a_heading():
    headings = re.findall(r"^#+ (.*)$", GUIDE, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
    links = re.findall(r"\]\(#([^)]*)\)", GUIDE)
    assert len(links) > 20
    assert [each for each in links if each not in anchors] == []


def test_verdicts_are_listed_with_the_severity_that_they_have():
    """One line of the table for each entry, in its order."""
    rows = re.findall(
        r"^\| \[(GA\d+)\]\(#(ga\d+)[^)]*\) \| [^|]+ \| (error|warning|note) \|$", GUIDE, flags=re.MULTILINE
    )
    assert [code for code, _, _ in rows] == re.findall(r"^### (GA\d+)", GUIDE, flags=re.MULTILINE)
    assert all(code.lower() == anchor for code, anchor, _ in rows)


@pytest.mark.slow
def test_severities_of_the_table_are_those_of_the_audit():
    from gradaccum.torch.audit.findings import KINDS

    rows = dict(re.findall(r"^\| \[(GA\d+)\].* \| (error|warning|note) \|$", GUIDE, flags=re.MULTILINE))
    assert {code: rows[code] for code in KINDS} == {code: kind.severity for code, kind in KINDS.items()}
