"""The table of close plans: its numbers against brute force, and every link against the plan that it leads to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import gradaccum
from gradaccum.show.nearby import changes_to, nearby_section
from tests.show.markup import parse, the, words


def address(changes):
    return "?" + "&".join(f"{name}={changes[name]}" for name in sorted(changes))


def table(plan, link=address):
    """A row for each line of the table: its cells' words, and its address."""
    root = parse(str(nearby_section(plan, link)))
    found = []
    for row in root.find(".//tbody").iter("tr"):
        anchor = row.find("th/a")
        found.append([words(cell) for cell in row] + [None if anchor is None else anchor.get("href")])
    return found


def test_the_rows_of_the_worked_example():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500)
    shown = [row[:4] for row in table(plan)]
    assert shown == [
        ["4 \u00d7 8 \u00d7 15", "480", "\u221220", "floor, \u22124.00%"],
        ["4 \u00d7 8 \u00d7 16", "512", "+12", "your plan, ceil, +2.40%"],
        ["3 \u00d7 8 \u00d7 21", "504", "+4", "+0.80%"],
        ["2 \u00d7 8 \u00d7 31", "496", "\u22124", "\u22120.80%"],
        ["1 \u00d7 8 \u00d7 63", "504", "+4", "+0.80%"],
        ["1 \u00d7 8 \u00d7 62", "496", "\u22124", "\u22120.80%"],
    ]


def test_the_plans_own_row_is_no_link():
    rows = table(gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500))
    assert [row[4] is None for row in rows] == [False, True, False, False, False, False]


def test_without_a_link_there_is_none():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500)
    assert {row[4] for row in table(plan, None)} == {None}


def test_where_all_roundings_agree_there_is_one_row():
    rows = table(gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=512))
    assert [row[3] for row in rows] == ["your plan, every rounding, on the target"]


def test_drift_in_tokens():
    plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_tokens=1_000_000, sequence_length=2048)
    root = parse(str(nearby_section(plan, None)))
    assert "drift, tokens" in words(root.find(".//thead"))
    assert "\u221216,960" in words(the(root, "own"))


INPUTS = st.fixed_dictionaries(
    {"micro_batch": st.integers(1, 20), "num_gpus": st.integers(1, 6), "target_batch": st.integers(1, 3000)},
    optional={
        "rounding": st.sampled_from(["round", "ceil", "floor", "exact"]),
        "vary": st.sampled_from(["num_gpus", "micro_batch"]),
        "max_micro_batch": st.integers(20, 24),
    },
)


@given(INPUTS)
def test_applying_a_row_gives_the_plan_that_it_shows(inputs):
    plan = gradaccum.plan(**inputs)
    for each in plan.better_choices:
        changed = changes_to(plan, each.micro_batch, each.num_gpus, each.accum_steps)
        applied = gradaccum.plan(**{**inputs, **changed})
        shown = (each.micro_batch, each.num_gpus, each.accum_steps, each.effective_batch)
        assert (applied.micro_batch, applied.num_gpus, applied.accum_steps, applied.effective_batch) == shown
    for each in plan.neighbours:
        changed = changes_to(plan, plan.micro_batch, plan.num_gpus, each.accum_steps)
        assert gradaccum.plan(**{**inputs, **changed}).effective_batch == each.effective_batch


def test_a_row_that_no_rounding_reaches_fixes_the_steps_instead():
    plan = gradaccum.plan(micro_batch=7, num_gpus=1, target_batch=500)  # 71 x 7 = 497
    changed = changes_to(plan, 1, 1, 502)
    assert changed["accum_steps"] == "502"
    assert (changed["target_batch"], changed["target_tokens"]) == ("", "")
    applied = gradaccum.plan(**changed)
    assert (applied.effective_batch, applied.solved_for) == (502, "target_batch")


def test_words_under_the_table_say_where_was_looked():
    def remark(**inputs):
        plan = gradaccum.plan(**{"micro_batch": 1, "num_gpus": 8, "target_batch": 20, **inputs})
        return words(the(parse(str(nearby_section(plan, None))), "hint"))

    assert remark() == "Nothing is closer, of micro-batches up to 1 on your GPUs."
    assert remark(vary="num_gpus").startswith("Closer ones, of other GPU counts too")
    assert remark(vary="micro_batch") == "Nothing is closer, of larger micro-batches too."
    assert remark(target_batch=24) == "This plan is on the target: nothing is closer."
