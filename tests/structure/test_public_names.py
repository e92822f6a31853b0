"""The public names: what `from gradaccum import ...` promises. A change here is a change of the API."""

from __future__ import annotations

import gradaccum

PUBLIC = """
    Choice Finding Fit Gpu GradaccumError InputError Model Neighbour Plan Problem PublishedRun Request Row
    find_gpu find_model find_run fit plan published_runs table training_loop
""".split()


def test_the_public_names_are_these():
    assert sorted(gradaccum.__all__) == sorted(PUBLIC)


def test_each_resolves_and_says_what_it_is():
    undocumented = [name for name in PUBLIC if not getattr(gradaccum, name).__doc__]
    assert undocumented == []


def test_dir_lists_each():
    assert set(PUBLIC) <= set(dir(gradaccum))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(gradaccum, "no_such_name")
