"""What fits, asked by a query: the panel of the page as HTML, and the API's answer. No server here either.

A query asks it by naming a model or a GPU; it shares sequence length, GPUs, target and the rest with the calculator.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.catalog.gpus import find_gpu, gpus
from gradaccum.catalog.models import find_model, models
from gradaccum.core.fields import BY_NAME
from gradaccum.core.plan import make_headline
from gradaccum.core.request import read_inputs
from gradaccum.errors import InputError, Problem
from gradaccum.memory.fit import fit, memory_of
from gradaccum.memory.setup import MEANINGS, Setup
from gradaccum.show.fit_panel import PanelInput, found_parts, not_found, panel, plan_words, problem_words
from gradaccum.show.fit_words import how_it_fits
from gradaccum.show.html import EMPTY, el, fragment
from gradaccum.show.numbers import brief, drift_of
from gradaccum.show.sections import summary
from gradaccum.units import quote, read_count, show_bytes
from gradaccum.web.fit_options import COUNT, FLAG, NAMES, OPTIONS
from gradaccum.web.page import FIRST_FIT, PANEL, Answer, answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from gradaccum.core.plan import Plan
    from gradaccum.memory.answer import Fit
    from gradaccum.show.html import Child, Markup
    from gradaccum.show.nearby import Link

FIRST = dict([pair.split("=") for pair in FIRST_FIT.split("&")])
"""The model and the GPU that the panel shows at first."""

DTYPE = next(words[0] for name, _, words in OPTIONS if name == "dtype")

USUAL = ("model", "gpu", "dtype", "optimizer", "checkpointing", "attention", "strategy")
"""The options that come first; what a Setup holds beside them is folded away."""

AUTOMATIC = {"strategy": "single, or ddp"}
"""A choice that is made by the GPUs where nothing is said."""


@dataclass(frozen=True)
class FitAnswer:
    """What a query asks, and what fits; or the problems that prevent an answer. how: the options of the Setup."""

    asked: Answer
    how: dict[str, object]
    fit: Fit | None
    problems: tuple[Problem, ...]


_last: dict[str, FitAnswer] = {}
"""The last answer: the panel asks for it more than once."""


def fit_answer(query: str) -> FitAnswer:
    """What fits. A wrong query makes no exception: every problem is in the answer."""
    found = _last.get(query)
    if found is None:
        found = _fit_answer(answer(query))
        _last.clear()
        _last[query] = found
    return found


def _fit_answer(asked: Answer) -> FitAnswer:
    problems = [each for each in asked.problems if _matters(asked, each.field)]
    problems += [Problem(name, "is missing", [each]) for name, each in FIRST.items() if not asked.fit.get(name)]
    model = gpu = None
    try:
        model = find_model(asked.fit["model"]) if asked.fit.get("model") else None
    except InputError as error:
        (problem,) = error.problems
        what = problem.message.partition(";")[0]  # a config.json of one's own is not read here
        problems.append(Problem("model", what, problem.nearest))
    try:
        gpu = find_gpu(asked.fit["gpu"]) if asked.fit.get("gpu") else None
    except InputError as error:
        problems += error.problems
    how: dict[str, object] = {}
    for name, kind, words in OPTIONS:
        try:
            value = _value(asked, name, kind, words)
            if value is not None:
                how[name] = value
        except InputError as error:
            problems += [each for each in error.problems if each.field not in [known.field for known in problems]]
    if problems or model is None or gpu is None:
        return FitAnswer(asked, {}, None, tuple(problems))
    if model.image_tokens:
        how["sequence_length"] = model.image_tokens  # the calculator's own are tokens of text
    if how["num_gpus"] != 1 and "strategy" not in how:
        how["strategy"] = "ddp"
    try:
        target = _target(asked)
        if target is not None:
            how.pop("accum_steps", None)  # they follow from what fits and the target, as the link to use it says
        return FitAnswer(asked, how, fit(Setup(model=model, **how), gpu, target), ())  # type: ignore[arg-type]
    except InputError as error:
        return FitAnswer(asked, {}, None, error.problems)


def _matters(asked: Answer, field: str) -> bool:
    """Whether what is wrong with this input of the query is wrong for the fit, too: a target may be left out there."""
    if field in ("target_batch", "target_tokens"):
        return bool(asked.values.get(field, "").strip())
    return bool(field) and (field not in BY_NAME or field in [name for name, _, _ in OPTIONS])


def _value(asked: Answer, name: str, kind: str, words: Sequence[str]) -> object:
    """What the query says of one option, in the panel or in the calculator; None where that is nothing."""
    text = (asked.values if name in BY_NAME else asked.fit).get(name, "").strip()
    if name == "num_gpus" and not text:
        return asked.headline.num_gpus if asked.headline else 1  # the calculator may have found it
    if name == "sequence_length" and not text:
        raise InputError(Problem(name, "is missing, and memory depends on it", ["2048"]))
    if not text:
        return None
    if kind == COUNT:
        return read_count(text, name)
    if kind == FLAG:
        if text not in words:
            raise InputError(Problem(name, f"is yes or no, not {quote(text)}", list(words)))
        return text == "yes"
    if name in BY_NAME and text not in words and text == asked.fit.get("dtype", DTYPE):
        return None  # the calculator's words differ: gradients in the model's own type are what is usual
    return text


def _target(asked: Answer) -> int | None:
    """Sequences of one update, where the calculator has a target; of one in tokens the nearest number."""
    plan = asked.headline
    if plan is None or plan.solved_for == "target_batch":
        return None
    if plan.target_tokens is None or not plan.sequence_length:
        return plan.target_batch
    return max(1, (2 * plan.target_tokens + plan.sequence_length) // (2 * plan.sequence_length))


def fit_or_errors(query: str) -> tuple[bool, dict[str, object]]:
    """Whether something was found; and the fit as the API gives it, or else one entry for each wrong field."""
    found = fit_answer(query)
    if found.fit is None:
        return False, {"errors": [problem.to_dict() for problem in found.problems]}
    return True, found.fit.to_dict()


# The panel


def render_panel(query: str, tracing: bool = True) -> Markup:
    """The whole panel, open. tracing: whether a server, if there is one, can trace."""
    found = fit_answer(query)
    close = found.asked.link(dict.fromkeys(NAMES, ""))
    return panel(_inputs(found.asked), _errors(found), close, _found(found, tracing))


PANEL["html"] = render_panel


def render_fit(query: str, whole: bool = False, tracing: bool = True) -> dict[str, object]:
    """What an edit changes in the panel, ready for JSON: what was found, and what is wrong by input.

    whole: the panel with its inputs instead, as a link asks for it; "" closes it. tracing: as in render_panel.
    """
    found = fit_answer(query)
    if whole:
        fit: dict[str, object] = {"panel": str(render_panel(query, tracing)) if found.asked.fit else ""}
    else:
        errors = {name: str(words) for name, words in _errors(found).items()}
        fit = {"found": str(_found(found, tracing)), "errors": errors}
    return {"fit": fit, "summary": _summary(found)}


def _inputs(asked: Answer) -> list[PanelInput]:
    suggestions = {"model": _models(), "gpu": tuple([(each.id, each.name) for each in gpus()])}
    hints = {
        "model": "a preset, such as llama-3.1-8b or Qwen/Qwen2.5-7B",
        "gpu": "a name, such as rtx-3060-12gb, or its memory, such as 24GiB",
    }
    found = []
    for name in NAMES:
        words = next((words for option, _, words in OPTIONS if option == name), ())
        if name in AUTOMATIC:
            words = (AUTOMATIC[name], *words)
        hint = hints.get(name) or MEANINGS.get(name, "")
        text, listed = asked.fit.get(name, ""), suggestions.get(name, ())
        found.append(PanelInput(name, _label(name), hint, text, words, listed, name not in USUAL))
    return found


def _models() -> tuple[tuple[str, str], ...]:
    return tuple([(each.id, each.name) for each in models()])


def _label(name: str) -> str:
    if name in BY_NAME:
        return BY_NAME[name].label
    words = name.replace("_", " ").replace("gpu", "GPU").replace("lora", "LoRA")
    return words[:1].upper() + words[1:]


def _errors(found: FitAnswer) -> dict[str, Markup]:
    """What is wrong, by the input of the panel beside which it stands."""
    errors: dict[str, Markup] = {}
    for problem in found.problems:
        if problem.field in NAMES:
            words = problem_words(problem, _label(problem.field), found.asked.link)
            errors[problem.field] = fragment(errors.get(problem.field), " ", words)
    return errors


def _found(found: FitAnswer, tracing: bool) -> Markup:
    asked, fitting = found.asked, found.fit
    if fitting is None:
        others = [each for each in found.problems if each.field not in NAMES]
        return not_found([problem_words(each, _label(each.field), _linking(asked, each)) for each in others])
    plan = _plan_with(asked, fitting)
    then = _plan_words(asked, fitting, plan) if plan else None
    own = asked.headline.micro_batch if asked.headline else None
    button = el("button", {"class": "served-only", "id": "trace", "type": "button"}, "Trace the real step")
    return fragment(
        found_parts(fitting.to_dict(), fitting.gpu.name, applying(asked), then, own),
        _own_words(fitting, own),
        el(
            "p",
            {"class": "fit-more"},
            button if tracing else None,
            el("a", {"class": "served-only", "href": "api/fit?" + asked.query()}, "This fit as JSON"),
        ),
        el("div", {"id": "traced"}),
    )


def applying(asked: Answer) -> Link:
    """The page's address with options as a Setup has them: what is the default is left out."""
    default = {name: words[0] for name, _, words in OPTIONS if words}

    def link(changes: Mapping[str, object]) -> str:
        texts = {}
        for name in changes:
            value = changes[name]
            text = ("yes" if value else "no") if isinstance(value, bool) else "" if value is None else str(value)
            texts[name] = "" if text == default.get(name) else text
        return asked.link(texts)

    return link


def _linking(asked: Answer, problem: Problem) -> Link | None:
    return asked.link if problem.field in BY_NAME else None  # a name that nobody knows is no input to change


def _changes(asked: Answer, fitting: Fit) -> dict[str, str]:
    """What puts the micro-batch into the calculator: a target is kept, and what else would contradict it cleared."""
    changes = {"micro_batch": str(fitting.setup.micro_batch), "max_micro_batch": ""}
    if _target(asked):
        changes["accum_steps"] = ""
    return changes


def _plan_with(asked: Answer, fitting: Fit) -> Plan | None:
    """The calculator's plan with the micro-batch that was found."""
    if not fitting.max_micro_batch:
        return None
    try:
        return make_headline(read_inputs({**asked.values, **_changes(asked, fitting)}))
    except InputError:
        return None  # the calculator's other inputs are wrong, and it says so itself


def _plan_words(asked: Answer, fitting: Fit, plan: Plan) -> tuple[str, Child]:
    """What the plan is, and the link that makes it so."""
    shown = plan_words(plan.micro_batch, plan.data_parallel, plan.accum_steps, plan.effective_batch, drift_of(plan))
    used = asked.headline is not None and asked.headline.micro_batch == plan.micro_batch
    words = f"Use micro-batch {brief(plan.micro_batch)}"
    way = el("a", {"data-apply": True, "href": asked.link(_changes(asked, fitting))}, words)
    return shown, "as the calculator has it" if used else way


def _own_words(fitting: Fit, own: int | None) -> Markup:
    """What the calculator's own micro-batch would need, where it is another."""
    if own is None or own == fitting.setup.micro_batch:
        return EMPTY
    setup: Any = fitting.setup  # a Setup: the page's own answers are the closed form's
    memory = memory_of(setup.with_micro_batch(own), fitting.gpu)
    verdict = "is marginal" if memory.verdict == "marginal" else memory.verdict
    needed = f"{show_bytes(memory.process_bytes)} of {show_bytes(memory.capacity_bytes)}"
    return el("p", {"class": "hint"}, f"Your micro-batch of {brief(own)} {verdict}: {needed}.")


def _summary(found: FitAnswer) -> str:
    """For a screen reader: the calculator's answer, and what fits."""
    plan = found.asked.headline
    said = summary(plan) + ". " if plan else ""
    if found.fit is None:
        return said + " ".join([f"{_label(each.field)} {each.message}." for each in found.problems])
    most = found.fit.max_micro_batch
    words = f"Micro-batch {brief(most)} {how_it_fits(most, found.fit.surely)}" if most else "Nothing fits"
    return f"{said}{words} on {found.fit.gpu.name}."
