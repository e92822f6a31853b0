"""What a probe found, as text for a terminal: the pair, how it came to it, and the other pairs."""

from __future__ import annotations

from gradaccum.show.text import wrapped
from gradaccum.units import show_bytes, show_count, show_real, show_signed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

HEADER = ("micro-batch", "accumulation steps", "batch", "samples/s")


def probe_text(found: Mapping[str, Any], width: int = 80) -> str:
    """found: the answer as plain data (its JSON). width: columns; no line is longer, words and numbers permitting."""
    lines = [*wrapped(_headline(found), width), *wrapped(_way(found), width)]
    if found["capacity_bytes"] is not None:
        capacity = f"capacity: {show_bytes(found['capacity_bytes'])}, {_from(found)}; on {found['device']}"
        lines += wrapped(capacity, width)
    if found["pairs"]:
        rows = [HEADER, *[_row(pair) for pair in found["pairs"]]]
        sizes = [max([len(row[column]) for row in rows]) for column in range(len(HEADER))]
        lines.append("")
        for row in rows:
            cells = [" " * (size - len(cell)) + cell for cell, size in zip(row, sizes)]
            lines.append("  ".join(cells).rstrip())
    for note in found["notes"]:
        lines += ["", *wrapped(note, width)]
    return "\n".join(lines)


def trial_text(trial: Mapping[str, Any]) -> str:
    """One trial, in one line."""
    head = f"micro-batch {show_count(trial['micro_batch'])}: "
    if not trial["ok"]:
        return head + str(trial["why"])
    rate = trial["samples_per_second"]
    speed = f", {show_real(rate, 3)} samples/s" if rate else ""
    return f"{head}{show_bytes(trial['allocated_bytes'])} allocated{speed}"


def _headline(found: Mapping[str, Any]) -> str:
    if found["micro_batch"] is None:
        return "nothing fits" if found["ooms"] else "no answer: no trial came to its end in time"
    why = "the fastest that was timed" if found["pick"] == "throughput" else "the largest"
    return (
        f"micro-batch {show_count(found['micro_batch'])} x {show_count(found['num_gpus'])} GPUs x "
        f"{show_count(found['accum_steps'])} accumulation steps = {show_count(found['effective_batch'])}: {why}"
    )


def _way(found: Mapping[str, Any]) -> str:
    trials, ooms = len(found["trials"]), found["ooms"]
    out = "none of them out of memory" if not ooms else f"{show_count(ooms)} of them out of memory"
    expected = "" if found["prediction"] is None else f", predicted {show_count(found['prediction'])}"
    return f"largest that fits: {show_count(found['max_micro_batch'])}{expected}; {show_count(trials)} trials, {out}"


def _from(found: Mapping[str, Any]) -> str:
    return "as asked" if found["capacity_from"] == "memory_limit" else str(found["capacity_from"])


def _row(pair: Mapping[str, Any]) -> tuple[str, str, str, str]:
    rate = pair["samples_per_second"]
    drift = f" ({show_signed(pair['drift'])})" if pair["drift"] else ""
    return (
        show_count(pair["micro_batch"]),
        show_count(pair["accum_steps"]),
        show_count(pair["effective_batch"]) + drift,
        show_real(rate, 3) if rate else "",
    )
