"""The page as a document: inputs left, results right. What it shows comes ready from the caller; it computes nothing.

Every address in it is relative, so that the same text serves under any path.
"""

from __future__ import annotations

from gradaccum.core.fields import BY_NAME
from gradaccum.show.form import SHOWN_IN
from gradaccum.show.html import el
from gradaccum.show.numbers import brief, drift_of, plural, signed
from gradaccum.show.sections import answer, pinned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gradaccum.core.plan import Plan
    from gradaccum.errors import Problem
    from gradaccum.show.html import Child, Markup

FIRST = ("answer",)
"""The result that a person waits for after an edit."""
REST = ("update", "nearby", "findings", "charts", "run", "loop", "settings", "algebra", "elsewhere")
"""What follows once that is painted, in its order on the page: the parts of rest.py."""


def first_results(plan: Plan) -> dict[str, Markup]:
    """The parts of FIRST, and "pinned"."""
    return {
        "answer": answer(plan, el("h2", {"class": "unseen", "id": "the-plan", "tabindex": -1}, "The plan")),
        "pinned": pinned(plan),
    }


def no_results(problems: Sequence[Problem], words: Sequence[Markup]) -> dict[str, Markup]:
    """What stands in place of the results where the inputs give none: what is wrong, each with the way to its field."""
    lines = []
    for message, problem in zip(words, problems):
        target = SHOWN_IN.get(problem.field, problem.field)
        way: Child = [" ", el("a", {"href": "#" + target}, "Go to the field")] if target in BY_NAME else None
        lines.append(el("li", None, message, way))
    return {
        "answer": el(
            "section",
            {"class": "part answer none"},
            el("h2", {"id": "the-plan", "tabindex": -1}, "No plan yet"),
            el("ul", None, lines),
        ),
        "pinned": el("a", {"href": "#results"}, "No plan yet: look at the inputs"),
    }


def title_of(plan: Plan) -> str:
    """The document's title: the answer first, for tabs and bookmarks."""
    off = "" if plan.is_exact else f" ({signed(drift_of(plan))})"
    return f"{plural(plan.accum_steps, 'step')}, batch {brief(plan.effective_batch)}{off} \u00b7 gradaccum"


def document(
    title: str,
    description: str,
    form: Markup,
    origin: Markup,
    parts: Mapping[str, Markup],
    query: str,
    embed: bool,
    assets: str,
    policy: str = "",
) -> str:
    """The whole page. query: the permalink's; embed: without the frame around it; assets: where its files lie.

    policy: given for a page without a server, which carries it itself and says for which query it was drawn.
    """
    alone = bool(policy)
    return "<!DOCTYPE html>\n" + str(
        el(
            "html",
            {"class": "embed" if embed else None, "data-drawn": query if alone else None, "lang": "en"},
            el(
                "head",
                None,
                el("meta", {"charset": "utf-8"}),
                el("meta", {"content": policy, "http-equiv": "Content-Security-Policy"}) if alone else None,
                el("meta", {"content": "width=device-width, initial-scale=1", "name": "viewport"}),
                el("meta", {"content": "light dark", "name": "color-scheme"}),
                el("title", None, title),
                el("meta", {"content": description, "name": "description"}),
                el("link", {"href": assets + "icon.svg", "rel": "icon", "type": "image/svg+xml"}),
                el("link", {"href": assets + "page.css", "rel": "stylesheet"}),
                el("script", {"defer": alone, "src": assets + "page.js", "type": None if alone else "module"}),
            ),
            el("body", None, _header(query, embed, alone), _main(form, origin, parts), _footer(parts)),
        )
    )


def _header(query: str, embed: bool, alone: bool) -> Markup:
    """The name and the way to the API; embedded, the heading alone, which only a screen reader meets."""
    if embed:
        return el("header", {"class": "unseen"}, el("h1", None, "gradaccum"))
    return el(
        "header",
        None,
        el(
            "h1",
            None,
            el("a", {"class": "name", "href": "?"}, "gradaccum"),
            " ",
            el("span", {"class": "tagline"}, "From a target batch to a verified training step"),
        ),
        el(
            "nav",
            {"aria-label": "This plan elsewhere"},
            el(
                "a",
                {"class": "scripted" if alone else None, "href": ("?" if alone else "api/plan?") + query, "id": "json"},
                "This plan as JSON",
            ),
            None if alone else el("a", {"href": "openapi.json"}, "API"),
        ),
    )


def _main(form: Markup, origin: Markup, parts: Mapping[str, Markup]) -> Markup:
    shown: list[Child] = [el("div", {"id": "part-" + name}, parts.get(name)) for name in (*FIRST, "fit", *REST)]
    return el(
        "main",
        None,
        el("div", {"class": "inputs"}, el("div", {"id": "part-origin"}, origin), form),
        el("div", {"class": "results", "id": "results"}, shown),
        el("p", {"class": "unseen", "id": "status", "role": "status"}),
    )


def _footer(parts: Mapping[str, Markup]) -> Markup:
    return el("footer", {"class": "pinned", "id": "part-pinned"}, parts.get("pinned"))
