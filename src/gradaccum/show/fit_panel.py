"""What fits, on the page: the panel's inputs, and what was found. A fit comes as plain data, which is its JSON.

The inputs belong to the page's one form by their `form` attribute, so that they share its query.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.show.fit_words import bounds_words, changes_by_title
from gradaccum.show.html import EMPTY, el, fragment, linked
from gradaccum.show.memory_pictures import kind_of, memory_bar, memory_curve, room_words, swatch
from gradaccum.show.numbers import TIMES, brief, signed, with_minus
from gradaccum.units import show_bytes, show_percent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from gradaccum.errors import Problem
    from gradaccum.show.html import Child, Markup
    from gradaccum.show.nearby import Link

    Found = Mapping[str, Any]


@dataclass(frozen=True)
class PanelInput:
    """One input of the panel. words: what it may say, the default first; blank is the default.

    suggestions: (value, what it is) of each, for an input of free text. rare: folded away until it says something.
    """

    name: str
    label: str
    hint: str
    value: str
    words: tuple[str, ...] = ()
    suggestions: tuple[tuple[str, str], ...] = ()
    rare: bool = False


def panel(inputs: Sequence[PanelInput], errors: Mapping[str, Markup], close: str, found: Markup) -> Markup:
    """The open panel. errors: what is wrong, by input; close: the page's address without the panel."""

    def fields(rare: bool) -> list[Markup]:
        shown = [each for each in inputs if each.rare == rare]
        texts = [_text_input(each, errors.get(each.name)) for each in shown if not each.words]
        return texts + [_select(each, errors.get(each.name)) for each in shown if each.words]

    used = any(each.rare and (each.value or each.name in errors) for each in inputs)
    more = el(
        "details",
        {"class": "fit-rare", "open": used},
        el("summary", None, "More options"),
        el("div", {"class": "fit-inputs"}, fields(True)),
    )
    return el(
        "section",
        {"class": "part fit", "id": "fit"},
        el(
            "div",
            {"class": "fit-head"},
            el("h2", {"id": "fit-heading", "tabindex": -1}, "What fits"),
            el("a", {"data-apply": True, "href": close}, "Close"),
        ),
        el("div", {"class": "fit-inputs"}, fields(False)),
        more if fields(True) else None,
        el("noscript", None, el("button", {"class": "submit", "form": "inputs", "type": "submit"}, "Work it out")),
        el("div", {"id": "part-fit-found"}, found),
    )


def _text_input(each: PanelInput, error: Markup | None) -> Markup:
    name, listed = each.name, each.name + "-list"
    return _field(
        each,
        error,
        el(
            "input",
            {
                "aria-describedby": f"{name}-hint {name}-error",
                "aria-invalid": "true" if error else None,
                "autocapitalize": "off",
                "autocomplete": "off",
                "form": "inputs",
                "id": name,
                "list": listed if each.suggestions else None,
                "name": name,
                "spellcheck": "false",
                "type": "text",
                "value": each.value,
            },
        ),
        el("datalist", {"id": listed}, [el("option", {"value": value}, words) for value, words in each.suggestions])
        if each.suggestions
        else EMPTY,
    )


def _select(each: PanelInput, error: Markup | None) -> Markup:
    """A few words; the default is sent as a blank, and a wrong word stays visible."""
    default, *others = each.words
    if each.value and each.value not in each.words:
        others.append(each.value)
    options = [el("option", {"selected": each.value in ("", default), "value": ""}, default)]
    options += [el("option", {"selected": word == each.value, "value": word}, word) for word in others]
    attributes = {
        "aria-describedby": f"{each.name}-hint {each.name}-error",
        "aria-invalid": "true" if error else None,
        "form": "inputs",
        "id": each.name,
        "name": each.name,
    }
    return _field(each, error, el("select", attributes, options))


def _field(each: PanelInput, error: Markup | None, *control: Markup) -> Markup:
    return el(
        "div",
        {"class": "fit-field"},
        el("label", {"for": each.name, "title": each.hint}, each.label),
        *control,
        el("p", {"class": "unseen", "id": each.name + "-hint"}, each.hint),
        el("p", {"class": "error", "id": each.name + "-error"}, error),
    )


def problem_words(problem: Problem, label: str, link: Link | None) -> Markup:
    """A problem as a sentence that begins with the input's label; valid values nearby are links that apply them."""
    nearest: list[Child] = []
    for index, value in enumerate(problem.nearest):
        nearest.append((" or " if index == len(problem.nearest) - 1 else ", ") if index else " Nearest: ")
        shown: Child = value
        if link:
            shown = el("a", {"data-apply": True, "href": link({problem.field: value})}, value)
        nearest.append(shown)
    return fragment(f"{label} {problem.message}.", nearest)


def not_found(words: Sequence[Markup]) -> Markup:
    """What stands in place of the answer where the inputs give none. words: of what is not said beside an input."""
    lines: Sequence[Child] = words or ["Nothing to show yet: look at the inputs above."]
    return el("div", {"class": "none"}, el("ul", None, [el("li", None, each) for each in lines]))


# What was found


def found_parts(
    found: Found, gpu: str, link: Link | None, plan: tuple[str, Child] | None = None, own: int | None = None
) -> Markup:
    """The answer: what fits, the plan, the bar, the ledger, the curve, what would change it, what to know.

    gpu: the card's name; link: the address with some options changed, None where there is none, as in a notebook;
    plan: what follows, in words, and what stands below that; own: the person's own micro-batch.
    """
    return fragment(
        headline(found, gpu, plan),
        bar_section(found),
        el(
            "div",
            {"class": "fit-columns"},
            el("div", None, ledger_table(found["memory"]), _evidence(found)),
            el("div", None, _curve(found, link, own), changes_list(found, link)),
        ),
        findings_list(found),
    )


def _curve(found: Found, link: Link | None, own: int | None) -> Markup:
    """The curve; in a notebook hidden where no stylesheet says otherwise, since its labels alone would be no text."""
    return el("div", {"class": "picture", "hidden": None if link else "hidden"}, memory_curve(found, own))


def traced_parts(found: Found, gpu: str, link: Link) -> Markup:
    """A traced fit, below what the closed form has said."""
    return el(
        "section",
        {"class": "traced"},
        el("h3", {"id": "traced-heading"}, "By a trace of the real step"),
        found_parts(found, gpu, link),
    )


def headline(found: Found, gpu: str, plan: tuple[str, Child] | None) -> Markup:
    """The largest micro-batch, what it makes of the plan, and the room that is left."""
    largest, memory = found["max_micro_batch"], found["memory"]
    aside = ", ".join(filter(None, (bounds_words(found, brief), f"on {gpu}")))
    if largest != found["max_micro_batch_surely"]:
        aside = "marginal: " + aside
    shown = brief(largest) if largest else "none"
    if largest == found["most_looked_at"]:
        shown += " or more"
    verdict = memory["verdict"]
    figures = [
        _figure("first", "Largest micro-batch", shown, aside),
        _figure("plan", "Then the plan is", *plan) if plan else None,
        _figure(
            "verdict " + verdict.replace(" ", "-"),
            f"Memory at micro-batch {brief(found['micro_batch'] or 1)}",
            verdict,
            f"{show_bytes(memory['process_bytes'])} of {show_bytes(memory['capacity_bytes'])}",
        ),
    ]
    return el("dl", {"class": "figures fit-figures"}, figures)


def _figure(kind: str, label: str, number: str, aside: Child) -> Markup:
    shown: list[Child] = [el("span", {"class": "number"}, number), " ", el("span", {"class": "aside"}, aside)]
    return el("div", {"class": "figure " + kind}, el("dt", None, label), " ", el("dd", None, shown))


def plan_words(micro_batch: int, ranks: int, accum_steps: int, effective_batch: int, drift: int) -> str:
    """`9 x 8 x 7 = 504 (+4)`: micro-batch, ranks, accumulation steps, and what they make."""
    product = TIMES.join([brief(each) for each in (micro_batch, ranks, accum_steps)])
    return f"{product} = {brief(effective_batch)}" + (f" ({signed(drift)})" if drift else "")


def bar_section(found: Found) -> Markup:
    """The bar against the card, with its numbers below it, and which instant that is."""
    memory = found["memory"]
    return el(
        "figure",
        {"class": "fit-bar"},
        memory_bar(memory),
        el(
            "figcaption",
            None,
            el("b", None, f"Peak: {memory['peak_at']}. "),
            room_words(memory),
            ".",
        ),
    )


def ledger_table(memory: Found) -> Markup:
    """Every line: its colour in the bar, bytes, share and formula. The allocated ones first, and their sum."""
    whole = max(1, memory["process_bytes"])
    rows = [_line(each, whole) for each in memory["ledger"]]
    rows.append(_sum("allocated", memory["peak_bytes"], whole))
    rows += [_line(each, whole) for each in memory["outside"]]
    rows.append(_sum("the process", memory["process_bytes"], whole))
    return el(
        "table",
        {"class": "ledger"},
        el(
            "thead",
            None,
            el(
                "tr",
                None,
                el("th", {"scope": "col"}, "at the peak"),
                el("th", {"class": "n", "scope": "col"}, "bytes"),
                el("th", {"class": "n", "scope": "col"}, "share"),
            ),
        ),
        el("tbody", None, rows),
    )


def _line(each: Found, whole: int) -> Markup:
    formula = each.get("formula")
    return el(
        "tr",
        {"title": each.get("source")},
        el(
            "th",
            {"scope": "row"},
            swatch(kind_of(each["name"])),
            " ",
            each["name"],
            [" ", el("span", {"class": "formula"}, formula)] if formula else None,
        ),
        el("td", {"class": "n"}, show_bytes(each["bytes"])),
        el("td", {"class": "n"}, show_percent(each["bytes"], whole) + "%"),
    )


def _sum(name: str, count: int, whole: int) -> Markup:
    return el(
        "tr",
        {"class": "own"},
        el("th", {"scope": "row"}, name),
        el("td", {"class": "n"}, show_bytes(count)),
        el("td", {"class": "n"}, show_percent(count, whole) + "%"),
    )


def changes_list(found: Found, link: Link | None) -> Markup:
    """What would buy most at this micro-batch, each a link that applies it."""
    return fragment([_changes(title, changes, link) for title, changes in changes_by_title(found)])


def _changes(title: str, changes: Sequence[Found], link: Link | None) -> Markup:
    rows = []
    for each in changes:
        words: Child = each["change"]
        if link and each["set"]:
            words = el("a", {"data-apply": True, "href": link(each["set"])}, words)
        rows.append(el("li", None, el("b", {"class": "n"}, show_bytes(each["bytes"])), " ", words))
    return fragment(
        el("h3", None, title[:1].upper() + title[1:]),
        el("ul", {"class": "changes"}, rows),
    )


def _evidence(found: Found) -> Markup:
    evidence = found["evidence"]
    measured = f"{brief(evidence['cases'])} measured cases" if evidence["cases"] else "no measured case"
    words = evidence.get("words") or f"{evidence['regime']}: {measured}, \u00b1{evidence['margin']}%"
    said = [f"Evidence: {words}. Engine: {found['engine']}."]
    for each in found.get("engines", []):
        traced = f", traced at micro-batch {', '.join([brief(n) for n in each['traces']])}" if each["traces"] else ""
        said.append(f"Peak by the {each['engine']}: {show_bytes(each['peak_bytes'])}, {each['at']}{traced}.")
    if found.get("disagreement"):
        said.append(f"They differ by {with_minus(found['disagreement']['percent'])}%.")
    return el("p", {"class": "hint"}, " ".join(said))


def findings_list(found: Found) -> Markup:
    """What to know, the first one open."""
    rows = [
        el(
            "details",
            {"class": "finding " + each["severity"], "open": not index},
            el(
                "summary",
                None,
                el("span", {"class": "severity"}, each["severity"][:1].upper() + each["severity"][1:]),
                " ",
                el("span", {"class": "message"}, each["message"]),
            ),
            el("p", None, each["action"]),
            el("p", {"class": "source"}, el("span", {"class": "code"}, each["code"]), " ", linked(each["source"])),
        )
        for index, each in enumerate(found["findings"])
    ]
    return el("div", {"class": "fit-findings"}, rows) if rows else EMPTY
