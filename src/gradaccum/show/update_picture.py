"""One update over time, drawn: a row for each rank, a column for each micro-step, then what closes the update.

A cell is a forward pass and a backward pass of about twice its length. Under it the rank's own sum of gradients
grows, stays local, and is synchronised once, after the last micro-step. Under `exact` the last cells are as long as
their share.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.core.arithmetic import last_micro_step
from gradaccum.show.numbers import brief, plural
from gradaccum.show.svg import box, dot, filled, line, picture, text
from gradaccum.units import show_short

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradaccum.core.plan import Plan
    from gradaccum.show.html import Child, Markup

TOP = 34
"""Above the first row: what the brackets say."""
PITCH, CELL, SUM = 26, 13, 7
"""Height of a row, of a cell in it, and of the full sum of gradients under the cell."""
GAP = 6
"""Between columns."""
UPRIGHT = 84
"""From this height on a band is narrow and its text reads upwards."""


@dataclass(frozen=True)
class Frame:
    """How much one picture shows: rows and columns at most, and how many at each end where there are more."""

    width: int
    gutter: int
    widest_cell: int
    most_rows: int
    rows: tuple[int, int]
    most_columns: int
    columns: tuple[int, int]
    between: int


WIDE = Frame(960, 76, 270, 8, (4, 2), 8, (4, 2), 44)
NARROW = Frame(360, 80, 110, 4, (2, 1), 4, (2, 1), 26)


def update_picture(plan: Plan, narrow: bool = False) -> Markup:
    """The picture as `svg`; narrow: for a phone, at most 360 units wide."""
    frame = NARROW if narrow else WIDE
    several = plan.data_parallel > 1
    rows = _abbreviated(plan.data_parallel, frame.most_rows, frame.rows if plan.rounding != "exact" else _even(frame))
    columns = _abbreviated(plan.accum_steps, frame.most_columns, frame.columns)
    height = PITCH * len(rows)
    band = 34 if height >= UPRIGHT else 88
    if narrow and height < UPRIGHT:
        band = 76
    gaps = columns.count(None)
    room = frame.width - frame.gutter - (2 if several else 1) * (band + GAP) - gaps * frame.between
    cell = min(frame.widest_cell, room // (len(columns) - gaps) - GAP)

    places = _places(columns, frame, cell)
    end = places[-1][1] + cell
    sync = end + GAP
    optimizer = sync + band + GAP if several else sync
    width = max(optimizer + band, 340)
    bottom = TOP + height
    drawn: list[Child] = [
        _cells(plan, rows, places, cell),
        _row_labels(plan, rows, frame),
        _column_labels(plan, rows, columns, places, cell, frame),
        _brackets(plan, frame, places, cell, sync + band if several else end),
        _band("sync", "synchronise", sync, band, height) if several else None,
        _band("optimizer", "optimizer", optimizer, band, height),
    ]
    legend, end = _legend(width, bottom + 38, several)
    return picture("One update over time", update_words(plan), width, end, drawn, legend)


def update_words(plan: Plan) -> str:
    """The same picture in words, for a caption and for those who listen to the page."""
    steps, ranks = plan.accum_steps, plan.data_parallel
    who = "GPU" if plan.num_gpus == ranks else "rank"
    first = f"One {who} runs" if ranks == 1 else f"Each of {brief(ranks)} {who}s runs"
    each = f"{plural(steps, 'micro-step')} of {plural(plan.micro_batch, 'sequence')}"
    words = f"{first} {each}, forward and backward. "
    if steps > 1:
        words += f"For {brief(steps - 1)} of them gradients only add up{' on their own rank' * (ranks > 1)}. "
    meeting = "they are synchronised once, and " if steps > 1 else "gradients are synchronised, and "
    words += ("After the last one " if steps > 1 else "Then ") + (meeting if ranks > 1 else "")
    words += "the optimizer updates the weights."
    if plan.num_gpus != ranks:
        words += f" A rank is {brief(plan.num_gpus // ranks)} GPUs that share one replica of the model"
        words += "; its pipeline stages work on several micro-steps at once." if plan.pipeline_parallel > 1 else "."
    if plan.effective_batch == plan.device_batch * steps:
        return words
    samples, largest = last_micro_step(plan.effective_batch, plan.device_batch, ranks)
    words += f" The last micro-step holds {brief(samples)} sequences, at most {brief(largest)} on a {who}"
    idle = max(0, ranks - samples)
    return words + (f"; {brief(idle)} run one repeated sequence with weight 0." if idle else ".")


def _abbreviated(count: int, most: int, ends: tuple[int, int]) -> list[int | None]:
    """0 .. count - 1, or both ends with None for what is left out."""
    if count <= most:
        return list(range(count))
    head, tail = ends
    return [*range(head), None, *range(count - tail, count)]


def _even(frame: Frame) -> tuple[int, int]:
    """Under `exact` the first and the last ranks differ, so both ends show as much."""
    half = (frame.rows[0] + frame.rows[1] + 1) // 2
    return half, half


def _places(columns: Sequence[int | None], frame: Frame, cell: int) -> list[tuple[int, int]]:
    """(micro-step, x) of each column that is drawn."""
    found, x = [], frame.gutter
    for column in columns:
        if column is None:
            x += frame.between
        else:
            found.append((column, x))
            x += cell + GAP
    return found


def _cells(plan: Plan, rows: Sequence[int | None], places: Sequence[tuple[int, int]], cell: int) -> list[Child]:
    forward: list[str] = []
    backward: list[str] = []
    sums: list[str] = []
    notes: list[Child] = []
    steps = plan.accum_steps
    for row, rank in enumerate(rows):
        if rank is None:
            continue
        y = TOP + PITCH * row
        for step, x in places:
            length = cell
            share = _share(plan, rank) if step == steps - 1 else plan.micro_batch
            if share == 0:
                notes.append(line("idle", box(x, y, cell - 1, CELL), dashed=True))
                notes.append(text(x + 4, y + 10, "weight 0", kind="small"))
                length = 0
            elif share != plan.micro_batch:
                length = max(3, cell * share // plan.micro_batch)
                if cell - length > 24:
                    notes.append(text(x + length + 4, y + 10, show_short(share), kind="small"))
            if length:
                forward.append(box(x, y, length // 3, CELL))
                backward.append(box(x + length // 3, y, length - length // 3, CELL))
            level = max(1, SUM * (step + 1) // steps)
            sums.append(box(x, y + CELL + 1 + SUM - level, cell, level))
    return [filled("forward", forward), filled("backward", backward), filled("sum", sums), notes]


def _share(plan: Plan, rank: int) -> int:
    """Sequences of one rank in the last micro-step: shared out, the first ranks one more."""
    samples = plan.effective_batch - plan.device_batch * (plan.accum_steps - 1)
    each, rest = divmod(samples, plan.data_parallel)
    return each + (1 if rank < rest else 0)


def _row_labels(plan: Plan, rows: Sequence[int | None], frame: Frame) -> list[Child]:
    who = "GPU" if plan.num_gpus == plan.data_parallel else "rank"
    labels: list[Child] = []
    for row, rank in enumerate(rows):
        y = TOP + PITCH * row + 11
        if rank is None:
            more = f"{brief(plan.data_parallel - len(rows) + 1)} more {who}s"
            labels.append(text(frame.gutter - 10, y, "\u22ee", anchor="end"))
            labels.append(text(frame.gutter, y, more, kind="faint"))
        else:
            number = str(rank) if rank < 10**5 else "last"
            if 10**5 <= rank < plan.data_parallel - 1:
                number = f"last \u2212 {plan.data_parallel - 1 - rank}"
            labels.append(text(frame.gutter - 10, y, f"{who} {number}" if rank < 10**4 else number, anchor="end"))
    return labels


def _column_labels(
    plan: Plan,
    rows: Sequence[int | None],
    columns: Sequence[int | None],
    places: Sequence[tuple[int, int]],
    cell: int,
    frame: Frame,
) -> list[Child]:
    y = TOP + PITCH * len(rows) + 12
    labels: list[Child] = [text(frame.gutter - 10, y, "micro-step", anchor="end", kind="faint")]
    for step, x in places:
        from_end = plan.accum_steps - 1 - step
        number = str(step + 1) if step < 10**6 else "last" if not from_end else f"last \u2212 {from_end}"
        labels.append(text(x + cell // 2, y, number, anchor="middle"))
    if None in columns:
        x = places[columns.index(None)][1] - GAP - frame.between // 2 + GAP // 2
        dots = [dot(x + away, TOP + PITCH * row + 6, 1) for row in range(len(rows)) for away in (-6, 0, 6)]
        labels.append(filled("more", dots))
        labels.append(text(x, y, "\u2026", anchor="middle"))
    return labels


def _brackets(plan: Plan, frame: Frame, places: Sequence[tuple[int, int]], cell: int, end: int) -> list[Child]:
    """Above the rows: where gradients stay local, and where they meet."""
    several, last = plan.data_parallel > 1, places[-1][1]
    drawn: list[Child] = []
    if plan.accum_steps > 1:
        local = last - GAP
        words = "gradients stay local" if several else "gradients add up"
        if frame is WIDE and local - frame.gutter > 240:
            words += f" for {plural(plan.accum_steps - 1, 'micro-step')}"
        drawn.append(line("bracket", f"M{frame.gutter} 27v-6h{local - frame.gutter}v6"))
        drawn.append(text(frame.gutter, 13, words))
    if several:
        once = "synchronise once" if end - last > 110 else "once"
        drawn.append(line("bracket", f"M{last} 27v-6h{end - last}v6"))
        drawn.append(text(end, 13, once, anchor="end", kind="strong"))
    return drawn


def _band(kind: str, label: str, x: int, width: int, height: int) -> list[Child]:
    """What happens once for all rows."""
    middle = TOP + (height - 5) // 2
    upright = height >= UPRIGHT
    return [
        filled(kind, [box(x, TOP, width, height - 5)]),
        text(
            x + width // 2 + (4 if upright else 0),
            middle + (0 if upright else 4),
            label,
            anchor="middle",
            kind="on-" + kind,
            turned=upright,
        ),
    ]


def _legend(width: int, y: int, several: bool) -> tuple[list[Child], int]:
    """Swatches with their words, in as many lines as the width needs, from `y` on; and where they end."""
    entries = [("forward", "forward", 64), ("backward", "backward", 74), ("sum", "sum of local gradients", 156)]
    if several:
        entries.append(("sync", "synchronise over ranks", 160))
    entries.append(("optimizer", "optimizer", 70))
    drawn: list[Child] = []
    x = 0
    for kind, words, room in entries:
        if x and x + 16 + room > width:
            x, y = 0, y + 20
        drawn.append(filled(kind, [box(x, y - 9, 11, 11)]))
        drawn.append(text(x + 16, y, words, kind="faint"))
        x += 16 + room
    return drawn, y + 6
