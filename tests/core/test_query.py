"""Permalinks there and back, against the standard library's reading of a query."""

from __future__ import annotations

import itertools
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradaccum import InputError
from gradaccum.core.fields import FIELDS
from gradaccum.core.query import DEFAULTS, MAX_QUERY, parse_query, to_query, with_defaults
from gradaccum.units import Ratio

TEXT = st.text(max_size=12)
EDGES = list(bytes.fromhex("41 7F 80 8F 90 9F A0 BF C0 C2 DF E0 E1 ED EF F0 F1 F4 F5"))
VALUES = st.dictionaries(st.sampled_from([spec.name for spec in FIELDS]), TEXT, max_size=6)


def meant(values):
    """What a page shows: blanks are nothing, and so is a default that holds everywhere."""
    fixed = {spec.name: str(spec.default) for spec in FIELDS if spec.default is not None}
    return {name: text.strip() for name, text in values.items() if text.strip() and text.strip() != fixed.get(name)}


@given(VALUES)
def test_a_permalink_reads_back_as_what_it_was_made_of(values):
    shown = {**dict.fromkeys(DEFAULTS, ""), **values}  # a page has all its main fields
    query = to_query(shown)
    if len(query) <= MAX_QUERY:
        assert meant(with_defaults(parse_query(query)[0])) == meant(shown)


@given(VALUES)
def test_it_decodes_as_the_standard_library_does(values):
    query = urllib.parse.urlencode(values)
    assert parse_query(query)[0] == dict(urllib.parse.parse_qsl(query, keep_blank_values=True))


def test_defaults_are_left_out():
    assert to_query(dict(DEFAULTS)) == ""
    assert to_query({**DEFAULTS, "rounding": "round", "tensor_parallel": "1"}) == ""
    assert to_query({**DEFAULTS, "micro_batch": "2"}) == "micro_batch=2"
    assert to_query({**DEFAULTS, "target_batch": ""}) == "target_batch="


def test_defaults_fill_only_what_is_needed():
    assert with_defaults({}) == DEFAULTS
    assert "target_batch" not in with_defaults({"accum_steps": "16"})
    assert with_defaults({"accum_steps": "16", "target_batch": "8"})["micro_batch"] == "4"
    assert "num_gpus" not in with_defaults({"accum_steps": "16", "target_batch": "8"})
    assert "micro_batch" not in with_defaults({"max_micro_batch": "16"})
    assert "target_batch" not in with_defaults({"target_tokens": "4M"})
    assert with_defaults({"target_batch": ""})["target_batch"] == ""
    assert with_defaults({"micro_batch": "1", "num_gpus": "1", "accum_steps": "2"}).get("target_batch") is None


def test_numbers_are_written_to_the_last_digit():
    values = {**DEFAULTS, "epochs": Ratio(123456789, 10**8), "learning_rate": 1.23456789e-5, "dataset_size": 10**40 + 1}
    query = to_query(values)
    assert query == f"dataset_size=1{'0' * 39}1&epochs=1.23456789&learning_rate=1.23456789e-05"
    assert to_query({**DEFAULTS, "micro_batch": 4, "rounding": "round", "target_batch": None}) == "target_batch="
    for name, value in (("micro_batch", 10**100), ("epochs", Ratio(1, 3)), ("micro_batch", True)):
        with pytest.raises(InputError, match=f"^{name}: cannot be written in a link"):
            to_query({name: value})


def test_what_a_query_may_not_be():
    for query, field in (
        ("micro_batch=4&micro_batch=4", "micro_batch"),
        ("micro_batch=4&micro_batch_size=4", "micro_batch"),
        ("micro_batsch=4", "micro_batsch"),
        ("x" * (MAX_QUERY + 1), ""),
    ):
        values, problems = parse_query(query)
        assert [problem.field for problem in problems] == [field]
        assert values == ({"micro_batch": "4"} if field == "micro_batch" else {})
    assert [problem.field for problem in parse_query("x&y=1&x=2&micro_batch=1")[1]] == ["x", "y"]  # each is said once
    assert parse_query("embed=1&m=2", extra=("embed", "m"))[0] == {"embed": "1", "m": "2"}


def test_what_others_append_to_a_link_is_no_input():
    appended = "utm_source=x&utm_medium=mail&fbclid=1&gclid=2&__theme=dark&micro_batch=3"
    assert parse_query(appended) == ({"micro_batch": "3"}, [])


def test_escapes_that_are_none_stay_visible():
    assert parse_query("micro_batch=%zz%4")[0] == {"micro_batch": "%zz%4"}
    assert parse_query("micro_batch=%ff4")[0] == {"micro_batch": "\ufffd4"}


@given(st.lists(st.sampled_from(EDGES), max_size=5))
def test_what_is_no_utf8_is_seen_as_the_standard_library_sees_it(octets):
    value = parse_query("micro_batch=" + "".join(f"%{octet:02X}" for octet in octets))[0]["micro_batch"]
    try:
        assert value == bytes(octets).decode()
    except UnicodeDecodeError:
        assert value == "".join(chr(octet) if octet < 128 else "\ufffd" for octet in octets)


def test_every_pattern_of_given_and_blank_reads_back():
    """Whether the inputs that are solved for each other are blank, the default, or something else: all 3^7 of it."""
    names = [*DEFAULTS, "accum_steps", "max_micro_batch", "target_tokens"]
    for pattern in itertools.product(["", "7", "default"], repeat=len(names)):
        shown = {name: DEFAULTS.get(name, "9") if text == "default" else text for name, text in zip(names, pattern)}
        assert meant(with_defaults(parse_query(to_query(shown))[0])) == meant(shown)
