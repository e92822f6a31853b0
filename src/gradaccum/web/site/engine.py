"""The engine of the static page: MicroPython for WebAssembly, from its npm package, pinned by version and hash."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request

from gradaccum.errors import GradaccumError

PACKAGE = "@micropython/micropython-webassembly-pyscript"
VERSION = "1.27.0"
INTEGRITY = "sha512-DnXx4EqxgkeaFESrS3uKrL7mLMk4mRTd0mMzaOd3HUSiZUOAE7t11uLnjf3ftF87N2xm4knHnWEKcVK4IYIUDA=="
ADDRESS = f"https://registry.npmjs.org/{PACKAGE}/-/{PACKAGE.partition('/')[2]}-{VERSION}.tgz"

CODE = "package/micropython.wasm"
"""What the page needs of the package; host.js takes the place of its loader."""

NOTICE = f"""\
MicroPython for WebAssembly, from the npm package {PACKAGE} {VERSION}.
micropython.wasm is unchanged; wasm.js holds the same once more, as text.

The MIT License (MIT)

Copyright (c) 2013-2025 Damien P. George, and others
https://github.com/micropython/micropython/blob/v{VERSION}/LICENSE

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
"""What its licence asks to be kept with a copy; the npm package itself carries none."""

PATIENCE = 60
"""Seconds that fetching may take."""


class EngineError(GradaccumError):
    """The engine could not be had, or is not the one that is pinned."""


def engine_code(package: str | None = None) -> bytes:
    """micropython.wasm, out of the npm package. package: a copy on disk; None fetches it, and keeps it for next time.

    Raises EngineError where it cannot be fetched, or its hash is not INTEGRITY.
    """
    if package is not None:
        try:
            with open(package, "rb") as file:
                return _unpacked(file.read(), package)
        except OSError as error:
            raise EngineError(f"The engine's package {package} cannot be read: {error.strerror}.") from error
    kept = kept_package()
    if os.path.exists(kept):
        try:
            return engine_code(kept)
        except EngineError:
            pass  # damaged: it is fetched again
    content = _from_npm() or _from_registry()
    code = _unpacked(content, ADDRESS)
    try:
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        with open(f"{kept}.{os.getpid()}", "wb") as part:
            part.write(content)
        os.replace(part.name, kept)  # whole or not at all
    except OSError:
        pass  # it is fetched again next time
    return code


def kept_package() -> str:
    """Where the npm package is kept once it was fetched."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(home, "gradaccum", f"micropython-{VERSION}.tgz")


def engine_files(package: str | None = None) -> dict[str, bytes]:
    """The engine's files in the site, by name. Raises EngineError as `engine_code` does."""
    code = engine_code(package)
    return {
        "LICENSE": NOTICE.encode(),
        "micropython.wasm": code,
        # For a page that is opened as a file: it may load scripts, but fetch nothing.
        "wasm.js": b'(globalThis.gradaccum??={}).wasm="' + base64.b64encode(code) + b'";\n',
    }


def _unpacked(content: bytes, where: str) -> bytes:
    found = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != INTEGRITY:
        raise EngineError(
            f"{where} is not {PACKAGE} {VERSION}: its hash is {found}, not {INTEGRITY}. "
            f"Get it with: npm pack {PACKAGE}@{VERSION}"
        )
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        member = archive.extractfile(CODE)
        assert member, f"a package of this hash holds {CODE}"
        return member.read()


def _from_npm() -> bytes | None:
    """The package as npm brings it, which knows a person's own registry; None where npm is not there or has none."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=PATIENCE)
        except (OSError, subprocess.SubprocessError):
            return None
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), "rb") as file:
                return file.read()
    return None


def _from_registry() -> bytes:
    try:
        with urllib.request.urlopen(ADDRESS, timeout=PATIENCE) as answer:
            content: bytes = answer.read()
            return content
    except OSError as error:
        raise EngineError(
            f"The engine cannot be fetched from {ADDRESS}: {error}. Fetch it elsewhere (npm pack {PACKAGE}@{VERSION}) "
            "and name the file with --engine."
        ) from error
