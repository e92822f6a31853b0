"""The PyTorch training loop for a plan, as text to paste: `training_loop(plan)`.

The text needs PyTorch alone, not this package. Each is one template with the plan's numbers and a few named
fragments filled in: `data_parallel` holds the loop, `pipeline` the loop around a pipeline schedule, `head` what
both begin with, `form` the choice between them. The tests execute the very text.
"""

from __future__ import annotations

from gradaccum.show.loop import data_parallel, pipeline
from gradaccum.show.loop.form import STRATEGIES, WEIGHTINGS, choose_form

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.plan import Plan

__all__ = ["STRATEGIES", "WEIGHTINGS", "training_loop"]


def training_loop(plan: Plan, strategy: str = "auto", weighting: str = "auto") -> str:
    """The training loop for this plan: Python source, complete, with set-up and one epoch of training.

    strategy: how gradients are reduced; one of STRATEGIES. "auto" is "single" for one data-parallel rank, "ddp" for
        more, and FSDP2 where DDP does not do: with tensor or pipeline parallelism.
    weighting: what makes the update equal to one big batch; one of WEIGHTINGS. "auto" is "tokens" where the plan
        has a sequence length, else "mean".

    Raises InputError where the name is none, or where the strategy cannot do what the plan asks.
    """
    form = choose_form(plan, strategy, weighting)
    return pipeline.text(form) if plan.pipeline_parallel > 1 else data_parallel.text(form)
