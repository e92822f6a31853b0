"""What an audit found: a verdict, findings with their evidence, facts, and each audited update."""

from __future__ import annotations

from dataclasses import dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"
RIGHT, FAULT, NOT_SEEN = "right", "fault", "not seen"


@dataclass(frozen=True)
class AuditFinding:
    """One verdict. evidence: the numbers it rests on, by name. consequence: what it means for the optimizer in use.
    fix: one line of the framework at hand.
    """

    code: str
    severity: str
    message: str
    evidence: dict[str, object]
    consequence: str
    fix: str

    def to_dict(self) -> dict[str, object]:
        """The entry of the JSON contract."""
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "evidence": self.evidence,
            "consequence": self.consequence,
            "fix": self.fix,
        }


@dataclass(frozen=True)
class AuditedMicroBatch:
    """One backward pass of an audited update. weight: that of one of its units in the update, as a share of what it
    should be; None where it was not seen. units: tokens or samples that its loss counts.
    """

    rank: int
    index: int
    weight: float | None
    units: float | None
    samples: int | None

    def to_dict(self) -> dict[str, object]:
        """The entry of the JSON contract."""
        return {
            "rank": self.rank,
            "index": self.index,
            "weight": self.weight,
            "units": self.units,
            "samples": self.samples,
        }


@dataclass(frozen=True)
class AuditedUpdate:
    """One audited update of one optimizer. total: the sum of all weights, 1 for a mean. unit: what its loss counts, as
    `counted` (targets), `samples`, `rows` or `elements`.
    """

    number: int
    optimizer: str
    micro_batches: tuple[AuditedMicroBatch, ...]
    effective_batch: int | None
    units: float | None
    total: float | None
    unit: str | None = None

    def to_dict(self) -> dict[str, object]:
        """The entry of the JSON contract."""
        return {
            "number": self.number,
            "optimizer": self.optimizer,
            "micro_batches": [each.to_dict() for each in self.micro_batches],
            "effective_batch": self.effective_batch,
            "units": self.units,
            "total": self.total,
            "unit": self.unit,
        }


@dataclass(frozen=True)
class AuditReport:
    """All of it. verdict: right, fault, or not seen. not_seen: what the verdict says nothing about. script_exit: the
    command's own code, 0 where it was ended; None where a loop was watched. updates_wanted: after so many it is ended.
    """

    verdict: str
    findings: tuple[AuditFinding, ...]
    facts: dict[str, object]
    updates: tuple[AuditedUpdate, ...]
    not_seen: tuple[str, ...] = ()
    script_exit: int | None = None
    tolerance: float = 0.0
    updates_wanted: int | None = None

    def to_dict(self) -> dict[str, object]:
        """The JSON contract."""
        return {
            "schema_version": 1,
            "verdict": self.verdict,
            "findings": [each.to_dict() for each in self.findings],
            "facts": self.facts,
            "updates": [each.to_dict() for each in self.updates],
            "not_seen": list(self.not_seen),
            "tolerance": self.tolerance,
            "script_exit": self.script_exit,
            "updates_wanted": self.updates_wanted,
        }
