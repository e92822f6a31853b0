"""The wheel holds every file of the package, the licence and the command, and asks for nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.structure.source import PACKAGE, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys, uv_build; uv_build.build_wheel(sys.argv[1])"
    # The backend looks for its own program on the PATH, where an environment that is not activated is not.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    subprocess.run([sys.executable, "-c", build, folder], cwd=ROOT, env={**os.environ, "PATH": path}, check=True)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def read(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_every_file_of_the_package_is_inside(wheel: zipfile.ZipFile):
    sources = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel.namelist() if name.startswith("gradaccum/") and name[-1] != "/"} == sources
    assert "gradaccum/py.typed" in sources


def test_the_licence_is_inside(wheel: zipfile.ZipFile):
    assert read(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_command_is_there(wheel: zipfile.ZipFile):
    assert "gradaccum = gradaccum.cli:main" in read(wheel, "entry_points.txt")


def test_nothing_is_required(wheel: zipfile.ZipFile):
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    assert [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line] == []
    assert metadata.get_all("Provides-Extra") == ["all", "torch", "trainers", "web"]
    assert metadata["License-Expression"] == "Apache-2.0"
