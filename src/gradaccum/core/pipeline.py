"""What the accumulation count means for a pipeline: it is the number of the pipeline's micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.units import Ratio

SOURCE = "Narayanan et al. 2021, arXiv:2104.04473, section 2.2"


@dataclass(frozen=True)
class Pipeline:
    """How well one update fills a pipeline of p stages with k micro-batches and v stages per rank.

    bubble: share of an update's time in which a rank waits, (p - 1) / (v k + p - 1). The source gives the bubble
        over the ideal time, (p - 1) / (v k); the share of the whole follows. Holds for GPipe and 1F1B flushed at
        each update, equal stages, free communication.
    nearest_even: accumulation counts next to k that are multiples of p, as interleaving wants; empty where k is one.
    """

    stages: int
    virtual: int
    micro_batches: int
    bubble: Ratio
    nearest_even: tuple[int, ...]


def pipeline(stages: int, virtual: int, accum_steps: int) -> Pipeline | None:
    """The pipeline of a plan; None without one."""
    if stages == 1:
        return None
    below = accum_steps // stages * stages
    uneven = virtual > 1 and below != accum_steps
    return Pipeline(
        stages=stages,
        virtual=virtual,
        micro_batches=accum_steps,
        bubble=Ratio(stages - 1, virtual * accum_steps + stages - 1),
        nearest_even=tuple(count for count in (below, below + stages) if count) if uneven else (),
    )
