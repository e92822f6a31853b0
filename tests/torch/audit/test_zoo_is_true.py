"""Wrong loops are wrong and right loops are right: by one concatenated batch, never by the audit."""

from __future__ import annotations

import pytest

from tests.torch.audit.zoo import FRAMEWORKS, loops
from tests.torch.audit.zoo.__main__ import run_on_ranks
from tests.torch.audit.zoo.truth import compare, is_as_it_says

full = pytest.mark.full  # what the zoo says of itself changes with the zoo alone


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "framework",
    [
        "torch",
        *[
            pytest.param(name, marks=full)
            for name in ("accelerate", "fabric", "lightning", "transformers", "trl", "heldout", "heldoutframeworks")
        ],
    ],
)
def test_the_big_batch_s_gradient_comes_in_right_loops_and_in_no_wrong_one(framework, capfd):
    known = [loop for loop in loops(framework) if loop.truth and loop.world == 1]
    if not known:
        pytest.skip(f"{framework} is not installed")
    seen = {loop.name: compare(loop) for loop in known}
    untrue = {loop.name: seen[loop.name] for loop in known if not is_as_it_says(loop, seen[loop.name])}
    assert not untrue
    assert capfd.readouterr() == ("", "")  # a loop says nothing


@full
@pytest.mark.timeout(300)
def test_it_holds_on_two_ranks():
    on_ranks = [loop.name for loop in loops() if loop.world == 2]
    lines = run_on_ranks(on_ranks)
    assert len(lines) == len(on_ranks)
    assert not [line for line in lines if "NOT" in line]


def test_there_are_enough_of_both_and_every_wrong_loop_has_a_right_twin():
    every = loops()
    assert len({loop.name for loop in every}) == len(every)
    wrong, right = [loop for loop in every if loop.faults], {loop.name for loop in every if not loop.faults}
    assert min(len(wrong), len(right)) >= 45
    assert {loop.framework for loop in wrong} == {loop.framework for loop in every}
    for loop in wrong:
        assert any(loop.name.startswith(name) for name in right), loop.name
        assert loop.why
    assert {loop.framework for loop in every} <= FRAMEWORKS.keys()
