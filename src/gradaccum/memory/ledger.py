"""Where the bytes go: lines with a name, bytes and the formula they follow from, and the sum of some."""

from __future__ import annotations

from dataclasses import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Line:
    """One entry of a ledger. bytes: of one GPU. formula: with the numbers' names; source: where it comes from."""

    name: str
    bytes: int
    formula: str
    source: str

    def to_dict(self) -> dict[str, object]:
        """As `fit --json` has it."""
        return {"name": self.name, "bytes": self.bytes, "formula": self.formula, "source": self.source}


def total(lines: Iterable[Line]) -> int:
    """The sum, in bytes."""
    return sum(line.bytes for line in lines)
