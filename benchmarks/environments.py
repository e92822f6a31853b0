"""Throwaway environments: this package and its peers, each installed from a wheel as a person would, and compiled."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import CACHE, ROOT

CONSTRAINTS = ROOT / "constraints.txt"


class InstallError(Exception):
    """pip could not install it; the message is pip's last line."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment without pip, so that it holds what was asked for and nothing else."""

    folder: Path

    def program(self, name: str) -> str:
        """The path of a program in it: `python`, or a console script."""
        return str(self.folder / "bin" / name)

    def version(self, package: str) -> str:
        """The installed version of a package."""
        (found,) = importlib.metadata.distributions(name=package, path=[str(self._packages())])
        return found.version

    def installed_bytes(self) -> int:
        """The size of all that pip installed, without what Python compiled of it."""
        files = (path for path in self._packages().rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return sum(path.stat().st_size for path in files)

    def _packages(self) -> Path:
        (packages,) = self.folder.glob("lib/python*/site-packages")
        return packages


def peer_environment(name: str, requirement: str, *options: str) -> Environment:
    """The environment of a peer, kept from one run to the next. InstallError where pip cannot install it.

    options: of pip, such as those that let a dependency without a wheel be built.
    """
    environment = Environment(CACHE / name)
    ready = environment.folder / "ready"
    wanted = f"{sys.version}\n{requirement}\n"
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        _install(environment, requirement, *options)
        ready.write_text(wanted, encoding="utf-8")
    return environment


def own_environment(name: str, extra: str = "") -> Environment:
    """This package as it is now, built as a wheel and installed. extra: "[web]", or none."""
    folder = CACHE / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    environment = Environment(CACHE / name)
    _install(environment, f"{wheel}{extra}")
    return environment


def library_environment(name: str, *requirements: str) -> Environment:
    """The libraries that a benchmark runs a model of, with the tests' torch, kept from one run to the next.

    This package is not in it: its source is put on the path, so that what is measured is what lies there.
    """
    environment = Environment(CACHE / name)
    ready = environment.folder / "ready"
    wanted = "\n".join([sys.version, *requirements, CONSTRAINTS.read_text(encoding="utf-8")])
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        _install(environment, *requirements, "torch", "numpy", "--constraint", str(CONSTRAINTS))
        ready.write_text(wanted, encoding="utf-8")
    return environment


def source_environ() -> dict[str, str]:
    """The environment variables of a process that runs this source."""
    return {**plain_environ(), "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}


def plain_environ() -> dict[str, str]:
    """The environment variables of a measured process: none that changes Python's ways, such as not to keep .pyc."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _install(environment: Environment, *requirements: str) -> None:
    venv.create(environment.folder, clear=True, symlinks=True, with_pip=False)
    python = environment.program("python")
    _pip("--python", python, "install", "--compile", "--only-binary", ":all:", *requirements)


def _pip(*arguments: str) -> None:
    # The build backend looks for its own program on the PATH, where an environment that is not activated is not.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, env={**plain_environ(), "PATH": path}, capture_output=True, text=True)
    if done.returncode:
        raise InstallError(done.stderr.strip().rpartition("\n")[2])
