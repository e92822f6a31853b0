"""What the tests of the accumulator share."""

from __future__ import annotations

import pytest


@pytest.fixture
def two_ranks():
    """A process group of two of which only this one is there: its collectives do nothing."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()
