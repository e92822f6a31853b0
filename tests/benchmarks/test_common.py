"""The statistics of the benchmarks, beside NumPy's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common import percentile, ratios, spread, take_turns

if TYPE_CHECKING:
    from collections.abc import Callable

times = st.floats(min_value=1e-6, max_value=1e6)


@given(values=st.lists(times, min_size=1, max_size=60), percent=st.floats(min_value=0, max_value=100))
def test_a_percentile_is_the_one_of_numpy(values: list[float], percent: float):
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), rel=1e-9)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_no_percentile_of_nothing_and_none_outside_of_0_to_100(values: list[float], percent: float):
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, percent)


def test_a_spread_has_four_digits_in_the_unit_asked_for():
    seconds = [(1 + number) / 3000 for number in range(101)]
    assert spread(seconds, scale=1000) == {"median": 17.0, "p5": 2.0, "p95": 32.0}
    assert spread([2 / 3]) == {"median": 0.6667, "p5": 0.6667, "p95": 0.6667}


def test_pairs_cancel_what_slows_both():
    """A machine that turns three times slower half-way changes every time, and no ratio."""
    slowness = [1.0] * 5 + [3.0] * 6
    found = ratios([20 * each for each in slowness], [5 * each for each in slowness])
    assert found == pytest.approx([4.0] * 11)


def test_unequal_turns_are_not_paired():
    with pytest.raises(ValueError, match="3 turns cannot be paired with 2"):
        ratios([1, 2, 3], [1, 2])


def test_contenders_take_turns():
    calls = []

    def contender(name: str) -> Callable[[], int]:
        def measure() -> int:
            calls.append(name)
            return len(calls)

        return measure

    found = take_turns({name: contender(name) for name in "ABC"}, 3)
    assert "".join(calls) == "ABCABCABC"
    assert found == {"A": [1, 4, 7], "B": [2, 5, 8], "C": [3, 6, 9]}
