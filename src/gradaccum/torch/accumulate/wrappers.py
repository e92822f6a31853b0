"""Optimizers that another library has wrapped: its wrapper steps by rules of its own, and a group has one owner.

Accelerate's does nothing where its process-wide state says "no boundary", and scales by its own scaler; Fabric's hands
attributes through, so that what is set on it never reaches the optimizer inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WRAPPERS = {("accelerate.optimizer", "AcceleratedOptimizer"), ("lightning.fabric.wrappers", "_FabricOptimizer")}
"""By module and name, so that neither library is imported; both keep what they wrap in `optimizer`. Wrappers that
belong to the method, as Lookahead, are left alone."""


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """What these have wrapped; any other optimizer as it is."""
    while any((each.__module__, each.__name__) in WRAPPERS for each in type(optimizer).__mro__):
        optimizer = optimizer.optimizer
    return optimizer
