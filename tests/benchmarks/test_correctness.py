"""The committed table of who is right: ours is, but where no runtime can be; and it can be made again."""

from __future__ import annotations

import json

import pytest

from benchmarks.common import RESULTS
from benchmarks.correctness.__main__ import PAGE, measured
from benchmarks.correctness.page import page

RESULT = json.loads((RESULTS / "correctness.json").read_text(encoding="utf-8"))


def test_ours_is_right_in_every_case_but_a_loss_that_its_caller_has_divided():
    wrong = {name for name, case in RESULT["cases"].items() if not case["loops"]["gradaccum"]["holds"]}
    assert wrong == {"A8"}


def test_no_loop_is_shown_that_is_right_or_wrong_everywhere_and_every_one_ran():
    for loop in RESULT["cases"]["A1"]["loops"]:
        held = [case["loops"][loop]["holds"] for case in RESULT["cases"].values()]
        assert True in held
        assert False in held


def test_the_page_is_that_of_the_results():
    assert PAGE.read_text(encoding="utf-8") == page(RESULT)


@pytest.mark.slow
def test_a_handful_of_cases_gives_the_same_again():
    handful = ("A1", "A3", "A11", "A14", "A22")
    assert measured(*handful) == {name: RESULT["cases"][name] for name in handful}
