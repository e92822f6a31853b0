"""What an import loads. A clock swings; the set of modules does not, and it is what makes a start slow."""

from __future__ import annotations

import subprocess
import sys

from tests.structure import frozen

PLAN = "from gradaccum.cli import main; main('plan -m 4 -g 8 -t 500'.split())"

# Loaded by no plan: each is slow to import, or a sign that something reads files or the network.
HEAVY = {
    "asyncio",
    "csv",
    "decimal",
    "email",
    "fractions",
    "html",
    "http",
    "importlib.metadata",
    "importlib.resources",
    "json",
    "logging",
    "pathlib",
    "random",
    "socket",
    "statistics",
    "subprocess",
    "tempfile",
    "textwrap",
    "typing",
    "unittest",
    "urllib",
    "zipfile",
}


def loaded(code: str) -> set[str]:
    """The modules that an isolated interpreter holds after `code`, beyond those it starts with."""
    return _modules(code) - _modules("pass")


def _modules(code: str) -> set[str]:
    report = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-I", "-c", report], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stderr.split())


def foreign(modules: set[str]) -> set[str]:
    """The packages among them that are neither the standard library nor ours."""
    tops = {name.partition(".")[0] for name in modules}
    return tops - sys.stdlib_module_names - {"gradaccum", "__main__"}


def ours(modules: list[str]) -> list[str]:
    return [name for name in modules if name.partition(".")[0] == "gradaccum"]


def test_importing_the_package_loads_nothing_foreign_or_heavy():
    modules = loaded("import gradaccum")
    assert foreign(modules) == set()
    assert modules & HEAVY == set()


def test_a_plan_loads_nothing_foreign_or_heavy():
    modules = loaded(PLAN)
    assert foreign(modules) == set()
    assert modules & HEAVY == set()


def test_a_plan_loads_exactly_the_frozen_set():
    """On Python 3.11 all of it; the standard library of another version imports otherwise, our part is the same."""
    now = sorted(loaded(PLAN))
    if sys.version_info[:2] == (3, 11):
        frozen.check("plan_modules.txt", now, "What `gradaccum plan -m 4 -g 8 -t 500` loads, Python 3.11")
    else:
        assert ours(now) == ours(frozen.lines("plan_modules.txt"))


def test_the_check_sees_a_foreign_and_a_heavy_module():
    modules = loaded("import gradaccum, pytest, json")
    assert "pytest" in foreign(modules)
    assert "json" in modules & HEAVY


def test_the_check_sees_an_import_inside_a_function():
    assert "fractions" in loaded("import gradaccum\ndef f():\n    import fractions\nf()")
