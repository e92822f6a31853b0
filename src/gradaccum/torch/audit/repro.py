"""Each fault of a report as a script that stands alone: it prints the wrong number and the right one.

One parameter `w` and the loss `mean(w * x)`, whose gradient is the mean of x: numbers that are checked in the head.
Where a script begins with a number that the finding has too, as a batch, it is written with the finding's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from gradaccum.core.audit import NOTE
from gradaccum.torch.audit.repro_frameworks import ACCELERATE, LIGHTNING, TRANSFORMERS
from gradaccum.torch.audit.repro_torch import TORCH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gradaccum.core.audit import AuditReport

SCRIPTS = {
    "torch": TORCH,
    "accelerate": ACCELERATE,
    "lightning": LIGHTNING,
    "transformers": TRANSFORMERS,
    "trl": TRANSFORMERS,
}
"""By framework and code; what a framework has no script for, plain PyTorch has."""


def write_repros(report: AuditReport, folder: str | Path) -> list[Path]:
    """Write a script for each fault of the report into the folder, which is made where it is missing; notes have none.

    Returns the paths. Raises OSError where the folder cannot be written.
    """
    framework = str(report.facts.get("framework") or "torch")
    place, written = Path(folder), []
    place.mkdir(parents=True, exist_ok=True)
    faults = {each.code: each.evidence for each in reversed(report.findings) if each.severity != NOTE}
    for code in dict.fromkeys(each.code for each in report.findings if each.code in faults):
        name, text = script(code, framework, faults[code])
        path = place / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def script(code: str, framework: str, evidence: Mapping[str, object] | None = None) -> tuple[str, str]:
    """The file's name, and the text of the script. evidence: the finding's, whose numbers it takes."""
    own = SCRIPTS.get(framework, {})
    used = framework if code in own else "torch"
    text = SCRIPTS[used][code].lstrip("\n")
    for name, value in (evidence or {}).items():
        if isinstance(value, int):
            text = re.sub(rf"^{name} = \d+$", f"{name} = {value}", text, flags=re.MULTILINE)
    return f"{code.lower()}_{used}.py", text
