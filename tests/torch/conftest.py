"""What the tests of the torch rooms share."""

from __future__ import annotations

import pytest


@pytest.fixture
def one_thread():
    """Some kernels of the CPU ask for a buffer for each thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
