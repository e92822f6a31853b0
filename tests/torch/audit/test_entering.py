"""The start of each Python process of an audited command: who is woken, by what, and that nothing of it shows.

torch is a package of one line here, so that a process costs little.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from gradaccum.torch.audit.run import ENTER

SITE = Path(ENTER, "sitecustomize.py")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "audit").mkdir()
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("__version__ = 'whole'")
    return tmp_path


def python(folder, code, *flags, **more):
    environment = {**os.environ, "GRADACCUM_AUDIT": str(folder / "audit"), "PYTHONPATH": ENTER, **more}
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    return done.stdout, done.stderr, sorted(each.suffix for each in (folder / "audit").iterdir())


def test_without_torch_nothing_of_ours_is_imported(folder):
    code = "import sys; print([each for each in sys.modules if 'gradaccum' in each], 'sitecustomize' in sys.modules)"
    assert python(folder, code) == ("[] False\n", "", [".entered"])


def test_who_asks_for_torch_wakes_nobody(folder):
    code = "import importlib.util as u; print(u.find_spec('torch').loader.__class__.__name__, u.find_spec('no_such'))"
    assert python(folder, code) == ("SourceFileLoader None\n", "", [".entered"])


def test_whoever_imports_torch_is_woken_once_it_is_whole_and_what_goes_wrong_is_kept(folder):
    code = "import torch, sys; print(torch.__version__, vars(torch.__loader__).keys(), len(sys.meta_path))"
    alone, _, _ = python(folder, code, GRADACCUM_AUDIT="")
    out, err, marks = python(folder, code)
    assert (out, err) == (alone, "")
    assert marks == [".failed", ".torch"]  # the session finds that this is no torch
    (failed,) = (folder / "audit").glob("*.failed")
    assert failed.read_text().startswith("ModuleNotFoundError: No module named 'torch.")


def test_a_torch_that_breaks_does_so_as_without_us(folder):
    (folder / "torch" / "__init__.py").write_text("1 / 0")
    out, err, marks = python(folder, "import torch")
    assert err.endswith("1 / 0\n    ~~^~~\nZeroDivisionError: division by zero\n")
    assert (out, marks) == ("", [".entered"])


def test_an_audit_that_is_over_is_left_alone(folder):
    assert python(folder, "import torch", GRADACCUM_AUDIT=str(folder / "gone"))[:2] == ("", "")


@pytest.mark.parametrize("text", ["print('theirs', __name__)", "1 / 0", "import no_such_module"])
def test_a_sitecustomize_of_their_own_runs_as_without_us(folder, text):
    own = folder / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text(text)
    code = "import sys; print('sitecustomize' in sys.modules, [each for each in sys.path if 'audit' in each])"
    alone = python(folder, code, PYTHONPATH=str(own))
    both = python(folder, code, PYTHONPATH=os.pathsep.join([ENTER, str(own)]))
    assert both[0] == alone[0]
    assert both[1].splitlines()[-1:] == alone[1].splitlines()[-1:]


def test_it_hands_on_where_python_expects_none(monkeypatch):
    monkeypatch.setenv("GRADACCUM_AUDIT", "")
    monkeypatch.setattr(sys, "path", [ENTER, *sys.path])
    monkeypatch.delitem(sys.modules, "sitecustomize", raising=False)
    with pytest.raises(ImportError) as caught:
        runpy.run_path(str(SITE))
    assert caught.value.name == "sitecustomize"
    assert ENTER not in sys.path
