"""Requests made from the API's own description, and far outside of it: every answer is one that it describes."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import settings

from gradaccum.web.server import create_app

pytestmark = pytest.mark.slow

schema = schemathesis.openapi.from_asgi("/openapi.json", create_app({"localhost", "testserver", "127.0.0.1"}))
# A pattern cannot say that a world divides by the degrees, so input that fits it may still give no plan.
schema.config.checks.update(excluded_check_names=["positive_data_acceptance"])


@schema.parametrize()
@settings(max_examples=60, deadline=None)
def test_every_answer_is_as_described(case):
    case.call_and_validate()
