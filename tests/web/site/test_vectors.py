"""CPython and MicroPython give the same answers to the byte: the JSON of the API and the whole page as HTML."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest

from gradaccum.web.site import build
from tests.web.site.vectors import FITS, PLAIN, answers, digests, fit_queries, queries

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
SCRIPTS = [Path(build.PACKAGE) / path for path in build.HOST]


@pytest.fixture
def micropython(node, site, tmp_path):
    """micropython(sources, queries, *flags, scripts): the lines that Node prints."""

    def run(sources, asked, *flags, scripts=SCRIPTS):
        with NamedTemporaryFile("w", dir=tmp_path, suffix=".json", delete=False) as file:  # one for each of two at once
            json.dump(sources, file)
        started = ",".join(map(str, scripts)), site / "engine" / "micropython.wasm", file.name
        done = subprocess.run(
            [node, HERE / "vectors.mjs", *started, *flags],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def differing(micropython, sources, asked, **options):
    lines = zip(asked, digests(asked), micropython(sources, asked, **options), strict=True)
    return [query for query, *pair in lines if pair[0] != pair[1]]


@pytest.mark.timeout(1200)
def test_twenty_thousand_answers_are_the_same(micropython):
    asked, sources = queries(20_000), build.lowered_sources()
    plans = sum('"schema_version"' in answers(query)[0] for query in asked[:500])
    assert 150 < plans < 350  # both what gives a plan and what does not
    shares = [asked[first :: os.cpu_count() or 1] for first in range(os.cpu_count() or 1)]
    with ThreadPoolExecutor(len(shares)) as pool:
        theirs = pool.map(lambda share: zip(share, micropython(sources, share), strict=True), shares)
        ours = dict(zip(asked, digests(asked)))  # while Node is at work
        found = [query for share in theirs for query, line in share if line != ours[query]]
    assert not found, report(micropython, sources, found)


def test_what_fits_is_the_same(micropython):
    asked = fit_queries(40)
    found = sum('"schema_version"' in answers(query)[0] for query in asked[len(FITS) :])
    assert 12 < found < 36  # both what is answered and what is not
    differ = differing(micropython, build.lowered_sources(), asked)
    assert not differ, report(micropython, build.lowered_sources(), differ)


def report(micropython, sources, found):
    """The first few differences, each with what stands around it."""
    lines = [f"{len(found)} differ"]
    for query, line in zip(found[:5], micropython(sources, found[:5], "--whole"), strict=True):
        for what, ours, theirs in zip(("JSON", "HTML"), answers(query), json.loads(line), strict=True):
            if ours != theirs:
                place = next((i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), 0)
                place = max(0, place - 60)
                lines += [
                    f"{query[:200]!r}, {what}:",
                    repr(ours[place : place + 200]),
                    repr(theirs[place : place + 200]),
                ]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("gradaccum/show/sections.py", "sequences per update", "sequences per Update"),
        ("gradaccum/core/arithmetic.py", "2 * goal + block", "2 * goal + block - 1"),
        ("gradaccum/web/site/prelude.py", "size - place if reverse else place", "size - place"),
        ("gradaccum/web/site/json_text.py", "ratio_of(value), 1", "ratio_of(value), 2"),
        ("gradaccum/show/memory_pictures.py", "1000 * count", "1001 * count"),
    ],
)
def test_a_planted_difference_is_found(micropython, path, before, after):
    sources = build.lowered_sources()
    assert before in sources[path]
    sources[path] = sources[path].replace(before, after)
    fits = FITS if "memory" in path else ()
    asked = [*PLAIN, *fits, "target_batch=16&micro_batch=1&num_gpus=1&max_micro_batch=", *queries(30, seed=1)]
    found = differing(micropython, sources, asked)
    assert found
    assert "differ" in report(micropython, sources, found)


def test_an_engine_without_exceptions_of_its_own_says_the_same(micropython, tmp_path):
    """Where WebAssembly has none, or has them no longer in that form, JavaScript takes the jumps."""
    (scripted := tmp_path / "jumps.js").write_text("WebAssembly.validate = () => false;\n" + SCRIPTS[0].read_text())
    asked = [*PLAIN, *queries(30, seed=2)]
    assert not differing(micropython, build.lowered_sources(), asked, scripts=[scripted, *SCRIPTS[1:]])
