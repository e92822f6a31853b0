"""What to take along: the training loop, settings for the common trainers, and the same plan in other places."""

from __future__ import annotations

import functools

from gradaccum.core.fields import COUNT, FIELDS
from gradaccum.errors import InputError
from gradaccum.show.html import el, outward
from gradaccum.show.loop import training_loop
from gradaccum.show.loop.form import choose_form
from gradaccum.show.sections import section
from gradaccum.show.settings import trainer_settings
from gradaccum.show.tabs import STRATEGIES, WEIGHTINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gradaccum.core.plan import Plan
    from gradaccum.show.html import Child, Markup
    from gradaccum.show.nearby import Link

_PLAIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._,%+"


def loop_section(plan: Plan, link: Link, strategy: str, weighting: str) -> Markup:
    """The loop in the form that was asked for, "auto" for what fits, and the other forms as links.

    A form that the plan refuses is named, with the reason, above the one that fits.
    """
    refusal: list[Child] = []
    try:
        chosen = choose_form(plan, strategy, weighting)
    except InputError as error:
        refusal = [el("p", {"class": "refusal"}, f"{_capital(each.message)}.") for each in error.problems]
        strategy = weighting = "auto"
        try:
            chosen = choose_form(plan, strategy, weighting)
        except InputError:
            return section("The loop", refusal, kind="loop")
    fitting = [(name, words) for name, words in STRATEGIES if _fits(plan, name)]
    return section(
        "The loop",
        refusal,
        el(
            "div",
            {"class": "tabs"},
            _tabs("How gradients are reduced", fitting, chosen.strategy, lambda name: link({"loop": name})),
            _tabs("How the loss is weighed", WEIGHTINGS, chosen.weighting, lambda name: link({"weighting": name})),
        ),
        copyable("the training loop", training_loop(plan, strategy, weighting)),
        kind="loop",
    )


def settings_section(plan: Plan) -> Markup:
    """The plan in the words of each trainer, the first one open; where a trainer cannot express it, why."""
    return section(
        "In your trainer",
        [
            el(
                "details",
                {"class": "trainer", "id": f"trainer-{index}", "name": "trainer", "open": index == 0},
                el(
                    "summary",
                    None,
                    setting.trainer,
                    None if setting.text else el("span", {"class": "hint"}, " no setting"),
                ),
                copyable(f"the setting for {setting.trainer}", setting.text) if setting.text else None,
                el(
                    "p",
                    {"class": "hint"},
                    setting.note,
                    " ",
                    _source(setting.source),
                ),
            )
            for index, setting in enumerate(trainer_settings(plan))
        ],
        kind="settings",
    )


@functools.cache
def _source(address: str) -> Markup:
    """The link to where a trainer's keys are documented: the same for every plan."""
    return outward(address, "Source")


def elsewhere_section(values: Mapping[str, str]) -> Markup:
    """The same plan in a terminal and in Python. values: the inputs as they were written."""
    return section(
        "The same plan elsewhere",
        copyable("the command", command(values)),
        copyable("the Python call", python_call(values)),
        kind="elsewhere",
    )


def copyable(name: str, text: str) -> Markup:
    """A block of text with a button that copies it; the button is there once a script can do it."""
    return el(
        "div",
        {"class": "copyable"},
        el("button", {"aria-label": "Copy " + name, "class": "copy", "type": "button"}, "Copy"),
        el("pre", {"aria-label": _capital(name), "role": "region", "tabindex": 0}, el("code", None, text)),
    )


def command(values: Mapping[str, str]) -> str:
    """`gradaccum plan -m 4 -g 8 -t 500`"""
    words = ["gradaccum plan"]
    for spec in FIELDS:
        text = values.get(spec.name, "").strip()
        if text and text != str(spec.default):
            quoted = text if all(c in _PLAIN for c in text) else "'" + text.replace("'", "'\\''") + "'"
            words.append(f"{'-' + spec.short if spec.short else spec.flag} {quoted}")
    return " ".join(words)


def python_call(values: Mapping[str, str]) -> str:
    """`gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500)`"""
    arguments = []
    for spec in FIELDS:
        text = values.get(spec.name, "").strip()
        if text and text != str(spec.default):
            plain = spec.kind == COUNT and all(c in "0123456789" for c in text) and (text == "0" or text[0] != "0")
            arguments.append(f"{spec.name}={text if plain else repr(text)}")
    return f"gradaccum.plan({', '.join(arguments)})"


def _fits(plan: Plan, strategy: str) -> bool:
    try:
        choose_form(plan, strategy, "auto")
    except InputError:
        return False
    return True


def _tabs(label: str, entries: Sequence[tuple[str, str]], current: str, address: Callable[[str], str]) -> Markup:
    return el(
        "ul",
        {"aria-label": label, "class": "segments"},
        [
            el(
                "li",
                None,
                el(
                    "a",
                    {"aria-current": "true" if name == current else None, "data-apply": True, "href": address(name)},
                    words,
                ),
            )
            for name, words in entries
        ],
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
