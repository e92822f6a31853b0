"""JSON text against the standard library's, number by number."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gradaccum.web.site.json_text import float_text, json_text

FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
@example({'\x00\x1f\b\f\n\r\t"\\/\x7f\u2028\U0001f680': [True, False, None, (1, 2)]})
def test_it_writes_what_the_standard_library_writes(value):
    assert json_text(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@given(FINITE)
@example(math.ulp(0.0))
@example(1.7976931348623157e308)
@example(9007199254740993.0)
@example(982318492793036.25)  # a tie between two shortest decimals
@example(0.1 + 0.2)
def test_a_float_is_its_shortest_decimal(value):
    assert float_text(value) == repr(value)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 11])
def test_powers_of_two_have_a_nearer_neighbour_below(step):
    powers = [2.0**n for n in range(-1074, 1024, step)]
    assert [float_text(power) for power in powers] == [repr(power) for power in powers]


def test_what_json_has_no_form_for_is_refused():
    with pytest.raises(TypeError, match="no form for"):
        json_text({"a": {1, 2}})
