"""The scripts that show a fault: short, alone, and with the numbers that come out by hand."""

from __future__ import annotations

import ast
import math
import re
import runpy
import subprocess
import sys
import warnings

import pytest

from gradaccum.core.audit import AuditFinding, AuditReport
from gradaccum.torch.audit.findings import KINDS
from gradaccum.torch.audit.repro import SCRIPTS, script, write_repros

pytestmark = pytest.mark.slow

WHOLE = (1 + 10 + 100 + 1000) / 4
# (framework, code) -> what the script calls wrong, and right.
BY_HAND = {
    ("torch", "GA101"): (2 * WHOLE, WHOLE),
    ("torch", "GA102"): (WHOLE / 2, WHOLE),
    ("torch", "GA103"): ((2 + 10) / 2, (2 + 3 * 10) / 4),
    ("torch", "GA105"): ((1e4 + 1e5) / 4, (1e4 + 1e5) / 2),
    ("torch", "GA106"): ((10 + 1) / 4, WHOLE),
    ("torch", "GA107"): ((100 + 1000 + 1 + 10) / 2, (1 + 10) / 2),
    ("torch", "GA108"): (1000 / 4, WHOLE),
    ("torch", "GA110"): (0.05 / math.hypot(1, 0.05), 0.05 / math.hypot(1.5, 0.05)),
    ("torch", "GA111"): (0.5**4, 0.5),
    # Of two numbers the normalised ones are -1 and 1, whatever they are.
    ("torch", "GA112"): (1 - math.tanh(1) ** 2, None),
    ("torch", "GA113"): (256, 1024),
    ("torch", "GA114"): (4 * 0.1, 0.1),
    ("torch", "GA115"): (60, 64),
    ("torch", "GA117"): (1 / 1024, 1),
    ("torch", "GA118"): ((1 + 20 + 300 + 4000) / 10, WHOLE),
    ("torch", "GA119"): (None, None),
    ("torch", "GA120"): (2, 8),
    ("accelerate", "GA102"): (WHOLE / 4, WHOLE),
    ("accelerate", "GA103"): (6, 8),
    ("accelerate", "GA105"): (27500, 55000),
    ("lightning", "GA103"): (6, 8),
    ("lightning", "GA105"): (27500, 55000),
    ("transformers", "GA101"): (None, None),
}
ON_TWO_RANKS = {("torch", "GA104"): (6, 8), ("torch", "GA109"): (1 + 10, (1 + 3 + 10 + 30) / 2)}


def report(*codes, framework="torch", severity="error"):
    findings = tuple(AuditFinding(code, severity, "m", {}, "c", "f") for code in codes)
    return AuditReport("fault", findings, {"framework": framework}, ())


def numbers(printed):
    """What the script calls wrong and right."""
    return tuple(
        float(re.search(rf"^{word} (\S+)$", printed, flags=re.MULTILINE).group(1)) for word in ("wrong", "right")
    )


def test_every_fault_has_a_script():
    faults = {code for code, kind in KINDS.items() if kind.severity != "note"}
    assert set(SCRIPTS["torch"]) == faults
    assert {(name, code) for name, own in SCRIPTS.items() for code in own if name != "trl"} == {*BY_HAND, *ON_TWO_RANKS}


@pytest.mark.parametrize("framework", SCRIPTS)
def test_scripts_are_short_and_need_nothing_of_ours(framework):
    for code in SCRIPTS[framework]:
        name, text = script(code, framework)
        assert name.startswith(code.lower())
        tree = ast.parse(text)
        assert ast.get_docstring(tree)
        assert len(text.splitlines()) <= 40
        assert max(map(len, text.splitlines())) <= 120
        assert "gradaccum" not in text


@pytest.fixture
def _as_before():
    """What trainers keep for the whole process is forgotten again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.timeout(300)  # the first script of a framework imports it
@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("framework", ["torch", "accelerate", "lightning", "transformers"])
def test_each_shows_the_fault_on_what_is_installed(framework, tmp_path, capsys):
    codes = [code for name, code in BY_HAND if name == framework]
    paths = write_repros(report(*codes, framework=framework), tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [f"{code.lower()}_{framework}.py" for code in codes]
    for code, path in zip(codes, paths, strict=True):
        runpy.run_path(str(path), run_name="__main__")
        wrong, right = numbers(capsys.readouterr().out)
        assert wrong != pytest.approx(right, rel=0.01)
        for value, wanted in zip((wrong, right), BY_HAND[framework, code], strict=True):
            assert wanted is None or value == pytest.approx(wanted, rel=1e-4), code
        if framework == "transformers":
            assert wrong / right == pytest.approx(4, rel=1e-3)  # the micro-batches of the group


@pytest.mark.parametrize("code", ["GA115", "GA120"])
def test_a_batch_is_the_person_s_own(code, tmp_path, capsys):
    finding = AuditFinding(code, "error", "m", {"effective_batch": 16, "target_batch": 64}, "c", "f")
    (path,) = write_repros(AuditReport("fault", (finding,), {"framework": "torch"}, ()), tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert numbers(capsys.readouterr().out) == (16, 64)


@pytest.mark.timeout(300)
def test_two_ranks_start_themselves(tmp_path):
    codes = [code for _, code in ON_TWO_RANKS]
    started = [
        subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for path in write_repros(report(*codes), tmp_path)
    ]
    printed = [process.communicate(timeout=280)[0] for process in started]
    assert [numbers(each) for each in printed] == [pytest.approx(each) for each in ON_TWO_RANKS.values()]


def test_each_fault_once_and_a_note_never(tmp_path):
    paths = write_repros(report("GA101", "GA103", "GA101", framework="fabric"), tmp_path)
    assert [path.name for path in paths] == ["ga101_torch.py", "ga103_torch.py"]
    assert write_repros(report("GA116", severity="note"), tmp_path) == []
    assert [path.name for path in write_repros(report("GA101", framework="trl"), tmp_path)] == ["ga101_trl.py"]
