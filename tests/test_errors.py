"""Messages: what, why, the nearest valid value."""

from __future__ import annotations

from gradaccum.errors import GradaccumError, InputError, MissingExtraError, Problem, nearest_words


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
