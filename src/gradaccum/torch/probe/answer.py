"""What a probe answers: the pair to train with, and how it came to it. Plain data; bytes, seconds, samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One micro-batch, tried: two updates of two micro-steps, unless memory ran out before.

    kept_bytes: of parameters, buffers, optimizer states and gradients. step_bytes, update_bytes: allocated at the peak
    of the micro-steps (forward and backward), and of the optimizer's update. reserved_bytes: what CUDA's allocator
    held; None elsewhere. step_seconds, update_seconds: of one micro-step and of one update. All of them are None
    where the trial failed. why: what failed. out_of_memory: that memory did; else the time was up.
    With several ranks each is that of the worst one.
    """

    micro_batch: int
    ok: bool
    capacity_bytes: int | None = None
    kept_bytes: int | None = None
    step_bytes: int | None = None
    update_bytes: int | None = None
    reserved_bytes: int | None = None
    step_seconds: float | None = None
    update_seconds: float | None = None
    out_of_memory: bool = False
    why: str = ""

    @property
    def allocated_bytes(self) -> int | None:
        """At the peak."""
        if self.step_bytes is None or self.update_bytes is None:
            return None
        return max(self.step_bytes, self.update_bytes)

    @property
    def samples_per_second(self) -> float | None:
        """Of one rank within its micro-steps."""
        return self.micro_batch / self.step_seconds if self.step_seconds else None

    def to_dict(self) -> dict[str, object]:
        """As `fit --probe --json` has it."""
        return {**vars(self), "allocated_bytes": self.allocated_bytes, "samples_per_second": self.samples_per_second}


@dataclass(frozen=True)
class Pair:
    """A micro-batch and its accumulation steps. samples_per_second: of all ranks over a whole update; None: not timed.

    Communication between ranks is not in it: trials run on each rank alone.
    """

    micro_batch: int
    accum_steps: int
    effective_batch: int
    drift: int
    samples_per_second: float | None = None

    def to_dict(self) -> dict[str, object]:
        """As `fit --probe --json` has it."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Found:
    """The answer. chosen: the pair to train with; None where not even a micro-batch of 1 fits.

    max_micro_batch: the largest that was tried and fits, up to the target's share of one rank; 0 where none does.
    pairs: the fitting ones that keep the target batch, or come nearest where none can (`keeps_target` says which),
    largest micro-batch first. prediction: the largest micro-batch as it was predicted, by `predicted_by`, before it was
    tried. notes: what to know about the answer.
    """

    target_batch: int
    num_gpus: int
    capacity_bytes: int | None
    capacity_from: str
    device: str
    max_micro_batch: int
    chosen: Pair | None
    pairs: tuple[Pair, ...]
    trials: tuple[Trial, ...]
    prediction: int | None
    predicted_by: str
    pick: str
    notes: tuple[str, ...] = ()

    @property
    def micro_batch(self) -> int | None:
        """Of the chosen pair."""
        return self.chosen.micro_batch if self.chosen else None

    @property
    def accum_steps(self) -> int | None:
        """Of the chosen pair."""
        return self.chosen.accum_steps if self.chosen else None

    @property
    def effective_batch(self) -> int | None:
        """Of the chosen pair."""
        return self.chosen.effective_batch if self.chosen else None

    @property
    def keeps_target(self) -> bool:
        """Whether the chosen pair gives the target batch itself, and not the nearest."""
        return self.chosen is not None and self.chosen.drift == 0

    @property
    def ooms(self) -> int:
        """The trials in which memory ran out."""
        return sum(trial.out_of_memory for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `gradaccum fit --probe`."""
        found: dict[str, Any] = {"schema_version": 1, "engine": "probe"}
        found |= {key: value for key, value in vars(self).items() if key not in {"chosen", "pairs", "trials", "notes"}}
        for name in ("micro_batch", "accum_steps", "effective_batch", "keeps_target", "ooms"):
            found[name] = getattr(self, name)
        found["pairs"] = [pair.to_dict() for pair in self.pairs]
        found["trials"] = [trial.to_dict() for trial in self.trials]
        found["notes"] = list(self.notes)
        return found
