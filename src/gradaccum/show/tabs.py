"""The forms of the training loop: their names in a permalink, and the words on their tabs."""

from __future__ import annotations

STRATEGIES = (
    ("single", "One rank"),
    ("ddp", "DDP"),
    ("fsdp2", "FSDP2"),
    ("fsdp2-deferred", "FSDP2, reduced once"),
)
"""How gradients are reduced."""

WEIGHTINGS = (("tokens", "Loss by tokens"), ("mean", "Loss by samples"))
"""How the loss is weighed."""
