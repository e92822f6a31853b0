"""The results below the answer. The page loads this when the answer is painted: a quarter of what there is to load."""

from __future__ import annotations

from gradaccum.show.batch_chart import batch_chart
from gradaccum.show.html import el
from gradaccum.show.nearby import nearby_section
from gradaccum.show.sections import algebra_section, findings_section, run_section, section, target_words
from gradaccum.show.snippets import elsewhere_section, loop_section, settings_section
from gradaccum.show.update_picture import update_picture, update_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from gradaccum.core.plan import Plan
    from gradaccum.show.html import Markup
    from gradaccum.show.nearby import Link


def rest_results(
    plan: Plan, link: Link, values: Mapping[str, str], strategy: str = "auto", weighting: str = "auto"
) -> dict[str, Markup]:
    """The parts of REST. values: the inputs as written; strategy, weighting: which loop."""
    return {
        "update": update_section(plan),
        "nearby": nearby_section(plan, link),
        "findings": findings_section(plan),
        "charts": charts_section(plan),
        "run": run_section(plan),
        "loop": loop_section(plan, link, strategy, weighting),
        "settings": settings_section(plan),
        "algebra": algebra_section(plan),
        "elsewhere": elsewhere_section(values),
    }


def update_section(plan: Plan) -> Markup:
    """One update over time, for wide and for narrow places; the stylesheet shows one of the two."""
    return section(
        "One update over time",
        el(
            "figure",
            None,
            el("div", {"class": "wide"}, update_picture(plan)),
            el("div", {"class": "narrow"}, update_picture(plan, narrow=True)),
            el("figcaption", None, update_words(plan)),
        ),
        kind="update",
    )


def charts_section(plan: Plan) -> Markup:
    """What other micro-batches and GPU counts would make of the target."""
    return section(
        "With another micro-batch, with other GPUs",
        el("div", {"class": "charts"}, batch_chart(plan, "micro_batch"), batch_chart(plan, "num_gpus")),
        el(
            "p",
            {"class": "hint"},
            f"Dashed: the target, {target_words(plan)}. Each stem is a drift: above the line more, below it less.",
        ),
        kind="chart",
    )
