"""Lowered code does what the source does, construct by construct; test_vectors.py compares whole answers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradaccum.web.site import prelude
from gradaccum.web.site.lower import LoweringError, lower


def ran(source):
    """What the lowered module has in its namespace; importing prelude has put its names among the built-in ones."""
    namespace = {}
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
        "@functools.cache\n"
        "def double(x):\n"
        "    calls.append(x)\n"
        "    return 2 * x\n"
        "doubled = double(4) + double(4) + double(5)\n"
        "percent = f'100% of {a!r} and {1234:,}%'\n"
        "words = f'{a[0]}% of {a[1]}'\n"
        "made = {name: 1 for name in ('z', 'y', 'x')}\n"
        "copied = dict(made, w=2)\n"
        "unique = dict.fromkeys('hello')\n"
        "ranked = sorted(['bb', 'a', 'cc', 'd'], key=len, reverse=True)\n"
        "far = [*range(10**40, 10**40 + 3)]\n"
        "bare = '\\xa0 4 \\u2003'.strip()\n"
    )
    assert found["lists"] == [0, 1, 2, 3, 1, 2]
    assert found["tuples"] == (1, 2, 9)
    assert found["sets"] == {1, 2}
    assert found["dicts"] == {"x": 1, "y": 2, "z": 3}
    assert found["text"] == "1,234 {} [1, 2]"
    assert found["plain"] == "no {value}"
    assert found["twice"] == 2
    assert (found["doubled"], found["calls"]) == (26, [1, 4, 5])
    assert found["percent"] == "100% of [1, 2] and 1,234%"
    assert found["words"] == "1% of 2"
    assert [*found["made"], *found["copied"]] == ["z", "y", "x", "z", "y", "x", "w"]
    assert "".join(found["unique"]) == "helo"
    assert found["ranked"] == ["bb", "cc", "a", "d"]
    assert found["far"] == [10**40, 10**40 + 1, 10**40 + 2]
    assert found["bare"] == "4"


def test_an_enumeration_becomes_constants():
    found = ran(
        "from enum import StrEnum\n"
        "class Rounding(StrEnum):\n"
        "    CEIL = 'ceil'\n"
        "chosen = f'{Rounding.CEIL}'\n"
    )  # fmt: skip
    assert found["chosen"] == found["Rounding"].CEIL == "ceil"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers())), st.booleans())
def test_sorting_is_stable(pairs, reverse):
    chance = random.Random(0)
    chance.shuffle(pairs)

    def key(pair):
        return pair[0]

    assert prelude._sorted(pairs, key=key, reverse=reverse) == sorted(pairs, key=key, reverse=reverse)


BIG = st.integers(-(10**30), 10**30)


@given(BIG, st.integers(-20, 20), st.sampled_from([-3, -1, 1, 2]))
def test_ranges_reach_beyond_a_machine_word(start, length, step):
    limits = (start, start + length, step)
    assert list(prelude._big_range(*limits)) == list(range(*limits))
    assert list(prelude._big_range(*limits[:2])) == list(range(*limits[:2]))
    assert list(prelude._big_range(length)) == list(range(length))


@given(st.text(prelude._SPACE + "ab", max_size=6))
def test_white_space_is_what_unicode_says(text):
    assert prelude._strip(text) == text.strip()
    assert prelude._lstrip(text) == text.lstrip()
    assert prelude._rstrip(text) == text.rstrip()


def test_all_white_space_is_known():
    assert "".join(c for c in map(chr, range(0x110000)) if c.isspace()) == prelude._SPACE


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
        ("import functools\n@functools.cache\ndef f(*, a):\n    return a\n", "planted.py:3: functools.cache"),
        ("import os\nx = 1.5\ny = f'{x:.1f}'\n", "planted.py:1: imports os\nplanted.py:3: formats a float"),
        ("x = 1\ny = f'{x:>{x}}'\n", "planted.py:2: a format specification"),
    ],
)
def test_what_it_does_not_know_is_named_with_file_and_line(source, message):
    with pytest.raises(LoweringError) as error:
        lower(source, "planted.py")
    assert message in str(error.value)
