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

FILES = ("micropython.mjs", "micropython.wasm")
"""What the page needs of the package."""

PATIENCE = 60
"""Seconds that fetching may take."""


class EngineError(GradaccumError):
    """The engine could not be had, or is not the one that is pinned."""


def engine_files(package: str | None = None) -> dict[str, bytes]:
    """FILES by name, out of the npm package. package: a copy on disk; None fetches it, and keeps it for next time.

    Raises EngineError where it cannot be fetched, or its hash is not INTEGRITY.
    """
    if package is not None:
        try:
            with open(package, "rb") as file:
                return _unpacked(file.read(), package)
        except OSError as error:
            raise EngineError(f"The engine's package {package} cannot be read: {error.strerror}.") from error
    kept = os.path.join(_cache(), f"micropython-{VERSION}.tgz")
    if os.path.exists(kept):
        return engine_files(kept)
    content = _from_npm() or _from_registry()
    files = _unpacked(content, ADDRESS)
    os.makedirs(_cache(), exist_ok=True)
    with open(kept, "wb") as file:
        file.write(content)
    return files


def _unpacked(content: bytes, where: str) -> dict[str, bytes]:
    found = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != INTEGRITY:
        raise EngineError(f"{where} is not {PACKAGE} {VERSION}: its hash is {found}, not {INTEGRITY}.")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = {name: archive.extractfile(f"package/{name}") for name in FILES}
        return {name: member.read() for name, member in members.items() if member}


def _cache() -> str:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(home, "gradaccum")


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
