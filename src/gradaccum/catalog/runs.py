"""Published training runs: the presets, and the truth that plans are compared with.

The rows are in published_runs.json beside this file. A field that a row leaves out is not published.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from gradaccum.catalog.names import nearest_ids, normalise
from gradaccum.errors import InputError, Problem


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """One training run, or one phase of it, as its source states it. None is unknown."""

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    params: int | None = None
    sequence_length: int | None = None  # tokens
    unit: str = "sequences"  # what the batches count: sequences, images, or tokens
    target_batch: int | None = None  # units of one update
    tokens_per_step: int | None = None  # tokens of one update; may be a round figure, as in "4M tokens"
    micro_batch: int | None = None  # units of one rank in one micro-step
    micro_batch_tokens: int | None = None  # tokens of one rank in one micro-step, where unit is tokens
    accum_steps: int | None = None
    data_parallel: int | None = None  # ranks
    num_gpus: int | None = None  # devices
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    context_parallel: int | None = None
    peak_learning_rate: float | None = None
    warmup: str | None = None
    optimizer: str | None = None
    beta2: float | str | None = None  # text where it is a schedule
    token_budget: int | None = None  # tokens of the whole run
    notes: str | None = None
    derived: tuple[str, ...] = ()  # counts that no source states: they follow from the row's other counts
    recalled: bool = False  # written from memory, not compared with the source
    source: str
    url: str
    checked: str  # the day on which the row was taken into the catalog

    def inputs(self) -> dict[str, int]:
        """What the row gives to a plan, by the plan's names. `accum_steps` is left for the plan to reproduce.

        Degrees of 1 are left out, being the default. A run that counts its batches in tokens has no
        sequence length: its plan counts sequences of one token, which keeps every number right.
        """
        in_tokens = self.micro_batch_tokens is not None
        target_batch = self.tokens_per_step if in_tokens else self.target_batch
        given = {
            "micro_batch": self.micro_batch_tokens if in_tokens else self.micro_batch,
            "num_gpus": self.num_gpus,
            "tensor_parallel": _unless_one(self.tensor_parallel),
            "pipeline_parallel": _unless_one(self.pipeline_parallel),
            "context_parallel": _unless_one(self.context_parallel),
            "target_batch": target_batch,
            "target_tokens": self.tokens_per_step if target_batch is None else None,
            "sequence_length": 1 if in_tokens else self.sequence_length,
            "params": self.params,
            "token_budget": self.token_budget,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def missing(self) -> tuple[str, ...]:
        """The inputs that a plan needs and the row does not publish: a person adds them."""
        given = self.inputs()
        target = "sequence_length" if "target_tokens" in given else "target_batch"
        return tuple(name for name in ("micro_batch", "num_gpus", target) if name not in given)


@functools.cache
def published_runs() -> tuple[PublishedRun, ...]:
    """Every row, in the order of the file, which is read once."""
    import json

    beside = __file__[: -len("runs.py")]  # this runs where there is no os.path, too
    with open(beside + "published_runs.json", encoding="utf-8") as file:
        rows = json.load(file)
    for row in rows:
        for name in ("aliases", "derived"):
            row[name] = tuple(row.get(name, ()))
    return tuple(PublishedRun(**row) for row in rows)


def find_run(name: str) -> PublishedRun:
    """The run whose id or alias is `name`; case, spaces, hyphens and underscores do not count.

    Raises InputError on field `preset`, with the three nearest ids, where there is no such run.
    """
    wanted, ids = normalise(name), _ids()
    for run in published_runs():
        if run.id == ids.get(wanted):
            return run
    from gradaccum.units import quote

    raise InputError(
        Problem("preset", f"names no published run: {quote(name)}", nearest_ids(wanted, ids, even_far=True))
    )


@functools.cache
def _ids() -> dict[str, str]:
    """Normalised id or alias -> id."""
    return {normalise(known): run.id for run in published_runs() for known in (run.id, *run.aliases)}


def _unless_one(degree: int | None) -> int | None:
    return None if degree == 1 else degree
