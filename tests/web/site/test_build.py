"""The folder of static files, with a stand-in for the engine: nothing is fetched here."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
import urllib.request

import pytest

from gradaccum.cli import main
from gradaccum.web import fit_options
from gradaccum.web.page import render_page
from gradaccum.web.site import build as build_module
from gradaccum.web.site import engine
from gradaccum.web.site.engine import EngineError
from gradaccum.web.site.lower import LoweringError


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """An npm package with the engine's file, whose hash is the pinned one."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        member = tarfile.TarInfo(engine.CODE)
        member.size = 4
        archive.addfile(member, io.BytesIO(b"wasm"))
    path = tmp_path / "engine.tgz"
    path.write_bytes(content.getvalue())
    digest = base64.b64encode(hashlib.sha512(content.getvalue()).digest()).decode()
    monkeypatch.setattr(engine, "INTEGRITY", "sha512-" + digest)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path


def test_every_file_that_the_page_names_is_there(stand_in, tmp_path):
    files = build_module.build(str(tmp_path / "site"), str(stand_in))
    page = (tmp_path / "site" / "index.html").read_text()
    named = re.findall(r'(?:src|href)="([^"?#:]+)"', page)
    assert {"page.css", "page.js", "icon.svg"} <= set(named)
    for name in set(named) - {"api/plan"}:
        assert name in files
    script = files["page.js"].decode()
    for name in re.findall(r'"((?:engine/)?[a-z]+\.(?:js|wasm))"', script):
        assert name in files
    assert set(build_module.FIRST_VISIT) <= set(files)
    for path, content in files.items():
        assert (tmp_path / "site" / path).read_bytes() == content


def test_the_engine_comes_with_its_licence_and_as_a_script(stand_in, tmp_path):
    files = build_module.build(str(tmp_path / "site"), str(stand_in))
    assert files["engine/micropython.wasm"] == b"wasm"
    assert base64.b64decode(files["engine/wasm.js"].split(b'"')[1]) == b"wasm"
    assert b"MIT License" in files["engine/LICENSE"]


def test_the_page_is_drawn_already_and_carries_its_policy(stand_in, tmp_path):
    build_module.build(str(tmp_path / "site"), str(stand_in))
    page = (tmp_path / "site" / "index.html").read_text()
    assert "1,048,576" in page
    assert "wasm-unsafe-eval" in page
    assert 'data-drawn=""' in page
    assert "openapi.json" not in page
    assert "Work it out" not in page
    served = render_page("")
    assert "data-drawn" not in served
    assert "http-equiv" not in served
    assert "Work it out" in served


def test_the_service_worker_keeps_every_file_under_a_version_of_its_own(stand_in, tmp_path, monkeypatch):
    files = build_module.build(str(tmp_path / "site"), str(stand_in))
    text = files["offline.js"].decode()
    kept = re.search(r'FILES = "([^"]*)"', text)
    assert kept
    assert set(kept.group(1).split()) == {"./", *files} - set(build_module.NOT_KEPT)
    assert set(kept.group(1).split()) - {"./"} == set(build_module.FIRST_VISIT) - {"index.html", "offline.js"}
    version = re.search(r"[0-9a-f]{16}", text)
    monkeypatch.setattr(build_module, "POLICY", build_module.POLICY + "; img-src 'none'")
    other = build_module.build(str(tmp_path / "other"), str(stand_in))["offline.js"].decode()
    assert version
    assert version.group() not in other


def test_the_sources_are_lowered_and_need_no_package_of_ours():
    sources = build_module.lowered_sources()
    assert "gradaccum/web/server.py" not in sources
    for path, text in sources.items():
        assert "dataclass" not in text or path.endswith(".json")
        assert "__future__" not in text
    json.loads(sources["gradaccum/catalog/published_runs.json"])


def test_the_command(stand_in, tmp_path, capsys):
    folder = tmp_path / "site"
    assert main(["site", "build", str(folder), "--engine", str(stand_in)]) == 0
    out = capsys.readouterr().out
    loaded = sum(len(gzip.compress((folder / name).read_bytes())) for name in build_module.FIRST_VISIT)
    assert f"11 files; a first visit loads {round(loaded / 1000)} kB compressed" in out
    assert main(["site"]) == 2
    assert main(["site", "build", "/dev/null/x", "--engine", str(stand_in)]) == 2
    assert "cannot write to /dev/null/x" in capsys.readouterr().err


def test_what_cannot_be_lowered_stops_the_build_with_file_and_line(stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build_module, "SITE", ())
    monkeypatch.setattr(build_module, "ROOMS", ("web/server.py",))
    assert main(["site", "build", str(tmp_path / "site"), "--engine", str(stand_in)]) == 2
    assert re.search(r"web/server\.py:[0-9]+: imports hashlib\n", capsys.readouterr().err)


def test_every_fault_of_every_file_is_said_at_once(monkeypatch):
    monkeypatch.setattr(build_module, "SITE", ())
    monkeypatch.setattr(build_module, "ROOMS", ("web/server.py", "web/serve.py", "web/page.py"))
    with pytest.raises(LoweringError) as error:
        build_module.lowered_sources()
    first, *lines = str(error.value).splitlines()
    assert "MicroPython" in first
    assert {line.partition(":")[0] for line in lines} == {"web/server.py", "web/serve.py", "web/page.py"}
    assert any(re.match(r"web/page\.py:[0-9]+: imports gradaccum\.core\.plan, which the page", line) for line in lines)


def test_the_panel_brings_what_it_imports_and_the_first_files_nothing_of_it():
    first, panel = build_module.portable_files(), build_module.panel_files()
    assert not set(first) & set(panel)
    assert {"memory/fit.py", "catalog/models.json", "show/fit_panel.py", "memory/__init__.py"} <= set(panel)
    assert "memory/allocator.py" not in panel
    sources = build_module.lowered_sources()
    written = ["__init__.py", "web/fit_options.py"]
    assert set(sources) == {f"gradaccum/{path}" for path in [*written, *first, *panel]}
    tables: dict[str, object] = {}
    exec(sources["gradaccum/web/fit_options.py"], tables)
    assert {name: tables[name] for name in build_module.TABLES} == {
        name: getattr(fit_options, name) for name in build_module.TABLES
    }


def test_what_the_page_leaves_out_may_be_imported_in_a_function_alone():
    assert build_module.absent("def f():\n    from gradaccum.core.link import link\n", []) == []
    paths = build_module.portable_files()
    assert build_module.absent("from gradaccum.core.link import link\n", paths) == [(1, "gradaccum.core.link")]
    assert build_module.absent("from gradaccum.show import text, html\n", paths) == [(1, "gradaccum.show.text")]


@pytest.mark.slow  # compresses half a megabyte
def test_a_first_visit_is_small_and_the_panel_a_quarter_of_that(site):
    assert len(gzip.compress((site / "fit.js").read_bytes())) <= 75_000
    assert sum(len(gzip.compress((site / name).read_bytes())) for name in build_module.FIRST_VISIT) <= 300_000


def test_an_engine_that_is_not_the_pinned_one_is_refused(tmp_path, capsys):
    other = tmp_path / "other.tgz"
    other.write_bytes(b"something else")
    assert main(["site", "build", str(tmp_path / "site"), "--engine", str(other)]) == 2
    assert "its hash is sha512-" in capsys.readouterr().err
    assert main(["site", "build", str(tmp_path / "site"), "--engine", str(tmp_path / "none.tgz")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_engine_comes_from_npm_or_the_registry_and_is_kept(stand_in, monkeypatch):
    content = stand_in.read_bytes()
    monkeypatch.setattr(engine.shutil, "which", lambda name: None)
    monkeypatch.setattr(urllib.request, "urlopen", lambda address, timeout: io.BytesIO(content))
    assert engine.engine_code() == b"wasm"

    def unreachable(address, timeout):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    assert engine.engine_code() == b"wasm"  # kept from before
    with open(engine.kept_package(), "wb") as kept:
        kept.write(b"half of it")
    monkeypatch.setattr(urllib.request, "urlopen", lambda address, timeout: io.BytesIO(content))
    assert engine.engine_code() == b"wasm"  # damaged, and fetched again
    with monkeypatch.context() as patched:
        patched.setattr(engine, "kept_package", lambda: "/dev/null/kept.tgz")
        assert engine.engine_code() == b"wasm"  # where it cannot be kept it is not

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(stand_in.parent / "empty"))
    with pytest.raises(EngineError, match="cannot be fetched"):
        engine.engine_code()

    def pack(command, cwd, **options):
        with open(f"{cwd}/package.tgz", "wb") as file:
            file.write(content)

    monkeypatch.setattr(engine.shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setattr(subprocess, "run", pack)
    assert engine.engine_code() == b"wasm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(stand_in.parent / "empty again"))

    def fails(command, cwd, **options):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(EngineError, match="cannot be fetched"):
        engine.engine_code()
