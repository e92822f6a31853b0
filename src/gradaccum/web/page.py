"""From a query string to the page, and to what an edit changes: the whole glue, without a server.

None of it needs a web package: whatever runs this package can show the page and answer its API.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from gradaccum.catalog.runs import find_run, published_runs
from gradaccum.core.fields import COUNT, FIELDS, RATIO
from gradaccum.core.plan import make_headline, make_plan
from gradaccum.core.query import VIEW, encode, parse_query, to_query, with_defaults
from gradaccum.core.request import over_preset, read_inputs, unit_named
from gradaccum.errors import InputError, Problem
from gradaccum.show.form import SHOWN_IN, WHOLE, default_text, error_words, form, origin, presets
from gradaccum.show.html import EMPTY, el, fragment
from gradaccum.show.numbers import brief
from gradaccum.show.page import document, first_results, no_results, title_of
from gradaccum.show.sections import summary
from gradaccum.show.tabs import STRATEGIES, WEIGHTINGS
from gradaccum.units import quote, read_count, read_ratio, show_count
from gradaccum.web.fit_options import NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gradaccum.catalog.runs import PublishedRun
    from gradaccum.core.fields import Field
    from gradaccum.core.plan import Plan
    from gradaccum.show.html import Markup

KEPT = {
    "loop": tuple(name for name, _ in STRATEGIES),
    "weighting": tuple(name for name, _ in WEIGHTINGS),
    "embed": ("1",),
}
"""The values of VIEW that a permalink carries on; others change nothing."""


FIRST_FIT = "model=llama-3.2-1b&gpu=a100-sxm-80gb"
"""What the panel of what fits shows at first."""


PANEL: dict[str, Callable[[str, bool], Markup]] = {}
"""What draws the panel of what fits: `fit.py` fills it. The static page loads that once somebody asks for it."""


@dataclass(frozen=True)
class Answer:
    """What a query asks and what came of it: a plan, or the problems that prevent one.

    values: every input's text, presets and the page's defaults merged in. view: the parameters of VIEW. fit: those of
    NAMES, where the query asks what fits. headline: the plan's numbers, all that an edit waits for.
    """

    values: dict[str, str]
    view: dict[str, str]
    fit: dict[str, str]
    run: PublishedRun | None
    headline: Plan | None
    problems: tuple[Problem, ...]

    @property
    def plan(self) -> Plan | None:
        """The whole plan, made anew each time."""
        return self.headline and make_plan(self.headline.request)

    def link(self, changes: Mapping[str, str]) -> str:
        """The page's address with some inputs or parameters of VIEW and NAMES changed; "" clears one."""
        return "?" + self.query(changes)

    def query(self, changes: Mapping[str, str] | None = None) -> str:
        """The shortest query string that asks the same."""
        changes = changes or {}
        values, view, fit = dict(self.values), dict(self.view), dict(self.fit)
        for name in changes:
            (view if name in VIEW else fit if name in NAMES else values)[name] = changes[name]
        kept = [f"{name}={encode(fit[name])}" for name in NAMES if fit.get(name)] if fit else []
        kept += [f"{name}={view[name]}" for name in VIEW[1:] if view.get(name) in KEPT[name]]
        if self.run and values == inputs_of(self.run, {}):
            return "&".join(["preset=" + self.run.id, *kept])
        query = to_query(values)
        return "&".join(([query] if query else []) + kept)


def asks_what_fits(query: str) -> bool:
    """Whether the query names a model or a GPU. Its `dtype` is then the model's, and else that of the gradients."""
    return ("model=" in query or "gpu=" in query) and any(
        pair.startswith(("model=", "gpu=")) for pair in query.split("&")
    )


def read(query: str) -> tuple[dict[str, str], dict[str, str], dict[str, str], PublishedRun | None, list[Problem]]:
    """Every input's text, the parameters of VIEW and of NAMES, the published run to start from, and what is wrong."""
    names = NAMES if asks_what_fits(query) else ()
    extra = VIEW + names
    given, problems = parse_query(query, extra)
    view, fit = ({name: given[name].strip() for name in some if name in given} for some in (VIEW, names))
    own = {name: text for name, text in given.items() if name not in extra}
    run = None
    if view.get("preset"):
        try:
            run = find_run(view["preset"])
        except InputError as error:
            problems.extend(error.problems)
    if view.get("embed", "") not in ("", "0", "1"):
        problems.append(Problem("embed", f"is 1 or 0, not {quote(view['embed'])}", ["1"]))
    values = inputs_of(run, own) if run else with_defaults(_in_tokens(own))
    return values, view, fit, run, problems


_last: dict[str, Answer] = {}
"""The last answer: an edit asks for it twice, for what is looked at first and for the rest."""


def answer(query: str) -> Answer:
    """What the query asks, and its plan. A wrong query makes no exception: every problem is in the answer."""
    found = _last.get(query)
    if found is None:
        found = _answer(query)
        _last.clear()
        _last[query] = found
    return found


def _answer(query: str) -> Answer:
    values, view, fit, run, problems = read(query)
    headline = None
    try:
        headline = make_headline(read_inputs(values))
    except InputError as error:
        problems.extend(error.problems)
    return Answer(values, view, fit, run, None if problems else headline, _merged(problems))


def inputs_of(run: PublishedRun, own: Mapping[str, str]) -> dict[str, str]:
    """The inputs of a published run under a person's own; what stands there blank is blank on purpose."""
    values = {name: str(value) for name, value in over_preset(run.inputs(), _in_tokens(own)).items()}
    for name, text in own.items():
        if not text.strip():
            values[name] = ""
    if not run.missing and "sequence_length" not in values:
        values["sequence_length"] = ""  # its batches are not counted in tokens: the page's default would invent some
    return with_defaults(values)


def render_page(query: str, assets: str = "static/", policy: str = "", tracing: bool = True) -> str:
    """The whole page as HTML. query: without the "?"; assets: where its stylesheet, scripts and icon lie.

    policy: the Content-Security-Policy of a page without a server, which has no other place for it. tracing: whether a
    server, if there is one, can trace.
    """
    asked = answer(query)
    parts, errors = _parts(asked), _errors(asked)
    parts["fit"] = _panel(asked, query, tracing)
    return document(
        title_of(asked.headline) if asked.headline else "No plan yet \u00b7 gradaccum",
        summary(asked.headline) if asked.headline else "The inputs give no plan.",
        form(
            _shown(asked),
            errors,
            _echoes(asked),
            _hidden(asked),
            fragment(_what_fits(asked), _presets(asked.view.get("embed") == "1")),
            bool(policy),
        ),
        _origin(asked),
        parts,
        asked.query(),
        asked.view.get("embed") == "1",
        assets,
        policy,
    )


def render_live(query: str, fill: bool = True) -> dict[str, object]:
    """What an edit changes, ready for JSON: texts and HTML, no number that a script would have to read.

    ok; errors and echoes by field; values: the text of each field and of the hidden ones, where `fill` asks for them;
    summary: for a screen reader. Where ok also results by part, those that a person waits for.
    """
    asked = answer(query)
    live: dict[str, object] = {
        "ok": asked.headline is not None,
        "errors": {name: str(words) for name, words in _errors(asked).items()},
        "echoes": _echoes(asked),
    }
    if fill:
        values = _shown(asked)
        for name, value in _hidden(asked):
            values[name] = value
        live["values"] = values
    if asked.headline is None:
        live["summary"] = " ".join(str(problem) for problem in asked.problems)
        return live
    parts = first_results(asked.headline)
    parts["origin"] = _origin(asked)
    live["results"] = {name: str(part) for name, part in parts.items()}
    live["summary"] = summary(asked.headline)
    return live


def render_rest(query: str) -> dict[str, object]:
    """What follows, for the same query: ok, and where it is the other results by part, the permalink's query, title."""
    asked = answer(query)
    plan = asked.plan
    if plan is None:
        return {"ok": False}
    results = {name: str(part) for name, part in _rest(asked, plan).items()}
    return {"ok": True, "results": results, "query": asked.query(), "title": title_of(plan)}


def plan_or_errors(query: str) -> tuple[bool, dict[str, object]]:
    """Whether the query gives a plan; and the plan as the API gives it, or else one entry for each wrong field."""
    asked = answer(query)
    plan = asked.plan
    if plan is None:
        return False, {"errors": [problem.to_dict() for problem in asked.problems]}
    return True, plan.to_dict()


def _merged(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """One problem for each field: the messages of several become one."""
    found: list[Problem] = []
    for problem in problems:
        for index, other in enumerate(found):
            if other.field == problem.field:
                message = other.message if problem.message in other.message else f"{other.message}; {problem.message}"
                nearest = list(other.nearest) + [each for each in problem.nearest if each not in other.nearest]
                found[index] = Problem(problem.field, message, nearest)
                break
        else:
            found.append(problem)
    return tuple(found)


def _in_tokens(values: Mapping[str, str]) -> dict[str, str]:
    """A target written as `4M tokens` under the name that it has."""
    changed = dict(values)
    name, text = unit_named("target_batch", changed.get("target_batch", ""))
    if name == "target_tokens" and not changed.get(name, "").strip():
        changed[name] = str(text).strip()
        del changed["target_batch"]
    return changed


def _parts(asked: Answer) -> dict[str, Markup]:
    """All results of the page, or what stands in their place."""
    plan = asked.plan
    if plan is None:
        return no_results(asked.problems, [error_words(problem, asked.link) for problem in asked.problems])
    return {**first_results(plan), **_rest(asked, plan)}


def _rest(asked: Answer, plan: Plan) -> dict[str, Markup]:
    from gradaccum.show.rest import rest_results  # the answer does not wait for it

    strategy, weighting = asked.view.get("loop") or "auto", asked.view.get("weighting") or "auto"
    return rest_results(plan, asked.link, asked.values, strategy, weighting)


def _shown(asked: Answer) -> dict[str, str]:
    """The text of each field of the form."""
    texts = {spec.name: asked.values.get(spec.name) or default_text(spec) for spec in FIELDS}
    tokens = asked.values.get("target_tokens", "").strip()
    if tokens and not texts["target_batch"]:
        texts["target_batch"] = tokens + " tokens"
    return {name: text for name, text in texts.items() if name not in SHOWN_IN}


def _hidden(asked: Answer) -> list[tuple[str, str]]:
    return [(name, asked.view[name] if asked.view.get(name) in KEPT[name] else "") for name in VIEW[1:]]


def _errors(asked: Answer) -> dict[str, Markup]:
    """What is wrong, by the field beside which it stands; WHOLE for what belongs to none."""
    found: dict[str, list[Markup]] = {}
    fields = [spec.name for spec in FIELDS]
    for problem in asked.problems:
        place = SHOWN_IN.get(problem.field, problem.field if problem.field in fields else WHOLE)
        found.setdefault(place, []).append(error_words(problem, asked.link))
    return {name: fragment([[" ", words] for words in several]) for name, several in found.items()}


def _echoes(asked: Answer) -> dict[str, str]:
    """How a text was understood where it is not plain, and what was found for a field that was left blank."""
    echoes: dict[str, str] = {}
    for spec in FIELDS:
        text = asked.values.get(spec.name, "").strip() if spec.kind in (COUNT, RATIO) else ""
        if not text or (
            spec.kind == COUNT and len(text) <= 4 and text.isdigit() and text[0] != "0" and spec.name not in SHOWN_IN
        ):
            continue  # a short plain number is understood as it stands
        try:
            understood = _understood(spec, text)
        except InputError:
            continue
        if understood != text and (spec.kind == RATIO or len(text) > 4 or understood.replace(",", "") != text):
            echoes[spec.name] = "= " + understood
        if spec.name in SHOWN_IN:
            echoes[SHOWN_IN[spec.name]] = f"= {understood} tokens"
    plan = asked.headline
    if plan and plan.solved_for == "target_batch":
        echoes["target_batch"] = f"found: {brief(plan.effective_batch)}"
    elif plan and plan.solved_for == "num_gpus":
        echoes["num_gpus"] = f"found: {brief(plan.num_gpus)}"
    if plan and plan.request.micro_batch is None:
        echoes["micro_batch"] = f"found: {brief(plan.micro_batch)}"
    return echoes


def _understood(spec: Field, text: str) -> str:
    """The number that was read; of one too long to be compared by eye, how long it is."""
    if spec.kind == RATIO:
        return str(read_ratio(text))
    count = read_count(text)
    return show_count(count) if count < 10**15 else f"{brief(count)}, {len(str(count))} digits"


def _what_fits(asked: Answer) -> Markup:
    """The way to the panel. The script adds `data-add` to what the form says by then."""
    address = "#fit" if asked.fit else "?" + "&".join([each for each in (asked.query(), FIRST_FIT) if each])
    return el("a", {"class": "way-to-fit", "data-add": FIRST_FIT, "href": address}, "What fits on my GPU?")


def _panel(asked: Answer, query: str, tracing: bool) -> Markup:
    """The panel of what fits, where the query asks for it."""
    return PANEL["html"](query, tracing) if asked.fit and "html" in PANEL else EMPTY


@functools.cache
def _presets(embedded: bool) -> Markup:
    """Links to the runs that publish all that a plan needs."""
    embed = "&embed=1" if embedded else ""
    rows = []
    for run in published_runs():
        if run.missing:
            continue
        inputs = run.inputs()
        target = inputs.get("target_batch") or inputs["target_tokens"]
        words = f"{brief(inputs['micro_batch'])} on {brief(inputs['num_gpus'])} GPUs, target {brief(target)}"
        rows.append((f"?preset={run.id}{embed}", run.name, words))
    return presets(rows)


def _origin(asked: Answer) -> Markup:
    run = asked.run
    if run is None:
        return EMPTY
    return origin(run.name, run.source, run.url, run.checked, run.notes, run.missing)
