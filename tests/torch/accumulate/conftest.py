"""What the tests of the accumulator share."""

from __future__ import annotations

import pytest


def _alone(world):
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    yield
    dist.destroy_process_group()


@pytest.fixture
def two_ranks():
    """A process group of two of which only this one is there: its collectives do nothing."""
    yield from _alone(2)


@pytest.fixture
def four_ranks():
    """The same of four."""
    yield from _alone(4)
