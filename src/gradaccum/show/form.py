"""The inputs as a form: the main five first, the other groups folded until wanted. It works without a script."""

from __future__ import annotations

import functools

from gradaccum.core.fields import BY_NAME, CHOICE, COUNT, FIELDS
from gradaccum.show.html import el, fragment, outward

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gradaccum.core.fields import Field
    from gradaccum.errors import Problem
    from gradaccum.show.html import Child, Markup
    from gradaccum.show.nearby import Link

GROUPS = (
    ("solve", "Solve for something else", "Clear micro-batch, GPUs or target above: it is found from the rest."),
    ("parallel", "Model parallelism", "What one replica of the model takes; the ranks are so many replicas."),
    ("data", "Data and run", "For updates, warm-up, the short last group and tokens per parameter."),
    ("rate", "Learning rate", "Scales a learning rate that worked at another batch."),
)
"""Group of fields, its title, and why one would open it."""

WHOLE = "form"
"""In place of a field's name: what is wrong with several together, or with what is no input."""

SHOWN_IN = {"target_tokens": "target_batch"}
"""Inputs that have no field of their own: the target's field reads `4M tokens` too."""


def form(
    values: Mapping[str, str],
    errors: Mapping[str, Markup],
    echoes: Mapping[str, str],
    hidden: Sequence[tuple[str, str]],
    presets: Markup,
    alone: bool = False,
) -> Markup:
    """The form. values: each field's text; errors, echoes: what stands beside a field; hidden: what a submit keeps.

    alone: no server is there to answer a submit.
    """

    def fields(group: str) -> list[Markup]:
        return [field(spec) for spec in FIELDS if spec.group == group and spec.name not in SHOWN_IN]

    def field(spec: Field) -> Markup:
        value, error, echo = values.get(spec.name, ""), errors.get(spec.name), echoes.get(spec.name)
        if value == default_text(spec) and error is None and echo is None:
            return _untouched(spec.name)
        return _field(spec, value, error, echo)

    def is_open(group: str) -> bool:
        return any(
            spec.name in errors or values.get(spec.name, "") not in ("", default_text(spec))
            for spec in FIELDS
            if spec.group == group and spec.name not in SHOWN_IN
        )

    return el(
        "form",
        {"action": "?", "autocomplete": "off", "id": "inputs", "method": "get", "novalidate": True},
        [el("input", {"name": name, "type": "hidden", "value": value}) for name, value in hidden],
        el("h2", {"class": "unseen"}, "Inputs"),
        el("p", {"class": "error", "id": WHOLE + "-error"}, errors.get(WHOLE)),
        el("div", {"class": "fields main"}, fields("main")),
        el("noscript", None, _without_script(alone)),
        presets,
        [
            el(
                "details",
                {"class": "group", "id": "group-" + group, "open": is_open(group)},
                el("summary", None, title),
                el("p", {"class": "hint"}, why),
                el("div", {"class": "fields"}, fields(group)),
            )
            for group, title, why in GROUPS
        ],
    )


def error_words(problem: Problem, link: Link | None) -> Markup:
    """A problem as a sentence that begins with the field's label; valid values nearby are links that apply them."""
    spec = BY_NAME.get(problem.field)
    subject = spec.label if spec else problem.field
    nearest: list[Child] = []
    for index, value in enumerate(problem.nearest):
        nearest.append((" or " if index == len(problem.nearest) - 1 else ", ") if index else " Nearest: ")
        shown: Child = value
        if spec and link:
            shown = el("a", {"data-apply": True, "href": link({spec.name: value})}, value)
        nearest.append(shown)
    return fragment(f"{subject} {problem.message}" if subject else _capital(problem.message), ".", nearest)


def _without_script(alone: bool) -> Markup:
    if alone:
        return el("p", {"class": "remark"}, "This page calculates with JavaScript. Without it, it shows this one plan.")
    return el("button", {"class": "submit", "type": "submit"}, "Work it out")


def default_text(spec: Field) -> str:
    """What a form shows in a field that nobody has touched."""
    return "" if spec.default is None else str(spec.default)


def _capital(text: str) -> str:
    """As a sentence begins; the name of an input keeps its spelling."""
    return text if "_" in text.split(" ")[0] else text[:1].upper() + text[1:]


@functools.cache
def _untouched(name: str) -> Markup:
    """A field as it stands in most forms: with its default, and nothing to say of it."""
    return _field(BY_NAME[name], default_text(BY_NAME[name]), None, None)


def _field(spec: Field, value: str, error: Markup | None, echo: str | None) -> Markup:
    name = spec.name
    described = f"{name}-hint {name}-echo {name}-error"
    parts = [
        el("p", {"class": "echo", "id": name + "-echo"}, echo),
        el("p", {"class": "error", "id": name + "-error"}, error),
    ]
    if name == "rounding":
        return _radios(spec, value, parts)
    if spec.kind == CHOICE:
        control = _select(spec, value, described, error is not None)
    else:
        control = el(
            "input",
            {
                "aria-describedby": described,
                "aria-invalid": "true" if error else None,
                "autocapitalize": "off",
                "id": name,
                "inputmode": "numeric" if spec.kind == COUNT else "decimal",
                "name": name,
                "placeholder": "found" if spec.group == "main" else None,
                "spellcheck": "false",
                "type": "text",
                "value": value,
            },
        )
    return el(
        "div",
        {"class": "field"},
        el("label", {"for": name}, spec.label),
        control,
        el("p", {"class": "hint", "id": name + "-hint"}, spec.hint),
        parts,
    )


def _select(spec: Field, value: str, described: str, wrong: bool) -> Markup:
    """A few words to choose from; a wrong word stays visible."""
    known = list(spec.choices)
    if spec.default is None:
        known.insert(0, "")
    if value and value not in known:
        known.append(value)
    return el(
        "select",
        {
            "aria-describedby": described,
            "aria-invalid": "true" if wrong else None,
            "id": spec.name,
            "name": spec.name,
        },
        [
            el("option", {"selected": word == (value or default_text(spec)), "value": word}, word or "not given")
            for word in known
        ],
    )


def _radios(spec: Field, value: str, parts: list[Markup]) -> Markup:
    """The rounding as four buttons; under them the words of the chosen one. The hint holds them all."""
    meanings = dict(part.strip().split(": ", 1) for part in spec.hint.split("; "))
    options = []
    for word in spec.choices:
        options.append(
            el(
                "input",
                {
                    "aria-describedby": f"{spec.name}-{word} {spec.name}-error",
                    "checked": word == value,
                    "id": f"{spec.name}={word}",
                    "name": spec.name,
                    "type": "radio",
                    "value": word,
                },
            )
        )
        options.append(el("label", {"for": f"{spec.name}={word}"}, word))
    return el(
        "fieldset",
        {"class": "field choice", "id": spec.name},
        el("legend", None, spec.label),
        el("div", {"class": "segments"}, options),
        [
            el("p", {"class": "hint for-" + word, "id": f"{spec.name}-{word}"}, f"{word}: {meanings.get(word, '')}")
            for word in spec.choices
        ],
        parts,
    )


# Published runs


def presets(runs: Sequence[tuple[str, str, str]]) -> Markup:
    """Published runs to start from. runs: (address, name, what it holds) of each."""
    return el(
        "details",
        {"class": "group", "id": "presets"},
        el("summary", None, "Start from a published run"),
        el(
            "ul",
            {"class": "presets"},
            [
                el("li", None, el("a", {"data-apply": True, "href": href}, name), " ", el("span", None, words))
                for href, name, words in runs
            ],
        ),
    )


def origin(name: str, source: str, url: str, checked: str, notes: str | None, missing: Sequence[str]) -> Markup:
    """Where the inputs come from, after a published run was chosen."""
    lacking = ", ".join(BY_NAME[each].label.lower() for each in missing)
    return el(
        "div",
        {"class": "origin"},
        el("p", None, el("b", None, name), ", as published: ", outward(url, source)),
        el("p", {"class": "hint"}, notes + ". " if notes else None, f"Checked {checked}."),
        el("p", {"class": "hint"}, f"Not published, and filled in by this page: {lacking}.") if lacking else None,
    )
