"""Batches cut along their samples: the parts together are the batch, and nobody guesses."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch.utils.data import default_collate
from transformers import BatchEncoding

from gradaccum.torch.accumulate import AccumulationError
from gradaccum.torch.accumulate.split import cut, samples_of, split

pytestmark = pytest.mark.slow

Pair = namedtuple("Pair", "x y")
X = torch.arange(14.0).reshape(7, 2)
Y = torch.arange(7)


@pytest.mark.parametrize(
    "batch",
    [
        X,
        (X, Y),
        [X, Y],
        Pair(X, Y),
        {"x": X, "y": Y, "scale": torch.tensor(2.0), "name": "a", "n": 3, "none": None},
        OrderedDict(x=X, y={"deep": [Y, (X, Y)]}),
        BatchEncoding({"input_ids": X, "labels": Y}),
        default_collate([{"x": x, "text": str(number)} for number, x in enumerate(X)]),
        default_collate([(x, str(number)) for number, x in enumerate(X)]),
        {"x": X, "spans": [[i] * i for i in range(7)]},
    ],
    ids=lambda batch: type(batch).__name__,
)
@pytest.mark.parametrize("parts", [1, 2, 3, 7, 16])
def test_parts_together_are_the_batch(batch, parts):
    found = split(batch, parts)
    sizes = [samples_of(each) for each in found]
    assert len(found) == min(parts, 7)
    assert sum(sizes) == 7
    assert max(sizes) - min(sizes) <= 1
    assert {type(each) for each in found} == {type(batch)}
    assert flat(found) == flat([batch])


def flat(batches):
    """Every value of each field, sample after sample, and what belongs to no sample once."""
    found = {}

    def walk(value, path):
        if isinstance(value, torch.Tensor) and value.dim():
            found.setdefault(path, []).extend(value.tolist())
        elif isinstance(value, (dict, BatchEncoding)):
            for name, each in value.items():
                walk(each, (*path, name))
        elif isinstance(value, (list, tuple)) and not isinstance(value[0], (str, list)):
            for number, each in enumerate(value):
                walk(each, (*path, number))
        elif isinstance(value, (list, tuple)):
            found.setdefault(path, []).extend(value)
        else:
            found[path] = value

    for batch in batches:
        walk(batch, ())
    return found


def test_parts_are_not_copies():
    assert split(X, 2)[0].data_ptr() == X.data_ptr()
    assert [len(each) for each in cut(X, [5, 0, 2])] == [5, 0, 2]
    assert [len(each) for each in split(X[:0], 2)] == [0]


@pytest.mark.parametrize("batch", [None, "text", {"x": X, "rows": torch.ones(3)}, [], torch.tensor(1.0)], ids=str)
def test_a_batch_that_does_not_say_how_many_samples_it_has(batch):
    with pytest.raises(AccumulationError, match="say split="):
        split(batch, 2)


def test_a_batch_with_something_unknown_in_it():
    with pytest.raises(AccumulationError, match="ndarray"):
        split({"x": X, "y": Y.numpy()}, 2)
