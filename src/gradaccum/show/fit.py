"""A fit as text for a terminal: the micro-batch, the plan, the bar against the card, and the ledger."""

from __future__ import annotations

from gradaccum.show.fit_words import bounds_words, changes_by_title, how_it_fits
from gradaccum.show.text import hung, wrapped
from gradaccum.units import show_bytes, show_count, show_percent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

BAR = 40
"""Characters of the memory bar."""


def fit_text(found: Mapping[str, Any], gpu: str, settings: str, width: int = 80) -> str:
    """found: the fit as plain data (its JSON). gpu: the card's name; settings: how the model is trained, in words.
    width: columns; no line is longer, words permitting.
    """
    memory = found["memory"]
    lines = [*wrapped(_headline(found, gpu), width), "", *wrapped(f"{found['model']}, {settings}", width), ""]
    for label, text in [*_plan(found["plan"]), *_memory(memory), *_engines(found)]:
        lines += hung(f"{label:10}", text, width)
    lines += ["", f"peak: {memory['peak_at']}" + (f", {memory['stage']}" if memory["stage"] else "")]
    for each in memory["ledger"]:
        lines += _line(each, memory["process_bytes"], width)
    lines.append(f"  {show_bytes(memory['peak_bytes']):>10}  allocated")
    for each in memory["outside"]:
        lines += _line(_bounded(each), memory["process_bytes"], width)
    for title, changes in changes_by_title(found):
        lines += ["", *wrapped(title, width)]
        for each in changes:
            lines += hung(f"  {show_bytes(each['bytes']):>10}  ", each["change"], width)
    for finding in found["findings"]:
        message = f"{finding['severity']} {finding['code']}: {finding['message']}"
        lines += ["", *wrapped(message, width), *wrapped(finding["action"], width, indent=2)]
    return "\n".join(lines)


def _headline(found: Mapping[str, Any], gpu: str) -> str:
    if not found["max_micro_batch"]:
        return f"nothing fits on {gpu}"

    def count(micro_batch: int) -> str:
        return _count(micro_batch, found["most_looked_at"])

    how = how_it_fits(found["max_micro_batch"], found["max_micro_batch_surely"])
    bounds = bounds_words(found, count)
    return f"micro-batch {count(found['max_micro_batch'])} {how} on {gpu}" + (f" ({bounds})" if bounds else "")


def _count(micro_batch: int, most: int) -> str:
    return show_count(micro_batch) + (" or more" if micro_batch == most else "")


def _plan(plan: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if not plan:
        return []
    text = (
        f"{show_count(plan['micro_batch'])} micro-batch x {show_count(plan['data_parallel'])} GPUs x "
        f"{show_count(plan['accum_steps'])} accumulation steps = {show_count(plan['effective_batch'])}"
    )
    return [("plan", text)]


def _memory(memory: Mapping[str, Any]) -> list[tuple[str, str]]:
    text = (
        f"{show_bytes(memory['process_bytes'])} of {show_bytes(memory['capacity_bytes'])}, "
        f"{show_bytes(memory['process_low_bytes'])} at best, {show_bytes(memory['process_high_bytes'])} at worst"
    )
    return [("memory", f"{_bar(memory)} {memory['verdict']}"), ("", text)]


def _bar(memory: Mapping[str, Any]) -> str:
    """The expected bytes against the card, and how far they may go."""
    capacity = memory["capacity_bytes"]
    filled, worst = (
        min(BAR, max(1, BAR * memory[name] // capacity)) for name in ("process_bytes", "process_high_bytes")
    )
    bar: str = "#" * filled + "-" * (worst - filled) + " " * (BAR - worst)
    return f"[{bar}]"


def _engines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The evidence, and what each engine that was asked says."""
    own, *nearest = found["evidence"]["words"].replace("\u00b1", "+-").split("; nearest")
    rows = [("evidence", own), *[("", f"nearest{each}") for each in nearest]]
    for engine in found["engines"]:
        at = [show_count(each) for each in engine["traces"]]
        traced = f", traced at micro-batch {', '.join(at)}" if at else ""
        text = f"{engine['engine']}: peak {show_bytes(engine['peak_bytes'])} at {engine['at']}{traced}"
        rows.append(("engine", text))
    if found["disagreement"]:
        apart = found["disagreement"]
        sign = "-" if apart["bytes"] < 0 else "+"
        rows.append(("", f"{sign}{show_bytes(abs(apart['bytes']))} between them ({apart['percent']}%)"))
    return rows


def _bounded(outside: Mapping[str, Any]) -> Mapping[str, Any]:
    """With its worst case in words, where nothing is expected of it."""
    if outside["bytes"] or not outside["high_bytes"]:
        return outside
    return {**outside, "formula": f"up to {show_bytes(outside['high_bytes'])}"}


def _line(line: Mapping[str, Any], whole: int, width: int) -> list[str]:
    head = f"  {show_bytes(line['bytes']):>10}  {show_percent(line['bytes'], whole):>5}%  "
    formula = line.get("formula")
    return hung(head, f"{line['name']}: {formula}" if formula else line["name"], width)
