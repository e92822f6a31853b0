"""A fit as text for a terminal: the micro-batch, the plan, the bar against the card, and the ledger."""

from __future__ import annotations

from gradaccum.units import show_bytes, show_count, show_percent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

BAR = 40
"""Characters of the memory bar."""


def fit_text(found: Mapping[str, Any], gpu: str, settings: str) -> str:
    """found: the fit as plain data (its JSON). gpu: the card's name; settings: how the model is trained, in words."""
    memory, plan = found["memory"], found["plan"]
    lines = [_headline(found, gpu), "", f"{found['model']}, {settings}", ""]
    if plan:
        lines.append(
            f"plan      {show_count(plan['micro_batch'])} micro-batch x {show_count(plan['data_parallel'])} GPUs x "
            f"{show_count(plan['accum_steps'])} accumulation steps = {show_count(plan['effective_batch'])}"
        )
    lines.append(f"memory    {_bar(memory)} {memory['verdict']}")
    lines.append(
        f"          {show_bytes(memory['process_bytes'])} of {show_bytes(memory['capacity_bytes'])}, "
        f"{show_bytes(memory['process_low_bytes'])} at best, {show_bytes(memory['process_high_bytes'])} at worst"
    )
    lines.append(f"evidence  {_evidence(found['evidence'])}")
    lines += [_engine(each) for each in found["engines"]]
    if found["disagreement"]:
        apart = found["disagreement"]
        sign = "-" if apart["bytes"] < 0 else "+"
        lines.append(f"          {sign}{show_bytes(abs(apart['bytes']))} between them ({apart['percent']}%)")
    lines += ["", f"peak: {memory['peak_at']}" + (f", {memory['stage']}" if memory["stage"] else "")]
    lines += [_line(each, memory["process_bytes"]) for each in memory["ledger"]]
    lines.append(f"  {show_bytes(memory['peak_bytes']):>10}  allocated")
    lines += [_line(_bounded(each), memory["process_bytes"]) for each in memory["outside"]]
    for title, changes in changes_by_title(found):
        lines += ["", title]
        lines += [f"  {show_bytes(each['bytes']):>10}  {each['change']}" for each in changes]
    for finding in found["findings"]:
        lines += ["", f"{finding['severity']} {finding['code']}: {finding['message']}", f"  {finding['action']}"]
    return "\n".join(lines)


def changes_by_title(found: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The changes below what is said of them; where nothing fits, those that change this apart."""
    if found["max_micro_batch"]:
        titles = [("would buy, at this micro-batch", found["changes"])]
    else:
        enough = [each for each in found["changes"] if each["fits"]]
        others = [each for each in found["changes"] if not each["fits"]]
        titles = [
            ("one sequence fits with one of these, which touch the result least first", enough),
            ("would buy, and not suffice", others),
        ]
    return [(title, changes) for title, changes in titles if changes]


def _headline(found: Mapping[str, Any], gpu: str) -> str:
    if not found["max_micro_batch"]:
        return f"nothing fits on {gpu}"
    names = ("max_micro_batch", "max_micro_batch_surely", "max_micro_batch_at_best")
    largest, surely, at_best = [_count(found[name], found["most_looked_at"]) for name in names]
    sure = "" if surely == largest else f" ({surely} surely, {at_best} at best)"
    return f"micro-batch {largest} fits on {gpu}{sure}"


def _count(micro_batch: int, most: int) -> str:
    return show_count(micro_batch) + (" or more" if micro_batch == most else "")


def _bar(memory: Mapping[str, Any]) -> str:
    """The expected bytes against the card, and how far they may go."""
    capacity = memory["capacity_bytes"]
    filled, worst = (
        min(BAR, max(1, BAR * memory[name] // capacity)) for name in ("process_bytes", "process_high_bytes")
    )
    bar: str = "#" * filled + "-" * (worst - filled) + " " * (BAR - worst)
    return f"[{bar}]"


def _evidence(evidence: Mapping[str, Any]) -> str:
    words: str = evidence["words"]
    return words.replace("\u00b1", "+-").replace("; nearest", "\n          nearest")


def _engine(engine: Mapping[str, Any]) -> str:
    traced = (
        f", traced at micro-batch {', '.join([show_count(each) for each in engine['traces']])}"
        if engine["traces"]
        else ""
    )
    return f"engine    {engine['engine']}: peak {show_bytes(engine['peak_bytes'])} at {engine['at']}{traced}"


def _bounded(outside: Mapping[str, Any]) -> Mapping[str, Any]:
    """With its worst case in words, where nothing is expected of it."""
    if outside["bytes"] or not outside["high_bytes"]:
        return outside
    return {**outside, "formula": f"up to {show_bytes(outside['high_bytes'])}"}


def _line(line: Mapping[str, Any], whole: int) -> str:
    words = [line["name"], line["formula"]] if line.get("formula") else [line["name"]]
    return f"  {show_bytes(line['bytes']):>10}  {show_percent(line['bytes'], whole):>5}%  {'  '.join(words)}"
