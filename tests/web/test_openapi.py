"""The description of the API is itself valid, and its number pattern knows what the reader reads."""

from __future__ import annotations

import re

import jsonschema_rs
import pytest

from gradaccum.web.openapi import NUMBER, openapi


def test_every_reference_leads_somewhere():
    described = openapi()
    for ref in re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(described)):
        assert ref in described["components"]["schemas"]


def test_every_schema_is_a_json_schema():
    for schema in openapi()["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


@pytest.mark.parametrize(
    "text",
    [
        "4",
        "4M",
        "2k",
        "2Ki",
        "1_024",
        "1,024",
        "1e6",
        "2^19",
        "2**19",
        "16x8",
        "16 * 8",
        "3e-4",
        "30%",
        "4M tokens",
        "",
    ],
)
def test_the_pattern_knows_what_is_read(text):
    assert re.search(NUMBER, text)


@pytest.mark.parametrize("text", ["<b>", "four!", "4;", "\u0664", "(4)", "4/5"])
def test_the_pattern_refuses_what_is_not(text):
    assert not re.search(NUMBER, text)
