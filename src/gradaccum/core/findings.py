"""What a person should know about their plan: a finding with a stable code. The rules stand in rules.py."""

from __future__ import annotations

from dataclasses import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.choices import Choice
    from gradaccum.core.pipeline import Pipeline
    from gradaccum.core.request import Request
    from gradaccum.core.solve import Sizes
    from gradaccum.core.training import Training


@dataclass(frozen=True)
class Finding:
    """One remark. severity: `warning` or `note`. action: what to do; source: where it comes from."""

    code: str
    severity: str
    message: str
    action: str
    source: str

    def to_dict(self) -> dict[str, object]:
        """The entry of the JSON contract."""
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "action": self.action,
            "source": self.source,
        }


@dataclass(frozen=True, eq=False, repr=False)
class Facts:
    """All that a rule may look at."""

    request: Request
    sizes: Sizes
    training: Training
    pipeline: Pipeline | None
    better: tuple[Choice, ...]

    @property
    def unit(self) -> str:
        """What the target counts."""
        return "tokens" if self.sizes.goal.in_tokens else "sequences"
