"""The panel of what fits in a real browser: opened, edited, applied, closed; how it looks; and the trace on demand."""

from __future__ import annotations

import json
import re

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import expect

from gradaccum.web.fit import fit_or_errors
from tests.web.conftest import WIDE

pytestmark = pytest.mark.slow

PHONE = {"width": 360, "height": 740}
STATES = {
    "fits": "model=gpt2&gpu=a100-sxm-80gb&target_batch=64",
    "marginal": "model=llama-3.2-1b&gpu=a100-sxm-80gb",
    "nothing": "model=llama-3.1-8b&gpu=t4&num_gpus=1",
    "wrong": "model=llama-9b&gpu=rtx-5&num_gpus=x",
    "large": "model=gpt2&gpu=t4&num_gpus=1" + "0" * 40 + "&sequence_length=1" + "0" * 40,
}


def number(page, label):
    return page.locator("#fit .figure", has_text=label).locator(".number")


def test_it_is_opened_edited_applied_and_closed(visit):
    page = visit()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_label("Target batch").fill("64")
    expect(page).to_have_url(re.compile(r"\?target_batch=64$"))
    assert not [each for each in asked if "fit" in each]  # nothing is asked for while it is closed
    page.get_by_role("link", name="What fits on my GPU?").click()
    expect(page.locator("#fit-heading")).to_be_focused()
    expect(page).to_have_url(re.compile(r"\?target_batch=64&model=llama-3.2-1b&gpu=a100-sxm-80gb$"))
    page.get_by_label("Model", exact=True).fill("gpt2")
    found = fit_or_errors("target_batch=64&model=gpt2&gpu=a100-sxm-80gb")[1]
    expect(number(page, "Largest micro-batch")).to_have_text(str(found["max_micro_batch"]))
    expect(page.get_by_label("Model", exact=True)).to_be_focused()
    page.get_by_label("Sequence length").fill("1024")  # the calculator's own inputs are the panel's, too
    found = fit_or_errors("target_batch=64&model=gpt2&gpu=a100-sxm-80gb&sequence_length=1024")[1]
    expect(number(page, "Largest micro-batch")).to_have_text(str(found["max_micro_batch"]))
    page.get_by_role("link", name="Use micro-batch").click()
    expect(page.get_by_label("Micro-batch", exact=True)).to_have_value(str(found["micro_batch"]))
    expect(page.locator("#fit-heading")).to_be_focused()
    page.get_by_role("link", name="full checkpointing").click()
    expect(page.get_by_label("Checkpointing")).to_have_value("full")
    page.get_by_label("GPU", exact=True).fill("rtx-5")
    expect(page.get_by_label("GPU", exact=True)).to_have_attribute("aria-invalid", "true")
    page.locator("#gpu-error").get_by_role("link", name="rtx-5090-32gb").click()
    expect(page.get_by_label("GPU", exact=True)).to_have_value("rtx-5090-32gb")
    expect(page.locator("#gpu-error")).to_be_empty()
    page.get_by_role("link", name="Close").click()
    expect(page.locator("#fit")).to_have_count(0)
    expect(page).to_have_url(re.compile(r"\?micro_batch=\d+&target_batch=64&sequence_length=1024$"))
    page.go_back()
    expect(page.get_by_label("GPU", exact=True)).to_have_value("rtx-5090-32gb")


def test_without_a_script_it_is_a_link_and_a_button(visit):
    page = visit(java_script_enabled=False)
    page.get_by_role("link", name="What fits on my GPU?").click()
    assert page.locator("#model").input_value() == "llama-3.2-1b"
    page.locator("#model").fill("gpt2")
    page.locator("#target_batch").fill("64")
    page.locator("#fit").get_by_role("button", name="Work it out").click()
    found = fit_or_errors("target_batch=64&model=gpt2&gpu=a100-sxm-80gb")[1]
    assert number(page, "Largest micro-batch").inner_text() == str(found["max_micro_batch"])
    expect(page.locator("#trace")).to_be_hidden()  # by the stylesheet, which may come after the page
    page.get_by_role("link", name="Close").click()
    assert page.locator("#fit").count() == 0
    assert page.locator("#target_batch").input_value() == "64"


@pytest.mark.parametrize(("viewport", "scheme"), [(WIDE, "light"), (PHONE, "dark")], ids=["wide", "phone"])
def test_it_reads_well_at_any_width_and_axe_finds_no_violation(visit, viewport, scheme):
    page = visit(viewport=viewport, color_scheme=scheme)
    for name, query in STATES.items():
        page.goto(page.url.partition("?")[0] + "?" + query)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= viewport["width"], name
        found = Axe().run(page, context="#fit", options={"resultTypes": ["violations"]}).response["violations"]
        assert not found, name + json.dumps([(each["id"], each["nodes"][0]["html"][:200]) for each in found])


def test_a_trace_shows_how_far_it_is_and_what_came_of_it(visit):
    page = visit(STATES["fits"])
    answer = '{"seconds": 0, "limit": 9}\n{"html": "<p id=done>traced</p>"}\n'
    page.route("**/trace", lambda route: route.fulfill(content_type="application/x-ndjson", body=answer))
    with page.expect_request("**/trace") as asked:
        page.get_by_role("button", name="Trace the real step").click()
    assert asked.value.method == "POST"
    assert "model=gpt2" in asked.value.post_data
    expect(page.locator("#done")).to_have_text("traced")
    page.unroute("**/trace")
    page.route("**/trace", lambda route: route.fulfill(status=200, body='{"error": "There is no <b>trace</b>"}\n'))
    page.get_by_role("button", name="Trace the real step").click()
    expect(page.locator("#traced")).to_have_text("There is no <b>trace</b>")
    page.get_by_label("Model", exact=True).fill("gpt2-xl")
    expect(page.locator("#traced")).to_be_empty()
