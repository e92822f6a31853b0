"""Lowered code does what the source does: run by CPython, every answer of the page is the same to the byte."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from gradaccum.web.page import answer, render_live, render_rest
from gradaccum.web.site.build import lowered_sources
from gradaccum.web.site.lower import LoweringError, lower

QUERIES = [
    "",
    "target_batch=512",
    "micro_batch=0&num_gpus=x",
    "target_batch=4M+tokens&sequence_length=2k",
    "rounding=exact&target_batch=515",
    "preset=bloom-176b",
    "preset=bloom-17",
    "num_gpus=64&pipeline_parallel=8&virtual_pipeline=2&gradient_dtype=bf16&params=7B",
    "dataset_size=10k&epochs=1.5&warmup_fraction=3%25&learning_rate=3e-4&base_batch=64",
    "micro_batch=<script>&target_batch=%ff",
    "max_micro_batch=24&vary=num_gpus",
    "accum_steps=3&target_batch=",
    "loop=fsdp2-deferred&weighting=mean&supervised_fraction=0.3",
    "micro_batch=1" + "0" * 98,
]

DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import boot
answers = [[boot.first(query), boot.rest(query), boot.plan(query)] for query in json.load(sys.stdin)]
json.dump(answers, sys.stdout)
"""


def random_queries(count):
    chance = random.Random(0)
    names = ["micro_batch", "num_gpus", "target_batch", "sequence_length", "accum_steps", "tensor_parallel", "epochs"]
    texts = ["1", "3", "8", "500", "4M", "2Ki", "", "-1", "1.5", "x", "1e6", "16x8", "9" * 30]
    for _ in range(count):
        chosen = chance.sample(names, chance.randint(0, 4))
        yield "&".join(f"{name}={chance.choice(texts)}" for name in chosen)


def plan_of(query):
    asked = answer(query)
    if asked.plan is None:
        return {"errors": [problem.to_dict() for problem in asked.problems]}
    return asked.plan.to_dict()


@pytest.mark.slow  # a second interpreter answers everything again
def test_every_answer_of_the_lowered_code_is_the_same(tmp_path):
    for path, text in lowered_sources().items():
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    queries = [*QUERIES, *random_queries(150)]
    done = subprocess.run(
        [sys.executable, "-I", "-c", DRIVER, str(tmp_path)],
        input=json.dumps(queries), capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    for query, lowered in zip(queries, json.loads(done.stdout), strict=True):
        expected = [json.dumps(each) for each in (render_live(query), render_rest(query), plan_of(query))]
        assert lowered == expected, query


def ran(source):
    """What the lowered module has in its namespace; `_ordered` is what the browser's boot module brings."""
    ordered = {"_ordered": lambda *parts: {k: v for part in parts for k, v in dict(part).items()}}
    namespace = dict(ordered)
    exec(lower(source, "planted.py"), namespace)
    return namespace


def test_displays_text_and_caches():
    found = ran(
        "import functools\n"
        "a, b = [1, 2], {'x': 1}\n"
        "lists = [0, *a, 3, *a]\n"
        "tuples = (*a, 9)\n"
        "sets = {*a, 2}\n"
        "dicts = {**b, 'y': 2, **{'z': 3}}\n"
        "text = f'{1234:,} {{}} {f\"{a!r}\"}'\n"
        "plain = f'no {{value}}'\n"
        "calls = []\n"
        "@functools.cache\n"
        "def once():\n"
        "    calls.append(1)\n"
        "    return len(calls)\n"
        "twice = once() + once()\n"
    )
    assert found["lists"] == [0, 1, 2, 3, 1, 2]
    assert found["tuples"] == (1, 2, 9)
    assert found["sets"] == {1, 2}
    assert found["dicts"] == {"x": 1, "y": 2, "z": 3}
    assert found["text"] == "1,234 {} [1, 2]"
    assert found["plain"] == "no {value}"
    assert found["twice"] == 2


def test_dataclasses_become_plain_classes():
    found = ran(
        "from dataclasses import dataclass, field\n"
        "TYPE_CHECKING = False\n"
        "if TYPE_CHECKING:\n"
        "    from typing import Any\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Point:\n"
        '    """Gone."""\n'
        "    x: int\n"
        "    y: int = 2\n"
        "    note: str = field(default='', compare=False)\n"
        "    def __post_init__(self) -> None:\n"
        "        assert self.x\n"
        "@dataclass(frozen=True, eq=False)\n"
        "class Bare:\n"
        "    x: 'Any'\n"
        "def f(a: int, *, b: str = 'c') -> str:\n"
        "    later: int\n"
        "    now: str = b\n"
        "    return now\n"
    )
    point = found["Point"]
    assert point(x=1) == point(x=1, note="other")
    assert point(x=1) != point(x=1, y=3)
    assert hash(point(x=1)) == hash(point(x=1))
    with pytest.raises(TypeError):
        point(1)
    with pytest.raises(AssertionError):
        point(x=0)
    assert found["Bare"](1) != found["Bare"](1)
    assert found["f"](1) == "c"
    text = lower("x: int = 1\ny: int\n", "a.py")
    assert text == "x = 1\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import functools\n@functools.cache\ndef f(a):\n    return a\n", "planted.py:3: functools.cache"),
        ("x = 1\ny = f'{x:>{x}}'\n", "planted.py:2: a format specification"),
    ],
)
def test_what_it_does_not_know_is_named_with_file_and_line(source, message):
    with pytest.raises(LoweringError) as error:
        lower(source, "planted.py")
    assert message in str(error.value)
