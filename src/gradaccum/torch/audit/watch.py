"""Watch a loop of one's own, in place: `with watch(model, optimizer, target_batch=64) as report:` around it."""

from __future__ import annotations

import datetime
import json
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from gradaccum.errors import InputError, Problem
from gradaccum.torch.audit.judge import judge
from gradaccum.torch.audit.records import RankSeen
from gradaccum.torch.audit.watcher import Watcher
from gradaccum.torch.audit.where import innermost

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from gradaccum.core.audit import AuditReport

WAIT_SECONDS = 20.0
"""How long a rank waits for the others' records once it is through."""

_numbers = count()


class watch:  # noqa: N801 - it reads as a verb
    """Observes the loop in its body without changing it; afterwards `report` tells what was found.

    model, optimizer: those to watch, or several; without them all that take part. target_batch: the samples over all
    ranks that an update is meant to see. updates: how many are audited from the first on, None for all; the others are
    counted. On several ranks each rank watches, and the report is on all of them.

    After the body, `verdict` ("right", "fault", "not seen"), `findings`, `facts`, `updates` and `to_dict()` are there,
    and `print(report)` shows them. Raises InputError for what cannot be watched.
    """

    def __init__(
        self,
        model: torch.nn.Module | Sequence[torch.nn.Module] | None = None,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        *,
        target_batch: int | None = None,
        updates: int | None = 3,
    ) -> None:
        models = _several(model, torch.nn.Module, "model", "a torch.nn.Module, or several")
        optimizers = _several(optimizer, torch.optim.Optimizer, "optimizer", "a torch.optim.Optimizer, or several")
        for name, value in (("target_batch", target_batch), ("updates", updates)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(Problem(name, f"must be a whole number of at least 1, not {value!r}"))
        inner = [innermost(each) for each in optimizers]
        self._watcher = Watcher(models, inner, updates=updates, target_batch=target_batch)
        self._number = next(_numbers)
        self.report: AuditReport | None = None

    def __enter__(self) -> watch:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        own = self._watcher.stop()
        self.report = judge([own] if kind is not None else gathered(own, self._number))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or self.__dict__.get("report") is None:
            raise AttributeError(f"{name} is there after the body of `with watch(...)` has ended")
        return getattr(self.report, name)

    def __str__(self) -> str:
        from gradaccum.show.audit import as_text

        return "<watching>" if self.report is None else as_text(self.report)

    def _repr_html_(self) -> str:
        from gradaccum.show.audit import as_fragment

        return "" if self.report is None else as_fragment(self.report)


def gathered(own: RankSeen, number: int) -> list[RankSeen]:
    """Every rank's record, through the process group's key-value store: no collective that could hang."""
    if own.world == 1:
        return [own]
    store = dist.distributed_c10d._get_default_store()
    keys = [f"gradaccum/audit/{number}/{rank}" for rank in range(own.world)]
    store.set(keys[own.rank], json.dumps(own.to_dict()))
    found = []
    for rank, key in enumerate(keys):
        try:
            store.wait([key], datetime.timedelta(seconds=WAIT_SECONDS))
            found.append(RankSeen.from_dict(json.loads(store.get(key))))
        except RuntimeError:  # it left the loop by an exception, or is still in it
            own.not_seen.append(f"rank {rank}: it did not say what it saw within {WAIT_SECONDS:.0f} seconds")
    return found if len(found) == own.world else [own]


def _several(given: Any, kind: type, name: str, words: str) -> list[Any]:
    if given is None:
        return []
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    for each in found:
        if not isinstance(each, kind) and not isinstance(innermost(each), kind):
            raise InputError(Problem(name, f"must be {words}, not {type(each).__name__}"))
    return found
