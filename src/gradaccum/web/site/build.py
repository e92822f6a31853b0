"""`gradaccum site build DIR`: the page as a folder of static files, calculated by the same Python in the browser.

index.html          the default page, rendered already
page.css icon.svg   as `gradaccum serve` sends them
page.js             its script, and what answers in place of the server, as one classic script
app.js              the project's Python, lowered: path -> text
fit.js              what the panel of what fits needs beside it, loaded once that is opened
engine/             MicroPython for WebAssembly
offline.js          the service worker that keeps all of it
"""

from __future__ import annotations

import ast
import hashlib
import json
import os

from gradaccum.web import fit_options
from gradaccum.web.page import render_page
from gradaccum.web.site.engine import engine_files
from gradaccum.web.site.lower import LoweringError, lower

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
"""The folder of the package `gradaccum`."""

SITE = ("web/site/__init__.py", "web/site/boot.py", "web/site/json_text.py", "web/site/prelude.py")

ROOMS = (
    "errors.py", "units.py", "core", "catalog", "show", "web/__init__.py", "web/page.py", *SITE,
)  # fmt: skip
"""What the browser runs."""

OPTIONS = "web/fit_options.py"
"""This one is written down with the values that it has here: TABLES."""
TABLES = ("COUNT", "FLAG", "WORD", "OPTIONS", "NAMES")

PANEL = "web/site/boot_fit.py"
"""The panel of what fits: this, and whatever it imports beside ROOMS."""

HOST = ("web/site/jumps.js", "web/site/host.js")
"""What runs the engine."""

FIRST_VISIT = (
    "app.js", "engine/micropython.wasm", "icon.svg", "index.html", "offline.js", "page.css",
    "page.js",
)  # fmt: skip
"""What a browser loads on a first visit."""

NOT_KEPT = ("index.html", "offline.js", ".nojekyll", "engine/LICENSE", "engine/wasm.js", "fit.js")
"""What the service worker leaves out: the page itself is kept under its address "./", fit.js once it was asked for; the
others it never asks for."""

LEFT_OUT = (
    "catalog/gpus.json", "catalog/gpus.py", "catalog/models.json", "catalog/models.py", "core/audit.py", "core/link.py",
    "core/sweep.py", "show/audit.py", "show/audit_page.py", "show/audit_picture.py", "show/audit_words.py",
    "show/fit.py", "show/fit_words.py", "show/fit_notebook.py", "show/fit_panel.py", "show/memory_pictures.py",
    "show/notebook.py", "show/probe.py", "show/text.py", "show/verify.py",
)  # fmt: skip
"""What the page does not use, or not before its panel is opened."""

POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; worker-src 'self'; form-action 'self'; base-uri 'none'"
)
"""As the server's, and what WebAssembly needs."""


def build(folder: str, engine: str | None = None) -> dict[str, bytes]:
    """Write the site into `folder`, and return what was written, by path.

    engine: the npm package of the engine as a file; None fetches it. Raises EngineError, LoweringError and OSError.
    """
    files = {f"engine/{name}": content for name, content in engine_files(engine).items()}
    for path in ("show/page.css", "web/icon.svg"):
        files[os.path.basename(path)] = _read(path)
    files["page.js"] = page_script().encode()
    sources = lowered_sources()
    fit = {path: sources.pop(path) for path in [f"gradaccum/{path}" for path in panel_files()]}
    version = hashlib.sha256(_compact([sources, fit]).encode()).hexdigest()[:16]
    files["app.js"] = _assigning("app", {"version": version, "sources": sources})
    files["fit.js"] = _assigning("fit", {"version": version, "sources": fit})
    files["index.html"] = render_page("", assets="", policy=POLICY).encode()
    files["offline.js"] = _offline(files)
    files[".nojekyll"] = b""  # GitHub Pages serves files as they are
    for path, content in files.items():
        place = os.path.join(folder, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(content)
    return files


IMPORT = 'import { ask } from "./ask.js"; // asks the server; the page without one has another file of this name\n'


def page_script() -> str:
    """page.js with the static page's way to ask, in one scope."""
    page, *more = (_read(path).decode() for path in ("web/page.js", *HOST, "web/site/ask.js"))
    assert IMPORT in page
    return '"use strict";\n(() => {\n' + "\n".join([page.replace(IMPORT, ""), *more]) + "})();\n"


def lowered_sources() -> dict[str, str]:
    """Every file that the browser's Python reads: lowered modules and the data beside them, by path.

    Raises LoweringError with every line of every file that would not run there.
    """
    options = "".join([f"{name} = {getattr(fit_options, name)!r}\n" for name in vars(fit_options) if name in TABLES])
    # The top resolves names for a person; the page imports rooms.
    sources = {"gradaccum/__init__.py": "", f"gradaccum/{OPTIONS}": options}
    complaints = []
    first, later = portable_files(), panel_files()
    for path in [*first, *later]:
        if not path.endswith(".py"):
            sources[f"gradaccum/{path}"] = _compact(json.loads(_read(path)))
            continue
        text = _read(path).decode()
        try:
            sources[f"gradaccum/{path}"] = lower(text, path)
        except LoweringError as error:
            complaints.append(str(error))
        found = absent(text, [*first, OPTIONS] if path in first else [*first, OPTIONS, *later])
        complaints += [f"{path}:{line}: imports {name}, which the page does not bring" for line, name in found]
    if complaints:
        raise LoweringError("\n".join([HEADLINE, *complaints]))
    return sources


HEADLINE = (
    "the page runs these files in the browser, under MicroPython, which has not all of Python "
    "(web/site/portable.py lists what it lacks, and LEFT_OUT in build.py what the page leaves out):"
)


def absent(text: str, paths: Sequence[str]) -> list[tuple[int, str]]:
    """(line, module) of each import at the top of a module that names one of this package beside `paths`.

    An import in a function may: it is for what the page does not call.
    """
    return [(line, name) for line, name, path in _imported(text) if path not in paths]


def _imported(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, module, its path) of each import of this package at the top of a module."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(str(node.module), alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            if not module.startswith("gradaccum."):
                continue
            place = module.removeprefix("gradaccum.").replace(".", "/")
            tried = [
                (f"{module}.{name}", f"{place}/{name}.py"),
                (module, f"{place}.py"),
                (module, f"{place}/__init__.py"),
            ]
            yield next(
                (node.lineno, *each) for each in tried if os.path.exists(os.path.join(PACKAGE, *each[1].split("/")))
            )


def panel_files() -> list[str]:
    """What the panel adds: the modules that it imports, the data beside them, and the packages that hold them."""
    first = [*portable_files(), OPTIONS]
    found: list[str] = []
    waiting = [PANEL]
    while waiting:
        path = waiting.pop()
        if path in first or path in found:
            continue
        found.append(path)
        if path.endswith(".py"):
            beside = path.removesuffix(".py") + ".json"
            waiting += [beside] if os.path.exists(os.path.join(PACKAGE, *beside.split("/"))) else []
            waiting += [each for _, _, each in _imported(_read(path).decode())]
            waiting += [os.path.dirname(path) + "/__init__.py"] if "/" in path else []
    return sorted(found)


def portable_files() -> list[str]:
    """What the browser runs or reads, as paths within the package."""
    found = []
    for room in ROOMS:
        if room.endswith(".py"):
            found.append(room)
            continue
        for folder, _, names in os.walk(os.path.join(PACKAGE, *room.split("/"))):
            within = os.path.relpath(folder, PACKAGE).replace(os.sep, "/")
            found += [f"{within}/{name}" for name in names if name.endswith((".py", ".json"))]
    return sorted(path for path in found if path not in LEFT_OUT)


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _assigning(name: str, value: object) -> bytes:
    """A script that leaves a value as gradaccum.NAME."""
    return f"(globalThis.gradaccum??={{}}).{name}={_compact(value)};\n".encode()


def _offline(files: dict[str, bytes]) -> bytes:
    """The service worker: it keeps every file, under a version that changes when one of them does."""
    digest = hashlib.sha256(b"".join(files[path] for path in sorted(files))).hexdigest()[:16]
    text = _read("web/site/offline.js").decode()
    kept = sorted(path for path in files if path not in NOT_KEPT)
    names = " ".join(["./", *kept])
    return text.replace("@VERSION@", digest).replace("@FILES@", names).encode()


def _read(path: str) -> bytes:
    with open(os.path.join(PACKAGE, *path.split("/")), "rb") as file:
        return file.read()
