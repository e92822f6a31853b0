"""docs/presets.md is what the catalog says today."""

from __future__ import annotations

import math
import re

from docs.make_presets import PAGE, page
from gradaccum.catalog import published_runs

TEXT = PAGE.read_text(encoding="utf-8")


def rows() -> list[list[str]]:
    """The cells of every row of the two tables."""
    lines = [line for line in TEXT.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_is_up_to_date():
    assert page() == TEXT, "write it anew: python docs/make_presets.py"


def test_every_run_has_one_row_with_its_source():
    names = [re.findall("`([^`]+)`", cells[0])[0] for cells in rows()]
    assert sorted(names) == sorted(run.id for run in published_runs())
    assert all(f"]({run.url})" in TEXT for run in published_runs())


def test_the_factors_of_each_complete_row_make_its_batch():
    """Read from the page alone, as a reader would."""
    checked = 0
    for cells in rows():
        factors = [int(each.replace(",", "")) for each in re.findall(r"([\d,]+)\*?(?: x|$)", cells[4])]
        if len(factors) == 3:
            batch = re.findall(r"[\d,]+", cells[2])[0].replace(",", "")
            assert math.prod(factors) == int(batch), cells[0]
            checked += 1
    assert checked > 40
