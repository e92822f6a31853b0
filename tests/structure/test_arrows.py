"""Which room may use which. Read from the source, so that an import inside a function counts too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.structure.source import Module, imports, modules

# What each room may use directly; through these, also what those may use.
USES: dict[str, set[str]] = {
    "errors": set(),
    "units": {"errors"},
    "core": {"errors", "units"},
    "catalog": {"core"},
    "trainers": {"core"},
    "show": {"core"},
    "memory": {"catalog"},
    "torch": {"core", "memory", "show"},
    "cli": {"core", "catalog", "memory", "trainers", "show", "torch", "web", "__init__"},
    "web": {"core", "catalog", "memory", "trainers", "show", "torch", "__init__"},
    "__main__": {"cli"},
    # The top resolves its names lazily, so it may name any room that has something to offer.
    "__init__": {"errors", "units", "core", "catalog", "memory", "trainers", "show", "torch"},
}

# The packages that are not the standard library, and the only room that may import them.
THIRD_PARTY = {"torch": {"torch", "transformers"}, "web": {"starlette", "uvicorn"}, "trainers": {"ruamel"}}


def reachable(room: str) -> set[str]:
    direct = USES[room]
    return direct.union(*(reachable(used) for used in direct)) if direct else set()


def broken_arrows(package: dict[str, Module]) -> list[str]:
    """One line for each import that points where no arrow leads."""
    found = []
    for module in package.values():
        if module.room not in USES:
            found.append(f"{module.at(module.tree)}: {module.room} is no room of the house")
            continue
        for target, node in imports(module, package):
            top, *below = target.split(".")
            if top == "gradaccum":
                room = below[0] if below else "__init__"
                if room != module.room and room not in reachable(module.room):
                    found.append(f"{module.at(node)}: {module.room} may not use {room} ({target})")
            elif top not in sys.stdlib_module_names and top not in THIRD_PARTY.get(module.room, ()):
                found.append(f"{module.at(node)}: {module.room} may not use the package {top}")
    return found


def cycle(package: dict[str, Module]) -> list[str]:
    """The modules of one import cycle, the first one repeated at the end; empty when there is none."""
    edges = {
        name: sorted({target for target, _ in imports(module, package) if target in package and target != name})
        for name, module in package.items()
    }
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for target in edges[name]:
                if found := follow(target, [*path, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := follow(name, []))), [])


def test_every_import_follows_an_arrow():
    found = broken_arrows(modules())
    assert not found, "\n".join(found)


def test_no_import_cycle():
    found = cycle(modules())
    assert not found, " -> ".join(found)


# From here on: the two checks can fail.


def plant(folder: Path, files: dict[str, str]) -> dict[str, Module]:
    """A package `gradaccum` of these files, with the `__init__.py` that each folder needs."""
    for name, text in {"__init__.py": "", **files}.items():
        path = folder / "gradaccum" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return modules(folder / "gradaccum")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("core/plan.py", "from gradaccum.show import text", "core may not use show"),
        ("core/plan.py", "from ..show.text import a", "core may not use show"),
        ("core/plan.py", "from .. import show", "core may not use show"),
        ("core/plan.py", "def f():\n    import gradaccum.show.text", "core may not use show"),
        ("core/plan.py", "if TYPE_CHECKING:\n    from ..show.text import A", "core may not use show"),
        ("core/plan.py", "from gradaccum import Plan", "core may not use __init__"),
        ("core/plan.py", "import numpy.linalg", "core may not use the package numpy"),
        ("errors.py", "from . import units", "errors may not use units"),
        ("show/a.py", "from gradaccum.catalog import b", "show may not use catalog"),
        ("show/a.py", "import torch", "show may not use the package torch"),
        ("cli/fit.py", "import torch", "cli may not use the package torch"),
        ("web/app.py", "from gradaccum.cli import main", "web may not use cli"),
        ("attic/a.py", "", "attic is no room"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, text: str, message: str):
    package = plant(tmp_path, {"show/text.py": "", "units.py": "", file: text})
    (found,) = (line for line in broken_arrows(package) if line.startswith(f"{file}:"))
    assert message in found


def test_a_planted_import_that_follows_an_arrow_is_not_reported(tmp_path: Path):
    package = plant(
        tmp_path,
        {
            "errors.py": "",
            "core/plan.py": "import math\nfrom gradaccum import errors\nfrom .request import A",
            "core/request.py": "from ..errors import E",
            "memory/ledger.py": "from gradaccum.core import plan",
            "torch/run.py": "import torch.nn\nfrom gradaccum.catalog import x",
            "catalog/x.py": "",
        },
    )
    assert broken_arrows(package) == []
    assert cycle(package) == []


def test_a_planted_cycle_is_found(tmp_path: Path):
    package = plant(
        tmp_path,
        {
            "core/a.py": "from . import b",
            "core/b.py": "def f():\n    from .c import x",
            "core/c.py": "from gradaccum.core.a import y",
        },
    )
    assert cycle(package) == ["gradaccum.core.a", "gradaccum.core.b", "gradaccum.core.c", "gradaccum.core.a"]
