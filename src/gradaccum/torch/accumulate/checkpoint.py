"""What a restart needs beside models, optimizers and loader: progress, the expected weight, RNG, and an open group.

A group that is open is kept with its gradients, and goes on as one that was carried. They are this rank's own, so that
it can be continued by the same number of ranks alone; from the last boundary any number can, as parameters change only
there.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gradaccum.torch.accumulate.errors import AccumulationError
from gradaccum.torch.accumulate.progress import Progress
from gradaccum.torch.accumulate.rng import random_state, set_random_state
from gradaccum.torch.accumulate.sums import Sums

if TYPE_CHECKING:
    from gradaccum.torch.accumulate.state import State

VERSION = 1
SUMS = ("weight", "loss", "samples", "seen", "micro_batches", "skipped")


def pack(state: State) -> dict[str, Any]:
    """All of it, as tensors, numbers and dictionaries; what is this rank's own under its number."""
    sums = state.open or state.carried
    if sums is not None and sums.waiting:
        raise AccumulationError("a micro-batch has no answer yet: save after group.backward, or between groups")
    if sums is not None and state.sync.sharded and state.sync.mode == "last":
        raise AccumulationError(
            "a group that defers its reduction keeps unsharded gradients inside FSDP2, where nobody can save them: "
            "save between groups, or use reduce='every'"
        )
    found: dict[str, Any] = {
        "version": VERSION,
        "world": state.sync.world,
        "progress": asdict(state.progress),
        "expected": None if state.expected is None else float(state.expected),
        f"rng of rank {state.sync.rank}": random_state(state.device),
        f"split of rank {state.sync.rank}": state.split,
    }
    if sums is not None:
        group = {name: getattr(sums, name) for name in SUMS}
        group["gradients"] = [None if each is None else each.detach().clone() for each in state.all_gradients()]
        if state.buffers is not None:
            group["lost"] = state.buffers.lost(state.parameters)
        found[f"group of rank {state.sync.rank}"] = group
    return found


def unpack(state: State, saved: dict[str, Any], group: bool) -> None:
    """The state as it was packed. group: go on with an open one; else from the boundary before it."""
    _check_ours(saved)
    if saved["version"] != VERSION:
        raise AccumulationError(f"this checkpoint has version {saved['version']}, and {VERSION} can be read")
    rank = state.sync.rank
    inside = any(name.startswith("group of rank") for name in saved)
    if inside and group and saved["world"] != state.sync.world:
        raise AccumulationError(
            f"this checkpoint was taken inside a group by {saved['world']} ranks, and {state.sync.world} are there: "
            "load_state_dict(..., group=False) goes on from the boundary before it"
        )
    state.open = state.carried = None
    state.zero_grad()
    state.progress = Progress(**saved["progress"])
    state.expected = saved["expected"]
    if group:  # else another micro-batch may be meant
        state.split = saved.get(f"split of rank {rank}", 1)
    own = saved.get(f"group of rank {rank}")
    if own is not None and group:
        state.carried = Sums(**{name: own[name] for name in SUMS})
        state.put_gradients(own["gradients"])
        if state.buffers is not None:
            state.buffers.put_lost(state.parameters, own["lost"])
    generators = saved.get(f"rng of rank {rank}")
    if generators is not None and saved["world"] == state.sync.world and (group or not inside):
        set_random_state(state.device, generators)


def _check_ours(saved: object) -> None:
    """Raises AccumulationError where this is no accumulator's state, but perhaps a dictionary that has one in it."""
    if _is_ours(saved):
        return
    inside = [name for name, each in saved.items() if _is_ours(each)] if isinstance(saved, dict) else []
    names = ", ".join(map(repr, list(saved)[:5])) if isinstance(saved, dict) else f"{saved!r:.40}"
    raise AccumulationError(
        "this is not what accumulator.state_dict() gave: "
        + (f"that lies in it under {inside[0]!r}" if inside else f"it has {names or 'nothing'}")
    )


def _is_ours(saved: object) -> bool:
    return isinstance(saved, dict) and {"version", "world", "progress", "expected"} <= saved.keys()
