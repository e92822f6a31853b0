"""A zoo of training loops for the audit: each wrong loop has one planted mistake, and a right twin of the same code.

A module per framework. None of them knows the audit; `tests/torch/audit/test_zoo_is_true.py` compares what reaches
each loop's optimizer with one concatenated batch, so that wrong is wrong and right is right. What is held out was
written without sight of the audit; nothing is ever tuned on it, so that it measures how the audit does elsewhere.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from tests.torch.audit.zoo.loop import Loop

__all__ = ["FRAMEWORKS", "Loop", "loops"]

# framework: (what has to be installed, the modules of its loops)
FRAMEWORKS = {
    "torch": ("torch", ["plain", "plain_losses", "plain_models", "plain_recipes"]),
    "ddp": ("torch", ["ddp"]),
    "fsdp2": ("torch", ["fsdp2"]),
    "accelerate": ("accelerate", ["with_accelerate"]),
    "fabric": ("lightning", ["with_fabric"]),
    "lightning": ("lightning", ["with_lightning"]),
    "transformers": ("transformers", ["with_transformers"]),
    "trl": ("trl", ["with_trl"]),
    "heldout": (
        "torch",
        ["held_out", "held_out_gradients", "held_out_losses", "held_out_models", "held_out_precision"],
    ),
    "heldoutframeworks": ("transformers", ["held_out_frameworks", "held_out_lightning"]),
    "heldoutddp": ("torch", ["held_out_ddp"]),
}


def loops(*frameworks: str) -> list[Loop]:
    """All loops, wrong and right, of all frameworks that are installed or of those that are named."""
    return [
        loop
        for framework in frameworks or FRAMEWORKS
        if find_spec(FRAMEWORKS[framework][0])
        for module in FRAMEWORKS[framework][1]
        for loop in import_module(f"{__name__}.{module}").PEN.loops
    ]
