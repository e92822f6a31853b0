"""The public names: what `from gradaccum import ...` promises. A change here is a change of the API."""

from __future__ import annotations

import pytest

import gradaccum
import gradaccum.torch

PUBLIC = {
    gradaccum: """
        Choice Finding Fit Gpu GradaccumError InputError Model Neighbour Plan Problem PublishedRun Request Row
        find_gpu find_model find_run fit plan published_runs table training_loop
    """.split(),
    gradaccum.torch: "AccumulationError Accumulator Ramp ResumableBatches Update find_micro_batch verify watch".split(),
}

each_package = pytest.mark.parametrize("package", PUBLIC, ids=lambda package: package.__name__)


@each_package
def test_the_public_names_are_these(package):
    assert sorted(package.__all__) == sorted(PUBLIC[package])


@pytest.mark.parametrize(
    "package", [gradaccum, pytest.param(gradaccum.torch, marks=pytest.mark.slow)], ids=lambda package: package.__name__
)
def test_each_resolves_and_says_what_it_is(package):
    undocumented = [name for name in PUBLIC[package] if not getattr(package, name).__doc__]
    assert undocumented == []


@each_package
def test_dir_lists_each(package):
    assert set(PUBLIC[package]) <= set(dir(package))


@each_package
def test_an_unknown_name_is_an_attribute_error(package):
    assert not hasattr(package, "no_such_name")
