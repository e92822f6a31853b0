"""What a person's name for a row means: spelling is forgiven, and a miss says what comes near. Never a guess."""

from __future__ import annotations

from gradaccum.errors import edits, lowered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def normalise(name: str) -> str:
    """Case, spaces, hyphens and underscores do not count."""
    return lowered(name).replace(" ", "").replace("-", "").replace("_", "")


def nearest_ids(wanted: str, ids: Mapping[str, str]) -> tuple[str, ...]:
    """Three ids near to a normalised name; `ids` maps each normalised name to the id of its row.

    The family is mostly typed right and the size wrong, so a shared beginning counts first, then the distance.
    """
    wanted = wanted[:60]  # the comparison is quadratic, and no name is longer
    alike: dict[int, list[str]] = {}
    for known in ids:
        shared = max(n for n in range(len(known) + 1) if wanted.startswith(known[:n]))
        alike.setdefault(shared, []).append(known)
    found: list[str] = []
    for shared in sorted(alike, reverse=True):
        found += [each for each in _closest(wanted, alike[shared], ids) if each not in found]
        if len(found) >= 3:
            break
    return tuple(found[:3])


def _closest(wanted: str, names: Sequence[str], ids: Mapping[str, str]) -> list[str]:
    """The ids of the three names with the fewest edits, at least."""
    ranked: list[tuple[int, str]] = []
    limit = 60
    for known in sorted(names, key=lambda name: abs(len(name) - len(wanted))):
        distance = edits(wanted, known, limit)
        if distance <= limit:
            ranked = sorted([*ranked, (distance, known)])
            third = list(dict.fromkeys([ids[name] for _, name in ranked]))[2:3]
            limit = min([limit] + [of for of, name in ranked if ids[name] in third])
    return list(dict.fromkeys([ids[name] for _, name in ranked]))
