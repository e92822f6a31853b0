"""Many plans at once: lists and ranges of any count, as rows sorted like the better choices."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.core.choices import split_drift
from gradaccum.core.fields import BY_NAME, COUNT, NAME_OF
from gradaccum.core.request import read_inputs, read_value, unit_named
from gradaccum.core.solve import solve
from gradaccum.errors import InputError, Problem
from gradaccum.units import Ratio, number, quote, read_count, show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_ROWS = 10_000
"""A sweep of more combinations is refused before any is computed."""

_COLUMNS = ("micro_batch", "num_gpus", "accum_steps")


@dataclass(frozen=True)
class Row:
    """One plan of a sweep. drift in sequences, or drift_tokens; the other is None.

    varied: (name, value) of each other input that the sweep has several values of.
    """

    micro_batch: int
    num_gpus: int
    accum_steps: int
    effective_batch: int
    drift: int | None
    drift_tokens: int | None
    varied: tuple[tuple[str, object], ...] = ()

    def to_dict(self) -> dict[str, object]:
        """One row as JSON holds it: the varied inputs under their own names."""
        return {
            "micro_batch": self.micro_batch,
            "num_gpus": self.num_gpus,
            "accum_steps": self.accum_steps,
            "effective_batch": self.effective_batch,
            "drift": self.drift,
            "drift_tokens": self.drift_tokens,
            **{name: number(value) if isinstance(value, Ratio) else value for name, value in self.varied},
        }


def sweep(inputs: Mapping[str, object]) -> tuple[Row, ...]:
    """One row for each combination of the values, `8,16,32` and `1..16` and `8..64..8` being several.

    Combinations that give no plan (a world that the degrees do not divide) are left out, unless all are. Sorted by
    |drift|, then fewer GPUs, then the larger micro-batch, then positive drift. Raises InputError.
    """
    axes = {name: _values(name, raw) for name, raw in inputs.items()}
    rows = 1
    for values in axes.values():
        rows *= len(values)
    if rows > MAX_ROWS:
        widest = max(axes, key=lambda name: len(axes[name]))
        raise InputError(
            Problem(
                NAME_OF.get(widest.replace("-", "_"), widest),
                f"has {show_count(len(axes[widest]))} values, which makes {show_count(rows)} combinations in all; "
                f"at most {show_count(MAX_ROWS)} are computed",
            )
        )
    _check(axes)
    varied = [name for name, values in axes.items() if len(values) > 1]
    found, first_error = [], None
    for index in range(rows):
        try:
            found.append(_row(_combination(axes, index), varied))
        except InputError as error:
            first_error = first_error or error
    if first_error and not found:
        raise first_error
    return tuple(sorted(dict.fromkeys(found), key=_order))


def _check(axes: Mapping[str, list[object]]) -> None:
    """Every value on its own: a typo among them is no combination without a plan, to be left out in silence."""
    problems: list[Problem] = []
    for spelling, values in axes.items():
        name = NAME_OF.get(spelling.replace("-", "_"))
        for value in values:
            if name is None or value is None or value == "":
                continue
            try:
                read_value(*unit_named(name, value))
            except InputError as error:
                problems.extend(error.problems)
                break
    if problems:
        raise InputError(*problems)


def _order(row: Row) -> tuple[int, int, int, bool]:
    drift = (row.drift if row.drift is not None else row.drift_tokens) or 0
    return abs(drift), row.num_gpus, -row.micro_batch, drift < 0


def _row(inputs: Mapping[str, object], varied: Sequence[str]) -> Row:
    request = read_inputs(inputs)
    sizes = solve(request)
    names = [NAME_OF[spelling.replace("-", "_")] for spelling in varied]
    names = ["target_tokens" if name == "target_batch" and sizes.goal.in_tokens else name for name in names]
    drift, drift_tokens = split_drift(sizes.goal, sizes.drift)
    return Row(
        micro_batch=sizes.micro_batch,
        num_gpus=sizes.num_gpus,
        accum_steps=sizes.accum_steps,
        effective_batch=sizes.effective_batch,
        drift=drift,
        drift_tokens=drift_tokens,
        varied=tuple((name, getattr(request, name)) for name in names if name not in _COLUMNS),
    )


def _combination(axes: Mapping[str, list[object]], number: int) -> dict[str, object]:
    """The `number`-th of all combinations, the last axis turning fastest."""
    chosen: dict[str, object] = {}
    for name in reversed(list(axes)):
        number, index = divmod(number, len(axes[name]))
        chosen[name] = axes[name][index]
    return {name: chosen[name] for name in axes}


def _values(spelling: str, raw: object) -> list[object]:
    """The values of one input: several for a list, a range, or text that holds one."""
    if isinstance(raw, (list, tuple, range)):
        if len(raw) > MAX_ROWS:
            raise InputError(_too_many(spelling, len(raw)))
        return list(raw)
    name = NAME_OF.get(spelling.replace("-", "_"))
    if not isinstance(raw, str) or name is None or ("," not in raw and ".." not in raw):
        return [raw]
    values: list[object] = []
    for part in raw.split(","):
        values.extend(_part(name, part.strip()))
        if len(values) > MAX_ROWS:
            raise InputError(_too_many(name, len(values)))
    return values


def _part(name: str, part: str) -> list[object]:
    """One entry of a list: a value, `1..16`, or `8..64..8` with a stride."""
    if ".." not in part:
        if len(part) == 3 and part[0] == "0":
            raise InputError(
                Problem(name, f"holds {quote(part)}: in a list a comma separates values; write 1_024 for 1,024")
            )
        return [part]
    if BY_NAME[name].kind != COUNT:
        raise InputError(Problem(name, f"has no ranges: {quote(part)}; list its values with commas"))
    ends = [read_count(end, name, 1) for end in part.split("..")]
    if len(ends) not in (2, 3):
        raise InputError(Problem(name, f"is no range: {quote(part)}; write 1..16, or 8..64..8", ["1..16", "8..64..8"]))
    first, last, stride = ends[0], ends[1], ends[2] if len(ends) == 3 else 1
    if last < first:
        raise InputError(Problem(name, f"is an empty range: {quote(part)}", [f"{last}..{first}"]))
    count = (last - first) // stride + 1
    if count > MAX_ROWS:
        raise InputError(_too_many(name, count))
    return list(range(first, last + 1, stride))


def _too_many(name: str, count: int) -> Problem:
    return Problem(name, f"stands for {show_count(count)} values; at most {show_count(MAX_ROWS)} are computed")
