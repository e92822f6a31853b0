"""Messages: what, why, the nearest valid value."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gradaccum.errors import GradaccumError, InputError, MissingExtraError, Problem, edits, lowered, nearest_words


def test_a_problem_reads_as_a_sentence():
    problem = Problem("micro_batch", "must be at least 1, not 0", ["1"])
    assert str(problem) == "micro_batch: must be at least 1, not 0; nearest: 1"
    assert str(Problem("", "nothing was given")) == "nothing was given"
    assert problem.to_dict() == {"field": "micro_batch", "message": "must be at least 1, not 0", "nearest": ["1"]}
    assert problem == Problem("micro_batch", "must be at least 1, not 0", ("1",))
    assert problem != "micro_batch"
    assert len({problem, Problem("micro_batch", "must be at least 1, not 0", ("1",))}) == 1
    assert "Problem('micro_batch'" in repr(problem)


def test_an_input_error_holds_every_problem():
    error = InputError(Problem("a", "is wrong"), Problem("b", "is wrong too"))
    assert isinstance(error, GradaccumError)
    assert str(error) == "a: is wrong\nb: is wrong too"
    assert len(error.problems) == 2


def test_a_missing_extra_says_what_to_type():
    error = MissingExtraError("The live page", "web", "starlette")
    assert "pip install 'gradaccum[web]'" in str(error)


def test_nearest_words():
    known = ["micro_batch", "max_micro_batch", "num_gpus", "rounding"]
    assert nearest_words("micro_bach", known) == ["micro_batch", "max_micro_batch"]
    assert nearest_words("ROUNDINGS", known) == ["rounding"]
    assert nearest_words("colour", known) == []
    assert nearest_words("num_gpu", known, most=1) == ["num_gpus"]


def all_edits(one: str, other: str) -> int:
    """Levenshtein distance by its definition."""
    if not one or not other:
        return len(one) + len(other)
    same = all_edits(one[1:], other[1:]) + (one[0] != other[0])
    return min(same, 1 + all_edits(one[1:], other), 1 + all_edits(one, other[1:]))


WORDS = st.text("abc", max_size=5)


@given(WORDS, WORDS, st.integers(0, 6))
def test_edits_count_up_to_a_bound(one: str, other: str, most: int):
    assert edits(one, other, most) == min(all_edits(one, other), most + 1)


def test_only_ascii_letters_are_lowered():
    assert lowered("MICRO_Batch") == "micro_batch"
    assert lowered("K\u0130\u212a") == "k\u0130\u212a"
