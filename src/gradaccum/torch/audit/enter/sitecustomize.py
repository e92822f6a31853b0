"""Runs at the start of each Python process of an audited command, and sleeps until torch is imported there.

It takes its folder off the path again and lets a `sitecustomize` of the person's own run as if it were not here. No
part of this package is imported before torch is whole: a process without torch pays for these lines alone. They are
written so that older Pythons read them too.
"""

from __future__ import annotations

import atexit
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FOLDER = os.environ.get("GRADACCUM_AUDIT", "")
HERE = os.path.dirname(os.path.abspath(__file__))


class Waker:
    """Finds torch as the other finders do, and has the watching begin once it is whole."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Of torch, its spec; also for whoever only asks whether torch is there."""
        if name != "torch":
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                self._wrap(spec.loader)
                return spec
        return None

    def _wrap(self, loader: Any) -> None:
        load = getattr(loader, "exec_module", None)
        if load is None:
            return

        def load_and_begin(module: Any) -> None:
            del loader.exec_module  # the loader is as it was before anyone can see it
            load(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                begin()

        loader.exec_module = load_and_begin


def begin() -> None:
    """Watch this process. What goes wrong here is said in the report, and never disturbs the script."""
    try:
        os.replace(mark("entered"), mark("torch"))
        package()
        from gradaccum.torch.audit.session import begin as watch

        watch(FOLDER)
    except Exception as error:
        leave_word("failed", "{}: {}".format(type(error).__name__, error))  # noqa: UP032


def package() -> None:
    """Import gradaccum from where this file is, whatever the path says; nothing else becomes importable by that."""
    if "gradaccum" in sys.modules:
        return
    import importlib.util

    home = HERE
    for _ in "torch", "audit", "enter":
        home = os.path.dirname(home)
    where = os.path.join(home, "__init__.py")
    spec = importlib.util.spec_from_file_location("gradaccum", where, submodule_search_locations=[home])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gradaccum"] = module
    spec.loader.exec_module(module)


def mark(kind: str) -> str:
    """The file of this process: entered, torch (it was imported), or failed."""
    return os.path.join(FOLDER, "{}.{}".format(os.getpid(), kind))  # noqa: UP032


def leave_word(kind: str, text: str) -> None:
    """Write to that file, if the audit is still there to read it."""
    try:
        with open(mark(kind), "w") as file:
            file.write(text)
    except OSError:
        pass


def end() -> None:
    """The last thing of all that run at the interpreter's end: it was registered first."""
    session = sys.modules.get("gradaccum.torch.audit.session")
    if session is not None:
        session.end()


def hand_on() -> None:
    """Run the `sitecustomize` that would have run without us. ImportError where there is none, which Python expects."""
    sys.path[:] = [each for each in sys.path if os.path.abspath(each) != HERE]
    sys.path_importer_cache.pop(HERE, None)
    sys.modules.pop("sitecustomize", None)
    __import__("sitecustomize")


if os.path.isdir(FOLDER):
    leave_word("entered", " ".join(getattr(sys, "orig_argv", [])))
    sys.meta_path.insert(0, Waker())
    atexit.register(end)
hand_on()
