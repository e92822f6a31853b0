"""A contrastive loss over the whole batch, in pieces, against one pass over it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradaccum.torch import AccumulationError, Accumulator

pytestmark = pytest.mark.slow


def info_nce(pairs):
    """Each query against every key; what other ranks have is theirs."""
    queries, keys = pairs["q"], pairs["k"]
    scores = queries @ keys.T / 0.1
    return nn.functional.cross_entropy(scores, torch.arange(len(scores)), reduction="sum"), len(scores)


def tower(dropout=0.0):
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 4)).double()


def data(rows=8):
    generator = torch.Generator().manual_seed(9)
    return torch.randn(rows, 2, 6, generator=generator, dtype=torch.float64)


def encoded(model, batch):
    return {"q": model(batch[:, 0]), "k": model(batch[:, 1])}


def test_it_is_the_gradient_of_the_whole_batch():
    model, right = tower(), tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    accumulator = Accumulator(model, optimizer, accum_steps=4, grad_norm=True)
    for group in accumulator.groups(list(data().split([2, 2, 3, 1]))):
        group.cached(lambda batch: encoded(model, batch), info_nce)
        update = group.step()
    loss, weight = info_nce(encoded(right, data()))
    (loss / weight).backward()
    for ours, start, each in zip(model.parameters(), tower().parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(start - ours, each.grad, rtol=1e-9, atol=1e-12)
    assert (update.micro_batches, update.effective_batch, update.weight) == (4, 8, 8)
    assert update.loss == pytest.approx(loss.item() / 8)


def test_both_passes_drop_the_same():
    model = tower(dropout=0.5)
    accumulator = Accumulator(model, torch.optim.SGD(model.parameters(), lr=1.0), accum_steps=2)
    seen = []

    def encode(batch):
        found = encoded(model, batch)
        seen.append(found["q"].detach())
        return found

    group = next(accumulator.groups(list(data().split(4))))
    group.cached(encode, info_nce)
    group.step()
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], encoded(model, data().split(4)[0])["q"])


def test_what_cannot_be_cached():
    model = tower()
    optimizer = torch.optim.SGD(model.parameters())
    group = next(Accumulator(model, optimizer).groups([data()], until_weight=3))
    with pytest.raises(AccumulationError, match="a weight ends"):
        group.cached(lambda batch: encoded(model, batch), info_nce)
    group = next(Accumulator(model, optimizer, accum_steps=1).groups([data()]))
    with pytest.raises(AccumulationError, match="shape"):
        group.cached(lambda batch: encoded(model, batch), lambda pairs: (pairs["q"], 1))
    with pytest.raises(AccumulationError, match="gone through once"):
        group.cached(lambda batch: encoded(model, batch), info_nce)
