"""docs/accuracy.md, docs/accuracy.svg and the figures in docs/fit.md, from results/accuracy.json.

python -m benchmarks.accuracy_page
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from benchmarks.common import RESULTS, ROOT
from benchmarks.measured_cases import NOT_USED, QUANTITIES, read
from gradaccum.memory.evidence import CLOSED_FORM, TRACE
from gradaccum.show.html import el
from gradaccum.show.svg import dot, line, picture

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PAGE, PICTURE, GUIDE = (ROOT / "docs" / name for name in ("accuracy.md", "accuracy.svg", "fit.md"))
BEGIN, END = "<!-- written by `make accuracy` -->", "<!-- up to here -->"

Record = dict[str, Any]
ENGINES = (CLOSED_FORM, TRACE)


def write(result: Mapping[str, Any]) -> None:
    """All three."""
    PAGE.write_text(page(result), encoding="utf-8")
    PICTURE.write_text(drawing(result["cases"]), encoding="utf-8")
    GUIDE.write_text(guide(GUIDE.read_text(encoding="utf-8"), result), encoding="utf-8")


def guide(text: str, result: Mapping[str, Any]) -> str:
    """The guide with today's figures between its two marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{headline(result)}\n{END}{rest.partition(END)[2]}"


# The page


def page(result: Mapping[str, Any]) -> str:
    """The whole text."""
    cases = result["cases"]
    parts = [
        _HEAD,
        headline(result),
        _scatter(cases),
        _FIGURE,
        "## By source and regime\n",
        _by_regime(cases),
        "## Does it fit?\n",
        _verdicts(cases),
        "## Other estimators\n",
        _PEERS,
        _peers(cases),
        "## Every run\n",
        _EVERY,
        _every(cases),
        "## Rows that are not used\n",
        _NOT,
        _table(["source", "rows", "why"], [[row["source"], row["rows"], row["why"]] for row in read(NOT_USED)]),
    ]
    return "\n".join(parts)


_HEAD = """\
# How accurate the predictions are

Written by `make accuracy`. What others measured on real GPUs, beside what this package says without one: by
the closed form, from shapes alone, and where the whole recipe is known, with the versions of its libraries, by the
trace. No number is fitted, and no prediction sees a measurement. One choice was made with the results in view: how far
the threads that load a base in 4 bits run ahead of the one that quantises, which touches reserved memory alone
([both assumptions](../benchmarks/README.md#accuracy)). Where the numbers come from:
[benchmarks/measured](../benchmarks/measured/README.md).
"""

_FIGURE = """
![Predicted against measured memory, both in GiB on logarithmic axes: the points lie on the diagonal](accuracy.svg)

Filled: the trace; ring: the closed form. On the line, predicted is measured.
"""

_PEERS = """\
Each is asked what it can be asked. What it says is held against what it means: FitCheck's total against reserved and
context, the others' against what was allocated. The formulas of Accelerate, DeepSpeed and EleutherAI are of full
training in mixed precision, and have no word for adapters, quantised weights or, the first two, for activations.
"""

_EVERY = """\
In GiB. Errors are percent of the measured: + is too high. The last two columns say whether the verdict, fits or does
not fit, was right; open: it was not, and the interval holds both.
"""

_NOT = """\
Of the same collection of published measurements. To predict a run one has to know it.
"""


_SCATTER = """\
{count} of these runs were measured in two sessions or more. What they held in reserve differs by up to {most}%
({name}): several threads bring the weights that are quantised while they are loaded, and
leave other gaps each time. What is allocated depends little on it.
"""


def headline(result: Mapping[str, Any]) -> str:
    """The figures that other pages quote, as a list."""
    found = []
    for limit in result["limits"]:
        holds = "holds" if limit["holds"] else "**does not hold**"
        found.append(f"{limit['what']}: {limit['measured']:.2f}; the limit of {limit['limit']:g} {holds}")
    found += [line for engine in ENGINES for line in _of_engine(engine, result["cases"])]
    return "\n".join(f"- {each}" for each in found) + "\n"


def _of_engine(engine: str, cases: Sequence[Record]) -> list[str]:
    """An engine's errors over all runs, and its verdicts."""
    found = []
    for quantity in ("allocated", "reserved"):
        runs = [case for case in cases if quantity in case[engine]["error_percent"]]
        if runs:
            off = [abs(case[engine]["error_percent"][quantity]) for case in runs]
            worst = runs[off.index(max(off))]
            found.append(
                f"{engine}, {quantity}: {len(runs)} runs, mean error {sum(off) / len(off):.2f}%, "
                f"worst {max(off):.2f}% ({_name(worst)})"
            )
    said = Counter(case[engine]["verdict"] for case in cases if case[engine]["verdict"])
    if said:
        words = ", ".join(f"{said[each]} {each}" for each in ("right", "open", "wrong"))
        found.append(f"{engine}, fits or does not fit: {words}")
    return found


def _scatter(cases: Sequence[Record]) -> str:
    """How far measurements of the same run lie apart."""
    runs: dict[str, list[int]] = defaultdict(list)
    for case in cases:
        measured = case["measured"]
        if "reserved" in measured or ("process" in measured and case["context"]):
            key = json.dumps([case["model"], case["how"]])
            runs[key].append(measured.get("reserved") or measured["process"] - case["context"])
    apart = {key: 100 * (max(found) / min(found) - 1) for key, found in runs.items() if len(found) > 1}
    key = max(apart, key=lambda each: apart[each])
    model, how = json.loads(key)
    name = _name({"model": model, "how": how})
    return _SCATTER.format(count=len(apart), most=f"{apart[key]:.1f}", name=name)


def _name(case: Record) -> str:
    how = case["how"]
    return f"{case['model']}, {how['micro_batch']} x {how['sequence_length']:,}"


def _by_regime(cases: Sequence[Record]) -> str:
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for case in cases:
        if case["ran"] and case["measured"]:
            attention, precision, sharding = case["regime"]
            groups[_short(case["source"]), precision, attention, sharding].append(case)
    rows = []
    columns = [(engine, quantity) for engine in ENGINES for quantity in QUANTITIES]
    for key, group in groups.items():
        errors = [[case[engine]["error_percent"].get(quantity) for case in group] for engine, quantity in columns]
        rows.append([*key, str(len(group)), *map(_mean_and_worst, errors)])
    head = ["source", "precision", "attention", "GPUs", "runs", *(f"{engine}: {each}" for engine, each in columns)]
    return "Mean and worst error without sign, in percent.\n\n" + _table(head, rows)


def _mean_and_worst(errors: Iterable[float | None]) -> str:
    off = [abs(each) for each in errors if each is not None]
    return f"{sum(off) / len(off):.2f}, {max(off):.2f}" if off else ""


def _verdicts(cases: Sequence[Record]) -> str:
    rows = []
    for engine in ENGINES:
        for ran, words in ((True, "ran"), (False, "was out of memory")):
            said = Counter(each[engine]["verdict"] for each in cases if each["ran"] == ran)
            rows.append([engine, words, *(str(said[each]) for each in ("right", "open", "wrong"))])
    text = _table(["engine", "the run", "right", "open: wrong, within the interval", "wrong beyond it"], rows)
    wrong = [f"- {engine}: {_name(each)}, {each['regime'][1]}, {'ran' if each['ran'] else 'was out of memory'}"
             for engine in ENGINES for each in cases if each[engine]["verdict"] == "wrong"]  # fmt: skip
    return text + ("\nWrong:\n\n" + "\n".join(wrong) + "\n" if wrong else "")


# Peers


def _peers(cases: Sequence[Record]) -> str:
    names = list(cases[0]["peers"])
    groups = {"FitCheck's T4": [case for case in cases if case["row"] is not None]}
    groups["other sources"] = [case for case in cases if case["row"] is None]
    rows = []
    for words, group in groups.items():
        for engine in ENGINES:
            off = [case[engine]["error_percent"] for case in group]
            rows.append(
                [words, f"gradaccum, {engine}", *_summary([abs(e["allocated"]) for e in off if "allocated" in e])]
            )
        rows += [[words, name, *_of_peer(name, group)] for name in names]
    return _table(["runs of", "estimator", "answered", "mean error, %", "worst, %", "why not the others"], rows)


def _of_peer(name: str, cases: Sequence[Record]) -> list[str]:
    off, why = [], Counter[str]()
    for case in cases:
        said, against = case["peers"][name], _against(name, case)
        if isinstance(said, str):
            why[said.partition(". ")[0]] += 1
        elif against and case["ran"]:
            off.append(abs(100 * (said / against - 1)))
    return [*_summary(off)[:3], "; ".join(words for words, _ in why.most_common(2))]


def _against(name: str, case: Record) -> int | None:
    """The measured figure that a peer means."""
    measured: dict[str, int] = case["measured"]
    if name == "fitcheck":
        whole = measured["reserved"] + case["context"] if "reserved" in measured and case["context"] else None
        return measured.get("process") or whole or measured.get("allocated")
    return measured.get("allocated") or measured.get("reserved")


def _summary(off: Sequence[float]) -> list[str]:
    return [str(len(off)), f"{sum(off) / len(off):.1f}", f"{max(off):.1f}", ""] if off else ["0", "", "", ""]


# Every run


def _every(cases: Sequence[Record]) -> str:
    rows = []
    for case in cases:
        how = case["how"]
        cells = [case["model"], f"{how['micro_batch']} x {how['sequence_length']}", case["regime"][1],
                 case["regime"][0], case["regime"][2], _short(case["source"])]  # fmt: skip
        cells.append(_measured(case))
        for engine in ENGINES:
            off = case[engine]["error_percent"]
            cells.append(", ".join(f"{off[each]:+.2f}" for each in QUANTITIES if each in off))
        rows.append([*cells, *(case[engine]["verdict"] for engine in ENGINES)])
    head = ["model", "batch", "precision", "attention", "GPUs", "source", "measured: allocated, reserved, process"]
    return _table([*head, "closed form, %", "trace, %", "closed form", "trace"], rows)


def _measured(case: Record) -> str:
    if not case["ran"]:
        return "out of memory"
    return ", ".join(f"{bytes_ / 2**30:.2f}" for bytes_ in case["measured"].values()) or "ran"


def _short(source: str) -> str:
    """The source without its file."""
    if "fitcheck" in source:
        return "FitCheck"
    return source.partition(" (")[0].partition(":")[0].partition("@")[0]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


# The picture

SIDE, LEFT, BOTTOM, TOP = 460, 52, 40, 16
LEAST_GIB, MOST_GIB = 0.7, 110.0

_STYLE = (
    "<style>svg{color:#1f2328;font-family:sans-serif}@media (prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
)


def drawing(cases: Sequence[Record]) -> str:
    """Predicted against measured, allocated where it was measured, on logarithmic axes."""
    marks: dict[str, list[tuple[int, int]]] = {engine: [] for engine in ENGINES}
    for case in cases:
        for engine in ENGINES:
            for quantity in QUANTITIES:
                if quantity in case[engine]["error_percent"]:
                    measured = case["measured"][quantity]
                    predicted = measured * (1 + case[engine]["error_percent"][quantity] / 100)
                    marks[engine].append((_across(measured), _up(predicted)))
                    break
    ticks = [1, 2, 4, 8, 16, 32, 64]

    labels = []
    for tick in ticks:
        at = tick * 2**30
        labels.append(
            el(
                "text",
                {"fill": "currentColor", "text-anchor": "middle", "x": _across(at), "y": TOP + SIDE + 16},
                str(tick),
            )
        )
        labels.append(
            el("text", {"fill": "currentColor", "text-anchor": "end", "x": LEFT - 6, "y": _up(at) + 4}, str(tick))
        )
    grid = "".join(f"M{_across(t * 2**30)} {TOP}v{SIDE}M{LEFT} {_up(t * 2**30)}h{SIDE}" for t in ticks)
    low, high = LEAST_GIB * 2**30, MOST_GIB * 2**30
    diagonal = f"M{_across(low)} {_up(low)}L{_across(high)} {_up(high)}"
    rings = "".join(dot(x, y, 5) for x, y in marks[CLOSED_FORM])
    dots = "".join(dot(x, y, 3) for x, y in marks[TRACE])
    svg = str(
        picture(
            "Predicted against measured memory",
            f"{len(marks[TRACE])} runs by the trace and {len(marks[CLOSED_FORM])} by the closed form, on logarithmic "
            "axes in GiB. The points lie along the diagonal, where predicted is measured.",
            LEFT + SIDE + 12,
            TOP + SIDE + BOTTOM,
            el("path", {"d": grid, "fill": "none", "stroke": "currentColor", "stroke-opacity": "0.15"}),
            line("sum", diagonal),
            el("path", {"d": rings, "fill": "none", "stroke": "#8250df", "stroke-width": "1.5"}),
            el("path", {"d": dots, "fill": "#2f81f7", "fill-opacity": "0.7"}),
            *labels,
            el(
                "text",
                {"fill": "currentColor", "text-anchor": "middle", "x": LEFT + SIDE // 2, "y": TOP + SIDE + 34},
                "measured, GiB",
            ),
            el("text", {"fill": "currentColor", "x": LEFT + 10, "y": TOP + 16}, "predicted, GiB"),
        )
    )
    return svg.replace("<title>", _STYLE + "<title>", 1) + "\n"


def _across(bytes_: float) -> int:
    return LEFT + _along(bytes_)


def _up(bytes_: float) -> int:
    return TOP + SIDE - _along(bytes_)


def _along(bytes_: float) -> int:
    share = math.log(bytes_ / 2**30 / LEAST_GIB) / math.log(MOST_GIB / LEAST_GIB)
    return round(SIDE * min(1, max(0, share)))


if __name__ == "__main__":
    write(json.loads((RESULTS / "accuracy.json").read_text(encoding="utf-8")))
