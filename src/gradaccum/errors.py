"""What can go wrong, and what is then said.

    GradaccumError
    ├── InputError          the input gives no plan: one Problem for each wrong field
    └── MissingExtraError   a face needs a package that is not installed

A message says what is wrong, why, and the nearest valid value. The command line maps InputError
to exit code 2 and the server to HTTP 422; neither adds words of its own.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class GradaccumError(Exception):
    """The base of every error that this package raises on purpose."""


class Problem:
    """One thing that is wrong with the input.

    field: the name of the input (`micro_batch`), or "" where several together are wrong.
    message: what and why, in one or two sentences, with the person's own numbers.
    nearest: valid values close to what was meant, as text that can be typed; may be empty.
    verbatim: the message quotes words of the person's own program, so that no face may put names in its own spelling.
    """

    __slots__ = ("field", "message", "nearest", "verbatim")

    def __init__(self, field: str, message: str, nearest: Iterable[str] = (), verbatim: bool = False) -> None:
        self.field = field
        self.message = message
        self.nearest = tuple(nearest)
        self.verbatim = verbatim

    def __str__(self) -> str:
        """`micro_batch: must be at least 1, not 0; nearest: 1`"""
        head = f"{self.field}: " if self.field else ""
        tail = f"; nearest: {' or '.join(self.nearest)}" if self.nearest else ""
        return head + self.message + tail

    def __repr__(self) -> str:
        return f"Problem({self.field!r}, {self.message!r}, {self.nearest!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Problem) and (self.field, self.message, self.nearest) == (
            other.field,
            other.message,
            other.nearest,
        )

    def __hash__(self) -> int:
        return hash((self.field, self.message, self.nearest))

    def to_dict(self) -> dict[str, object]:
        """The entry of the server's 422 answer."""
        return {"field": self.field, "message": self.message, "nearest": list(self.nearest)}


class InputError(GradaccumError):
    """The input gives no plan. `problems` holds every wrong field, not only the first."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class MissingExtraError(GradaccumError):
    """A face was asked for whose packages are not installed."""

    def __init__(self, face: str, extra: str, package: str) -> None:
        super().__init__(
            f"{face} needs the package {package}, which is not installed. "
            f"Install it with: pip install 'gradaccum[{extra}]'"
        )
        self.extra = extra


def lowered(text: str) -> str:
    """`text` with its ASCII letters in lower case, for names and words of ours: what lies beyond differs by Python."""
    if text.isascii():
        return text.lower()
    return "".join([letter.lower() if ord(letter) < 128 else letter for letter in text])


def nearest_words(word: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The known words that are at most a third of their letters away from `word`, nearest first."""
    ranked, word = [], lowered(word)
    for each in known:
        longest = max(len(word), len(each))
        distance = edits(word, each, longest // 3)
        if 3 * distance <= longest:
            ranked.append((distance, each))
    return [each for _, each in sorted(ranked)[:most]]


def edits(one: str, other: str, most: int) -> int:
    """Levenshtein distance: letters to insert, remove or replace; `most` + 1 where it is more than `most`."""
    a, b, beyond = _letters(one), _letters(other), most + 1
    if abs(len(a) - len(b)) > most:
        return beyond
    if max(len(set(a) - set(b)), len(set(b) - set(a))) > most:  # each letter that the other lacks takes an edit
        return beyond
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a):
        # Only what lies within `most` of the diagonal can stay within it.
        first, last = max(0, i - most), min(len(b), i + beyond)
        previous, row[first] = row[first], (i + 1 if first == 0 else beyond)
        closest = left = row[first]
        for j in range(first, last):
            here = previous if letter == b[j] else previous + 1
            previous = row[j + 1] if j + 1 < i + beyond else beyond
            if left < here:
                here = left + 1
            if previous < here:
                here = previous + 1
            row[j + 1] = left = here
            if here < closest:
                closest = here
        if closest > most:
            return beyond
    return min(row[-1], beyond)


def _letters(text: str) -> Sequence[int]:
    """The numbers of its letters, which compare faster than they do, above all under MicroPython."""
    return text.encode() if text.isascii() else [ord(letter) for letter in text]
