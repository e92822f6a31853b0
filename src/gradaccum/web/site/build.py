"""`gradaccum site build DIR`: the page as a folder of static files, calculated by the same Python in the browser.

index.html                the default page, rendered already
page.css page.js icon.svg as `gradaccum serve` sends them
ask.js                    answers from the engine instead of the server
app.json                  the project's Python, lowered: path -> text
engine/                   MicroPython for WebAssembly
offline.js                the service worker that keeps all of it
"""

from __future__ import annotations

import hashlib
import json
import os

from gradaccum.web.page import render_page
from gradaccum.web.site.engine import engine_files
from gradaccum.web.site.lower import lower

PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
"""The folder of the package `gradaccum`."""

ROOMS = ("errors.py", "units.py", "core", "catalog", "show", "web/__init__.py", "web/page.py")
"""What the browser runs."""

LEFT_OUT = ("core/link.py", "core/sweep.py", "show/notebook.py")
"""What the page does not use."""

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
    for path in ("show/page.css", "web/page.js", "web/icon.svg", "web/site/ask.js"):
        files[os.path.basename(path)] = _read(path)
    files["app.json"] = json.dumps(lowered_sources(), separators=(",", ":")).encode()
    files["index.html"] = render_page("", assets="", policy=POLICY).encode()
    files["offline.js"] = _offline(files)
    files[".nojekyll"] = b""  # GitHub Pages serves files as they are
    for path, content in files.items():
        place = os.path.join(folder, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(content)
    return files


def lowered_sources() -> dict[str, str]:
    """Every file that the browser's Python reads: lowered modules and the data beside them, by path."""
    sources = {"boot.py": lower(_read("web/site/boot.py").decode(), "web/site/boot.py")}
    sources["gradaccum/__init__.py"] = ""  # the top resolves names for a person; the page imports rooms
    for path in _portable_files():
        text = _read(path).decode()
        sources[f"gradaccum/{path}"] = lower(text, path) if path.endswith(".py") else text
    runs = "gradaccum/catalog/published_runs.json"
    sources[runs] = json.dumps(json.loads(sources[runs]), separators=(",", ":"), ensure_ascii=False)
    return sources


def _portable_files() -> list[str]:
    found = []
    for room in ROOMS:
        if room.endswith(".py"):
            found.append(room)
            continue
        for folder, _, names in os.walk(os.path.join(PACKAGE, *room.split("/"))):
            within = os.path.relpath(folder, PACKAGE).replace(os.sep, "/")
            found += [f"{within}/{name}" for name in names if name.endswith((".py", ".json"))]
    return sorted(path for path in found if path not in LEFT_OUT)


def _offline(files: dict[str, bytes]) -> bytes:
    """The service worker: it keeps every file, under a version that changes when one of them does."""
    digest = hashlib.sha256(b"".join(files[path] for path in sorted(files))).hexdigest()[:16]
    text = _read("web/site/offline.js").decode()
    names = " ".join(["./", *sorted(path for path in files if path != "index.html")])
    return text.replace("@VERSION@", f"gradaccum-{digest}").replace("@FILES@", names).encode()


def _read(path: str) -> bytes:
    with open(os.path.join(PACKAGE, *path.split("/")), "rb") as file:
        return file.read()
