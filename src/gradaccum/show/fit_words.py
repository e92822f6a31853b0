"""How the largest micro-batch fits, and what would change it: for the terminal, the page and the notebook."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def how_it_fits(largest: int, surely: int) -> str:
    """Of the largest micro-batch that is expected to fit: whether it does at worst too."""
    return "fits" if largest == surely else "is marginal"


def bounds_words(found: Mapping[str, Any], write: Callable[[int], str]) -> str:
    """`2 surely, 5 at best`, beside the largest micro-batch; empty where all are one. write: a count as text."""
    surely, at_best = found["max_micro_batch_surely"], found["max_micro_batch_at_best"]
    if surely == at_best:
        return ""
    best = f"{write(at_best)} at best"
    return best if surely == found["max_micro_batch"] else f"{write(surely)} surely, {best}"


def changes_by_title(found: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The changes below what is said of them; where nothing fits, those that change this apart."""
    if found["max_micro_batch"]:
        titles = [("would buy, at this micro-batch", found["changes"])]
    else:
        enough = [each for each in found["changes"] if each["fits"]]
        others = [each for each in found["changes"] if not each["fits"]]
        titles = [
            ("one sequence fits with one of these, which touch the result least first", enough),
            ("would buy, and not suffice", others),
        ]
    return [(title, changes) for title, changes in titles if changes]
