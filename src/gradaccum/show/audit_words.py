"""An audit in words: the verdict in one line, facts and evidence as labelled rows, like micro-batches in one.

Terminal and page show the same words. What a loop names its modules and files comes in as it is, so control characters
are made visible here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradaccum.core.audit import ERROR, FAULT, RIGHT, WARNING
from gradaccum.show.numbers import plural
from gradaccum.units import ratio_of, show_bytes, show_count, show_real

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gradaccum.core.audit import AuditedUpdate, AuditReport

UNSEEN = "not seen"
MOST_LISTED = 8
"""Numbers of one list that are written out."""


@dataclass(frozen=True)
class Run:
    """Micro-batches first to last of one rank that weigh the same and hold as much. weight: as a share of what it
    should be; None where it was not seen. units: what the loss of one of them counts, by the name of `unit`.
    """

    rank: int
    first: int
    last: int
    weight: float | None
    units: float | None
    unit: str | None = None

    @property
    def name(self) -> str:
        """`3`, or `0-2`"""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @property
    def weight_words(self) -> str:
        """`0.8125`, or a question mark."""
        return "?" if self.weight is None else show_real(self.weight)

    @property
    def units_words(self) -> str:
        """`4 targets`; empty where their number is not known."""
        return "" if self.units is None else counted_words(self.units, self.unit)


def runs_of(update: AuditedUpdate) -> list[Run]:
    """The micro-batches of an update by rank, neighbours that look alike in one."""
    found: list[Run] = []
    for each in sorted(update.micro_batches, key=lambda each: (each.rank, each.index)):
        new = Run(each.rank, each.index, each.index, each.weight, each.units, update.unit)
        last = found[len(found) - 1] if found else None
        if last and (last.rank, last.weight_words, last.units) == (new.rank, new.weight_words, new.units):
            found[len(found) - 1] = Run(last.rank, last.first, each.index, last.weight, last.units, last.unit)
        else:
            found.append(new)
    return found


def groups_of(report: AuditReport) -> list[tuple[AuditedUpdate, str]]:
    """The updates that look different, each with the words for all that look like it: `Updates 0, 1, 2 of SGD`."""
    alike: list[tuple[tuple[object, ...], list[AuditedUpdate]]] = []
    for update in report.updates:
        look = (update.optimizer, *[(run.rank, run.name, run.weight_words, run.units) for run in runs_of(update)])
        for known, updates in alike:
            if known == look:
                updates.append(update)
                break
        else:
            alike.append((look, [update]))
    return [(updates[0], _which(updates)) for _, updates in alike]


def _which(updates: Sequence[AuditedUpdate]) -> str:
    numbers = listed([update.number for update in updates])
    return f"Update{'' if len(updates) == 1 else 's'} {numbers} of {plain(updates[0].optimizer)}"


INTERRUPTED = 130
"""The code of a command that Ctrl-C ended."""


def headline(report: AuditReport) -> str:
    """The verdict in one line, and how the script ended where it failed."""
    return _verdict(report) + _failure(report)


def _failure(report: AuditReport) -> str:
    """`; but the script ended by itself with exit code 7 after 1 of 3 updates`"""
    if not report.script_exit:
        return ""
    by_optimizer: dict[str, int] = {}
    for each in report.updates:
        by_optimizer[each.optimizer] = by_optimizer.get(each.optimizer, 0) + 1
    made = min(by_optimizer.values(), default=0)
    wanted = report.updates_wanted
    after = f"{made} of {plural(wanted, 'update')}" if wanted and made < wanted else plural(made, "update")
    if report.script_exit == INTERRUPTED:
        return f"; but it was interrupted after {after}"
    return f"; but the script ended by itself with exit code {report.script_exit} after {after}"


def _verdict(report: AuditReport) -> str:
    seen = f"in {plural(len(report.updates), 'audited update')}"
    if report.verdict == FAULT:
        codes = ", ".join(_each_once([each.code for each in report.findings if each.severity == ERROR]))
        return f"fault: {seen}, not what one big batch would do" + (f" ({codes})" if codes else "")
    if report.verdict == RIGHT:
        warned = _each_once([each.code for each in report.findings if each.severity == WARNING])
        but = f"; but see {', '.join(warned)}" if warned else ""
        return f"right: {seen}, what one big batch would do{but}"
    return "not seen: nothing that the weights could be read from, so no verdict"


def _each_once(codes: list[str]) -> list[str]:
    return [code for index, code in enumerate(codes) if code not in codes[:index]]


def tolerance_words(report: AuditReport) -> str:
    """From where on two weights differ."""
    if not report.tolerance:
        return "no weights were compared"
    return (
        f"weights within {show_real(100 * report.tolerance)}% of each other count as equal: "
        "that much is rounding in the loss's type"
    )


# Evidence

PHRASES = (
    ("loss term {}", "term"),
    ("a factor of {}, the number of {}", "times", "of"),
    ("divided by {}, so that the weights sum to {}", "divided_by", "times"),
    ("counted {} times, its factors add up to {}", "times", "total"),
    ("{} of {} micro-batches", "lost", "micro_batches"),
    ("{} micro-batches, divided by {}", "micro_batches", "divided_by"),
    ("it is the first group", "first_group"),
    ("{} times", "times"),
    ("{} micro-batches", "micro_batches"),
    ("the weights sum to {}, where 1 is right", "total"),
    ("the largest weight is {} times the smallest", "largest_by_smallest"),
    ("{} of the gradient that the optimizer received", "share_of_gradient"),
    ("a factor of {} between micro-batches", "factor_between_micro_batches"),
    ("divided by {}, one by one", "divisors"),
    ("{} backward passes, on {} ranks", "passes", "ranks"),
    ("rank by rank {} times the first one's", "factors"),
    ("a loss scale of {}", "scale"),
    ("{} classes, which are the samples of a micro-batch", "classes"),
    ("{} samples, multiplied with each other", "pairs_of"),
    ("{} samples in an update, {} wanted", "effective_batch", "target_batch"),
    ("{} micro-batches would make them", "steps"),
    ("modules {}", "modules"),
    ("added up in {}", "dtype"),
    ("{} of the batch's gradient", "ratio"),
    ("{} of the gradient is in no micro-batch", "rest"),
    ("it would take the weights {}", "weights_needed"),
    ("an error of {}", "error"),
    ("an error of {} with frozen statistics", "error_with_frozen_statistics"),
)
"""What is said of numbers that are known by name, each with the names in its order."""


def evidence_words(evidence: Mapping[str, object]) -> str:
    """`loss term NllLoss; a factor of 4, the number of micro-batches; in updates 0, 1, 2`. What has no words of its own
    stands there by its name.
    """
    left = dict(evidence)
    parts = []
    for words, *names in PHRASES:
        if all(name in left for name in names):
            parts.append(words.format(*[shown(left.pop(name)) for name in names]))
    if isinstance(counts := left.get("counts"), (list, tuple)):
        del left["counts"]
        parts.append(f"they hold {held(counts, left.pop('unit', None))}")
    if isinstance(count := left.pop("sum_over", None), int):
        parts.append(f"sums over {held([count], left.pop('unit', None))} in all")
    if isinstance(size := left.pop("bytes", None), int):
        parts.append(f"{show_bytes(size)} each")
    if left.pop("all", False):
        parts.append("these are all of them")
    updates = left.pop("updates", None)
    parts += [f"{_label(name)} {shown(value)}" for name, value in left.items()]
    if isinstance(updates, list):
        parts.append(f"in update{'' if len(updates) == 1 else 's'} {listed(updates)}")
    return "; ".join(parts)


def held(counts: Sequence[object], unit: object) -> str:
    """`4, 1 targets`; of lists, one for each rank, `4, 1 targets on rank 0; 2, 2 on rank 1`."""
    lists = [each for each in counts if isinstance(each, (list, tuple))]
    name = unit_words(unit)
    if not lists:
        return f"{listed(counts)} {name}"
    if len(lists) == 1:
        return f"{listed(lists[0])} {name}"
    parts = [
        f"{listed(each)}{'' if rank else f' {name}'} on rank {rank}" for rank, each in enumerate(lists[:MOST_LISTED])
    ]
    more = len(lists) - MOST_LISTED
    return "; ".join([*parts, f"and {plural(more, 'more rank')}"] if more > 0 else parts)


# Facts


def fact_rows(report: AuditReport) -> list[tuple[str, str]]:
    """(label, value) of each fact; those that are not known by name follow under their own."""
    facts = dict(report.facts)
    ranks = facts.pop("ranks", None)
    wrapped = facts.pop("wrapped", None)
    framework = shown(facts.pop("framework", None))
    where = f", {_counted(ranks, 'rank')}" if ranks is not None else ""
    rows = [("framework", framework + where + (f", {shown(wrapped)}" if wrapped not in (None, "plain") else ""))]
    rows.append(("optimizer", shown(facts.pop("optimizers", None) or None)))
    rows.append(("updates", _updates(facts)))
    rows.append(("micro-batches", _per_update(facts.pop("micro_batches_per_update", None))))
    rows.append(("effective batch", _batch(facts)))
    sums = facts.pop("weights_sum_to", None)
    if report.verdict == RIGHT and isinstance(sums, (list, tuple)):
        rows.append(("weights sum to", _sums([show_real(each) for each in sums])))
    rows.append(("loss targets", _per_update(facts.pop("loss_tokens", None))))
    reductions, size = facts.pop("reductions_per_update", None), facts.pop("reduction_bytes", None)
    if ranks != 1:
        each = f", {show_bytes(size)} each" if isinstance(size, int) and size else ""
        rows.append(("reductions", _per_update(reductions) + each))
    rows.append(("scheduler steps", _per_update(facts.pop("scheduler_steps_per_update", None))))
    rows.append(("clipping", shown(facts.pop("clipping", None))))
    rows.append(("gradients in", shown(facts.pop("gradient_dtypes", None) or None)))
    rows.append(("last update", _counted(facts.pop("last_group", None), "micro-batch")))
    if left := facts.pop("micro_batches_without_update", None):
        rows.append(("left over", f"{_counted(left, 'micro-batch')} without an update"))
    if isinstance(cut := facts.pop("epoch_cut", None), dict):
        full = f"{plural(cut['groups'], 'group')} of {_counted(cut['micro_batches'], 'micro-batch')}"
        rows.append(("epoch cut", f"to {full}, and one of {cut['last_group']}"))
    if not facts.get("not_checked"):
        facts.pop("not_checked", None)
    rows += [(_label(name), shown(value)) for name, value in facts.items()]
    if report.script_exit is not None:
        rows.append(("script's exit", str(report.script_exit)))
    return rows


def _updates(facts: dict[str, object]) -> str:
    made, audited, skipped = [facts.pop(name, None) for name in ("updates", "audited_updates", "skipped_updates")]
    words = shown(made)
    if made is not None and audited is not None:
        words += ", all of them audited" if made == audited else f", {shown(audited)} of them audited"
    return words + (f", {shown(skipped)} more skipped by the scaler" if skipped else "")


def _batch(facts: dict[str, object]) -> str:
    batch, target = facts.pop("effective_batch", None), facts.pop("target_batch", None)
    words = shown(batch) + (" samples" if batch is not None else "")
    return words + (f"; the target is {shown(target)}" if target is not None else "")


def _sums(ends: Sequence[str]) -> str:
    between = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
    return f"{between}, not 1: a coefficient, clipping, or a divisor of your own, taken as meant"


def _per_update(value: object) -> str:
    return UNSEEN if value is None else f"{shown(value)} per update"


def _counted(value: object, word: str) -> str:
    if not isinstance(value, int):
        return shown(value)
    ending = "es" if word.endswith("ch") else "s"
    return f"{show_count(value)} {word}{'' if value == 1 else ending}"


def _label(name: str) -> str:
    return plain(name.replace("_", " "))


# Values

UNITS = {"counted": "targets", "weighed": "units of weight", "None": "units"}
"""What a loss may count, where it has another name for a person."""


def unit_words(unit: object) -> str:
    """`targets`, `samples`"""
    return UNITS.get(str(unit), plain(str(unit)))


def counted_words(number: float, unit: object) -> str:
    """`4 targets`, `1 target`"""
    first, *rest = unit_words(unit).split(" ", 1)
    if number == 1 and first.endswith("s"):
        first = first[: len(first) - 1]
    return " ".join([show_real(number), first, *rest])


def shown(value: object) -> str:
    """A value of the report for a person; lists of numbers in one line."""
    if value is None:
        return UNSEEN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return show_count(value)
    if isinstance(value, float):
        return show_real(value)
    if isinstance(value, (list, tuple)):
        return listed(value)
    if isinstance(value, dict):
        return ", ".join([f"{_label(str(name))} {shown(each)}" for name, each in value.items()])
    return plain(str(value))


def listed(values: Sequence[object]) -> str:
    """`4, 3, 2`; of more than MOST_LISTED both ends and how many."""
    if not values:
        return "none"
    words = [shown(each) for each in values]
    if len(words) <= MOST_LISTED:
        return ", ".join(words)
    return f"{', '.join(words[: MOST_LISTED - 2])}, ... {words[len(words) - 1]} ({show_count(len(words))})"


STEERING = (("\x00", "\x1f"), ("\x7f", "\x9f"), ("\u2028", "\u202e"), ("\u2066", "\u2069"))
"""From and to which characters a terminal obeys: controls, line ends, and what turns the direction of text."""


def plain(text: str) -> str:
    """`text` in one line without characters that steer."""
    kept = "".join([" " if any(low <= each <= high for low, high in STEERING) else each for each in text])
    return " ".join(kept.split())


def finite(value: float | None) -> bool:
    """Whether it can be drawn."""
    return value is not None and value == value and abs(value) != math.inf


def top_of(update: AuditedUpdate) -> float:
    """The largest weight, at least 1: where a picture's scale ends."""
    return max([1.0, *[abs(each.weight) for each in update.micro_batches if each.weight and finite(each.weight)]])


def scaled(value: float, top: float, room: int) -> int:
    """`value` on a scale of `room` steps that ends at `top`, in whole steps."""
    part, whole = ratio_of(abs(value)), ratio_of(top)
    numerator = room * part.numerator * whole.denominator
    denominator = part.denominator * whole.numerator
    return (2 * numerator + denominator) // (2 * denominator)
