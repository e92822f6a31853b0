"""Every finding code has its entry: the arithmetic's in docs/findings.md, the audit's in docs/audit.md."""

from __future__ import annotations

import ast
import re
from collections import Counter

from tests.structure.source import ROOT, Module, modules

CODE = re.compile(r"GA\d{3}")


def codes_in(package: dict[str, Module]) -> Counter[str]:
    """How often each code stands in the source as a string of its own, docstrings apart."""
    return Counter(
        value.value
        for module in package.values()
        for node in ast.walk(module.tree)
        if not isinstance(node, ast.Expr)
        for value in ast.iter_child_nodes(node)
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and CODE.fullmatch(value.value)
    )


def entries_in(text: str) -> Counter[str]:
    return Counter(re.findall(r"^### (GA\d{3})\b", text, flags=re.MULTILINE))


def core() -> Counter[str]:
    return codes_in({name: module for name, module in modules().items() if module.room in ("core", "memory")})


def documented() -> Counter[str]:
    return entries_in((ROOT / "docs" / "findings.md").read_text(encoding="utf-8"))


def test_there_are_findings():
    assert len(core()) > 5


def test_every_code_is_documented_once():
    assert sorted(documented().elements()) == sorted(core())


def test_every_verdict_of_the_audit_is_documented_once():
    audit = codes_in({name: module for name, module in modules().items() if ".torch.audit." in name})
    assert len(audit) > 15
    entries = entries_in((ROOT / "docs" / "audit.md").read_text(encoding="utf-8"))
    assert sorted(entries.elements()) == sorted(audit)


def test_a_code_has_one_meaning():
    """It is written in one place of the source, so that no second finding takes the same code."""
    assert [code for code, times in core().items() if times > 1] == []


def test_codes_and_entries_are_read_right():
    source = 'A = "GA001"\nB = {"GA002": "see GA003"}\nf("GA001")\ndef g():\n    """GA004"""\n'
    assert codes_in({"x": Module("gradaccum.core.x", ROOT, ast.parse(source))}) == {"GA001": 2, "GA002": 1}
    assert entries_in("# GA009\n### GA001 drift\ntext GA002\n### GA003\n### GA0041\n") == {"GA001": 1, "GA003": 1}
