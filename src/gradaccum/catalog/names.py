"""What a person's name for a row means: spelling is forgiven, and a miss says what comes near. Never a guess."""

from __future__ import annotations

from gradaccum.errors import edits, lowered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


ALIKE = 3
"""Letters of a shared beginning that make two names alike, however they end."""


def normalise(name: str) -> str:
    """Case, spaces, hyphens and underscores do not count."""
    return lowered(name).replace(" ", "").replace("-", "").replace("_", "")


def nearest_ids(wanted: str, ids: Mapping[str, str], even_far: bool = False) -> tuple[str, ...]:
    """Up to three ids near to a normalised name; `ids` maps each normalised name to the id of its row.

    The family is mostly typed right and the size wrong, so a shared beginning counts first, then the distance. A name
    with hardly a letter in common is near to nothing, unless `even_far` asks for three all the same.
    """
    wanted = wanted[:60]  # the comparison is quadratic, and no name is longer
    alike: dict[int, list[str]] = {}
    for known in ids:
        shared = 0
        while shared < len(known) and wanted.startswith(known[: shared + 1]):
            shared += 1
        alike.setdefault(shared, []).append(known)
    found: list[str] = []
    for shared in sorted(alike, reverse=True):
        found += [
            each for each in _closest(wanted, alike[shared], ids, even_far or shared >= ALIKE) if each not in found
        ]
        if len(found) >= 3:
            break
    return tuple(found[:3])


def _closest(wanted: str, names: Sequence[str], ids: Mapping[str, str], even_far: bool) -> list[str]:
    """The ids of the three names with the fewest edits, at least, as far as they are near."""
    ranked: list[tuple[int, str]] = []
    limit = 60
    for known in sorted(names, key=lambda name: abs(len(name) - len(wanted))):
        distance = edits(wanted, known, limit)
        near = even_far or 3 * distance <= 2 * max(len(wanted), len(known))
        if near and distance <= limit:
            ranked = sorted([*ranked, (distance, known)])
            third = list(dict.fromkeys([ids[name] for _, name in ranked]))[2:3]
            limit = min([limit] + [of for of, name in ranked if ids[name] in third])
    return list(dict.fromkeys([ids[name] for _, name in ranked]))
