"""The search for the largest micro-batch: against trying all of them, and how many trials it takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradaccum.torch.probe.find import pairs_of
from gradaccum.torch.probe.search import Point, Search


def search(peaks, kept, capacity, top, first=2, slack=lambda m: 0, knows=True):
    """(largest, trials, those that failed). peaks: functions of the micro-batch, one for each phase."""
    found = Search(top, first)
    trials, failed = [], []
    while found.next is not None:
        m = found.next
        assert 1 <= m <= top
        assert m not in trials
        trials.append(m)
        phases = tuple(peak(m) for peak in peaks)
        ok = max(phases) + slack(m) <= capacity
        if not ok:
            failed.append(m)
        found.tried(m, Point(m, kept, phases, slack(m)) if ok else None, capacity if knows else None)
    return found.largest, trials, failed


def brute(peaks, capacity, top, slack=lambda m: 0):
    return max((m for m in range(1, top + 1) if max(peak(m) for peak in peaks) + slack(m) <= capacity), default=0)


@given(
    kept=st.integers(0, 10**6),
    fixed=st.integers(0, 10**4),
    each=st.integers(0, 10**5),
    update=st.integers(0, 10**6),
    capacity=st.integers(1, 3 * 10**6),
    top=st.integers(1, 300),
    first=st.integers(-3, 400),
)
def test_lines_give_the_largest(kept, fixed, each, update, capacity, top, first):
    peaks = [lambda m: kept + fixed + each * m, lambda m: kept + update]
    largest, trials, failed = search(peaks, kept, capacity, top)
    assert largest == brute(peaks, capacity, top)
    assert len(trials) <= 4
    assert len(failed) <= 2  # only the very first trials, where nothing can be known before
    assert all(m <= 3 for m in failed)
    guided, trials, failed = search(peaks, kept, capacity, top, first)
    # A trial of the prediction that fits is enough only where what is fixed is small beside a sample's share.
    assert guided == largest or fixed * 4 > each
    assert len(trials) <= 5
    assert len(failed) <= 3


@given(
    kept=st.integers(0, 10**6),
    forward=st.tuples(st.integers(0, 10**5), st.integers(0, 10**4)),
    backward=st.tuples(st.integers(0, 10**5), st.integers(0, 10**5)),
    capacity=st.integers(1, 10**7),
    top=st.integers(1, 500),
    knows=st.booleans(),
)
def test_a_peak_that_bends_is_found_too(kept, forward, backward, capacity, top, knows):
    def peak(m):  # of one phase: the larger of two lines, so that it is steeper from some micro-batch on
        return kept + max(forward[0] + forward[1] * m, backward[0] + backward[1] * m)

    largest, trials, _ = search([peak], kept, capacity, top, knows=knows)
    assert largest == brute([peak], capacity, top)
    assert len(trials) <= 22


@pytest.mark.parametrize(
    ("first", "trials"),
    [
        (2, [2, 25, 27]),
        (27, [27]),
        (26, [26, 27]),
        (20, [20, 27]),
        (28, [28, 2, 25, 27]),
        (99, [64, 2, 25, 27]),
    ],
)
def test_a_gpu_that_holds_27(first: int, trials: list[int]):
    mib = 2**20
    largest, tried, failed = search([lambda m: (10_100 + 500 * m) * mib], 10_000 * mib, 24_000 * mib, 64, first)
    assert largest == 27
    assert tried == trials
    assert len(failed) == (first > 27)


def test_what_the_allocator_holds_back_is_left_free():
    peaks, slack = [lambda m: 1000 + 10 * m], lambda m: 2 * m + 50
    largest, trials, failed = search(peaks, 1000, 2000, 500, slack=slack)
    assert largest == brute(peaks, 2000, 500, slack) == 79
    assert trials == [2, 27, 79]
    assert not failed


@pytest.mark.parametrize("first", [1, 7])
def test_nothing_fits(first: int):
    assert search([lambda m: 10 + m], 10, 5, 50, first)[0] == 0


# Pairs


@given(target=st.integers(1, 300), num_gpus=st.integers(1, 9), largest=st.integers(1, 300))
def test_pairs_are_all_that_come_nearest(target, num_gpus, largest):
    found = pairs_of(target, num_gpus, largest)
    drifts = {}
    for m in range(1, largest + 1):
        for steps in range(1, target + 2):
            drifts[m, steps] = m * steps * num_gpus - target
    nearest = min(abs(drift) for drift in drifts.values())
    micro_batches = {m for (m, _), drift in drifts.items() if abs(drift) == nearest}
    assert {pair.micro_batch for pair in found} == micro_batches
    for pair in found:
        assert drifts[pair.micro_batch, pair.accum_steps] == pair.drift
        assert pair.effective_batch == target + pair.drift
        assert abs(pair.drift) == nearest
    assert [pair.micro_batch for pair in found] == sorted(micro_batches, reverse=True)


def test_no_pair_without_a_micro_batch():
    assert pairs_of(64, 8, 0) == []
