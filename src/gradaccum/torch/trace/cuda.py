"""The profile of an NVIDIA GPU."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from gradaccum.torch.trace.device import Device

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def _patches() -> Iterator[None]:
    yield


def cuda(capability: tuple[int, int]) -> Device:
    """A GPU of this compute capability."""
    return Device(name=f"cuda sm_{capability[0]}{capability[1]}", types=frozenset({"meta"}), patches=_patches)
