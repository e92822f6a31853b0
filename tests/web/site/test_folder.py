"""The built folder in a real browser: below a path of a plain server, from a file, offline, in a frame, and broken."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import expect

from gradaccum.web.page import answer, plan_or_errors
from tests.host import hosted
from tests.web.conftest import WIDE, visiting

pytestmark = pytest.mark.slow

PHONE = {"width": 360, "height": 740}
QUERIES = [
    "micro_batch=3&rounding=ceil",
    "preset=bloom-176b",
    "target_tokens=1M&sequence_length=4Ki&loop=fsdp2",
    "num_gpus=64&tensor_parallel=4&pipeline_parallel=8&dataset_size=1M&epochs=3&learning_rate=3e-4&base_batch=256",
    "micro_batch=0&num_gpus=x&foo=1&gradient_dtype=fp7",
    "micro_batch=%3Cscript%3Ealert(1)%3C/script%3E&target_batch=%ff&target_batch=2",
    "preset=bloom-17",
    "embed=1&target_batch=512",
    "micro_batch=" + "7" * 90 + "&target_batch=" + "9" * 100,
]


@pytest.fixture(scope="module")
def host(site):
    with hosted(site.parent.parent) as address:
        yield address


@pytest.fixture
def look(chromium, host):
    """look(query, **context): the static page below some/folder/."""
    with visiting(chromium, host + "some/folder/") as open_page:
        yield open_page


def figure(page, name):
    return page.locator(".figure", has_text=name).locator(".number")


@contextmanager
def held(look, file, query):
    """A visit for which one file does not come before the end."""
    requests = []

    def hold(page):
        page.route("**/" + file, lambda route: requests.append(route))

    page = look(query, before=hold, until="commit", service_workers="block")
    yield page
    for _ in range(100):
        if requests:
            break
        page.wait_for_timeout(50)
    requests[0].continue_()


def edited(page, target="640"):
    """Once this is there the engine runs."""
    page.get_by_label("Target batch").fill(target)
    expect(figure(page, "Effective batch")).to_have_text(target)


# As a served page


def test_an_edit_shows_at_once_and_the_address_follows(look):
    page = look()
    expect(figure(page, "Accumulation steps")).to_have_text("16")
    edited(page)
    expect(page).to_have_url(re.compile(r"/some/folder/\?target_batch=640$"))
    expect(page.locator(".nearby tbody tr").first).to_contain_text("640")
    page.get_by_label("Micro-batch", exact=True).fill("x")
    expect(page.locator("#micro_batch-error")).to_contain_text("is not a number: 'x'")
    expect(page.locator("#results")).to_have_class("results stale")
    page.get_by_label("Micro-batch", exact=True).fill("3")
    expect(figure(page, "Drift")).to_have_text("+8")
    page.get_by_role("link", name="4 \u00d7 8 \u00d7 20").or_(page.locator(".nearby a").first).first.click()
    expect(page.locator("#the-plan")).to_be_focused()
    page.go_back()
    expect(page.get_by_label("Micro-batch", exact=True)).to_have_value("3")
    assert page.context.cookies() == []
    assert page.evaluate("() => localStorage.length + sessionStorage.length") == 0


def body(page):
    """What the page shows, as it stands in the document."""
    read = "(ids) => ids.map((id) => document.getElementById(id)?.innerHTML)"
    parts = page.evaluate(read, ["part-origin", "inputs", "results", "part-pinned"])
    values = page.evaluate("() => [...document.querySelectorAll('[name]')].map((each) => [each.name, each.value])")
    return (
        parts,
        values,
        page.title(),
        sorted(page.locator("html").get_attribute("class").split()),
        page.locator("header").get_attribute("class"),
    )


@pytest.mark.parametrize("query", QUERIES)
def test_a_permalink_shows_what_the_server_shows(visit, look, query):
    page, served = look(query), visit(query)
    expect(page.locator(".waiting")).to_have_count(0)
    assert body(page) == body(served)


def test_links_lead_from_one_to_the_other_and_back(visit, look):
    page = look()
    edited(page)
    page.get_by_label("GPUs").fill("24")
    expect(page).to_have_url(re.compile("num_gpus=24"))
    query = page.url.partition("?")[2]
    served = visit(query)
    assert figure(served, "Effective batch").inner_text() == figure(page, "Effective batch").inner_text()
    served.locator("label[for='rounding=ceil']").click()
    expect(served).to_have_url(re.compile("rounding=ceil"))
    query = served.url.partition("?")[2]
    again = look(query)
    expect(again.locator(".waiting")).to_have_count(0)
    assert again.locator("#results").text_content() == served.locator("#results").text_content()


@pytest.mark.parametrize(
    "query", ["target_batch=512&learning_rate=66.54&base_batch=64&epochs=1.5&dataset_size=10k", "micro_batch=0"]
)
def test_the_plan_as_json_is_what_the_api_answers(visit, look, address, query):
    page = look(query)
    expect(page.locator(".waiting")).to_have_count(0)
    with page.expect_popup() as popup:
        page.locator("#json").click()
    shown = popup.value.evaluate("() => document.body.innerText")
    assert shown == visit().request.get(f"{address}api/plan?{page.url.partition('?')[2]}").text()
    assert json.loads(shown) == plan_or_errors(query)[1]


# Anywhere


def test_it_works_offline_after_the_first_visit(look, host):
    page = look()
    page.evaluate("() => navigator.serviceWorker.ready")
    page.wait_for_function("() => navigator.serviceWorker.controller")
    page.context.set_offline(True)
    page.reload()
    edited(page)
    page.goto(host + "some/folder/?preset=bloom-176b")
    expect(figure(page, "Accumulation steps")).to_have_text("128")
    page.goto(host + "some/folder/index.html?target_batch=512#results")
    expect(figure(page, "Effective batch")).to_have_text("512")


def test_it_works_from_a_file(chromium, site):
    with visiting(chromium, (site / "index.html").as_uri()) as open_file:
        page = open_file()
        edited(page)
        expect(page).to_have_url(re.compile(r"index\.html\?target_batch=640$"))
        expect(figure(open_file("preset=bloom-176b"), "Accumulation steps")).to_have_text("128")


FRAME = """<!DOCTYPE html><title>host</title><iframe src="{src}" width="900" height="600"></iframe><script>
const heard = []; addEventListener("message", (event) => heard.push(event.data));</script>"""


def test_in_a_frame_it_tells_its_query_and_its_height(look, host, tmp_path):
    (tmp_path / "index.html").write_text(FRAME.format(src=host + "some/folder/?embed=1&amp;target_batch=512"))
    with hosted(tmp_path) as elsewhere:
        page = look()
        page.goto(elsewhere)
        frame = page.frame_locator("iframe")
        expect(frame.locator(".figure", has_text="Effective batch").locator(".number")).to_have_text("512")
        assert frame.locator("header").bounding_box()["height"] <= 1
        frame.get_by_label("Target batch").fill("640")
        page.wait_for_function("() => heard.some((each) => each.queryString === 'target_batch=640&embed=1')")
        heard = page.evaluate("() => heard")
        assert all(set(each) == {"queryString", "height"} for each in heard)
        assert heard[-1]["height"] > 1000
        with_run = "&dataset_size=1M&epochs=2&learning_rate=3e-4&base_batch=64"
        before = heard[-1]["height"]
        for query, wanted, grows in (("target_batch=640" + with_run, "20", True), ("target_batch=512", "16", False)):
            page.frames[1].evaluate("(query) => (location.search = query)", query + "&embed=1")
            expect(frame.locator(".figure", has_text="Accumulation steps").locator(".number")).to_have_text(wanted)
            # A frame that follows shrinks as well.
            sign = ">" if grows else "<"
            page.wait_for_function(f"(before) => heard.at(-1).height {sign} before", arg=before)
            before = page.evaluate("() => heard.at(-1).height")


def test_without_a_script_it_reads_well(look):
    page = look(java_script_enabled=False)
    assert figure(page, "Effective batch").inner_text() == "512"
    said = page.locator("noscript .remark")
    expect(said).to_be_visible()
    assert said.inner_text() == "This page calculates with JavaScript. Without it, it shows this one plan."
    expect(page.locator("#json")).to_be_hidden()
    assert page.get_by_role("button").count() == 0


def test_the_engine_comes_after_the_first_paint(look):
    page = look()
    edited(page)
    started = page.evaluate(
        "() => performance.getEntriesByName(new URL('engine/micropython.wasm', location.href).href)[0].startTime"
    )
    assert page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime") < started


# Broken


SAID = "The calculator did not start: "
BLOCKED = "this browser, or a rule of this site, blocks WebAssembly"
ABSENT = "a file of the page did not load ("


def refuse(path):
    return lambda page: page.route(path, lambda route: route.abort())


def answered(path, **answer):
    return lambda page: page.route(path, lambda route: route.fulfill(**answer))


def no_rule_for_webassembly(page):
    page.route(
        "**/some/folder/",
        lambda route: route.fulfill(
            response=route.fetch(),
            headers={"Content-Security-Policy": "script-src 'self'", "Content-Type": "text/html"},
        ),
    )


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (lambda page: page.add_init_script("delete window.WebAssembly"), BLOCKED),
        (no_rule_for_webassembly, BLOCKED),
        (refuse("**/micropython.wasm"), ABSENT),
        (refuse("**/app.js"), ABSENT + "app.js"),
        (answered("**/micropython.wasm", status=404), ABSENT + "micropython.wasm: status 404)"),
        (answered("**/micropython.wasm", body="no engine"), BLOCKED),
        (
            answered("**/app.js", body="globalThis.gradaccum = {app: {sources: {'gradaccum/__init__.py': ''}}}"),
            "this build of the page is broken (ImportError: no module named 'gradaccum.web')",
        ),
    ],
    ids=["no WebAssembly", "its rule missing", "engine blocked", "sources blocked", "engine missing", "engine broken",
         "Python broken"],
)  # fmt: skip
def test_an_engine_that_does_not_start_leaves_the_default_page_and_says_so(look, before, why):
    page = look(before=before, service_workers="block")
    expect(page.locator(".remark")).to_contain_text(SAID + why)
    expect(page.locator(".remark")).to_contain_text(". Below is the default plan.")
    expect(figure(page, "Effective batch")).to_have_text("512")
    expect(page.locator("#results")).to_have_class("results")
    assert page.locator("#inputs").evaluate("(form) => form.inert")
    assert not Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    known = ("ERR_FAILED", "404", "Content Security Policy", "did not start")
    assert all(any(words in each for words in known) for each in look.complaints)
    look.complaints.clear()


def test_a_permalink_without_an_engine_is_said_to_be_the_default_plan(look):
    page = look("target_batch=640", before=refuse("**/micropython.wasm"), service_workers="block")
    page.wait_for_timeout(2000)  # by then it would say that it is starting
    expect(page.locator(".remark")).to_contain_text(". Below is the default plan, not the one that this link asks for.")
    expect(page.locator("#json")).to_have_count(0)
    expect(page.locator("#results")).to_have_class("results")
    look.complaints.clear()


def test_where_a_file_may_load_nothing_it_says_what_to_do(chromium, site):
    with visiting(chromium, (site / "index.html").as_uri()) as open_file:
        page = open_file(before=refuse("**/wasm.js"))
        expect(page.locator(".remark")).to_contain_text("python3 -m http.server")
        open_file.complaints.clear()


def test_an_engine_that_is_slow_is_waited_for_aloud(look):
    def slowly(page):
        page.route("**/micropython.wasm", lambda route: (page.wait_for_timeout(2500), route.continue_()))

    page = look("target_batch=640", before=slowly, service_workers="block")
    expect(page.locator(".remark")).to_have_text("Starting the calculator\u2026")
    expect(page.locator("#results")).to_have_class("results waiting")
    expect(figure(page, "Effective batch")).to_have_text("640")
    expect(page.locator(".remark")).to_have_count(0)


@pytest.mark.parametrize("late", ["page.js", "micropython.wasm"])
def test_what_is_typed_before_the_engine_runs_is_kept_on_top_of_the_permalink(look, late):
    with held(look, late, "micro_batch=3&rounding=ceil") as page:
        page.get_by_label("Target batch").fill("640")
    expect(figure(page, "Effective batch")).to_have_text("648")
    expect(page.get_by_label("Target batch")).to_have_value("640")
    expect(page.get_by_label("Target batch")).to_be_focused()
    expect(page.get_by_label("Micro-batch", exact=True)).to_have_value("3")
    expect(page).to_have_url(re.compile(r"micro_batch=3&target_batch=640&rounding=ceil$"))


# Looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_no_violation(look, viewport, scheme):
    page = look(viewport=viewport, color_scheme=scheme)
    found = {"default": Axe().run(page, options={"resultTypes": ["violations"]})}
    edited(page)
    found["edited"] = Axe().run(page, options={"resultTypes": ["violations"]})
    for query in ("micro_batch=0&num_gpus=x&foo=1", "embed=1&preset=bloom-176b"):
        page.goto(page.url.partition("?")[0] + "?" + query)
        expect(page.locator(".waiting")).to_have_count(0)
        found[query] = Axe().run(page, options={"resultTypes": ["violations"]})
    for name, result in found.items():
        assert not result.response["violations"], (name, json.dumps(result.response["violations"], indent=1)[:2000])


def test_every_query_above_is_what_it_is_meant_to_be():
    assert [answer(query).plan is not None for query in QUERIES] == [
        True,
        True,
        True,
        True,
        False,
        False,
        False,
        True,
        True,
    ]


# What fits

FIT = "model=gpt2&gpu=a100-sxm-80gb&target_batch=64"


def fits(page):
    return page.locator("#fit .figure", has_text="Largest micro-batch").locator(".number")


def test_what_fits_comes_when_it_is_asked_for_and_is_kept_then(look, visit, host):
    page = look()
    edited(page, "64")
    page.evaluate("() => navigator.serviceWorker.ready")
    page.wait_for_function("() => navigator.serviceWorker.controller")
    loaded = "() => performance.getEntriesByType('resource').some((each) => each.name.endsWith('/fit.js'))"
    assert not page.evaluate(loaded)
    page.get_by_role("link", name="What fits on my GPU?").click()
    expect(page.locator("#fit-heading")).to_be_focused()
    assert page.evaluate(loaded)
    page.get_by_label("Model", exact=True).fill("gpt2")
    expect(page).to_have_url(re.compile("model=gpt2&"))
    served = visit(FIT)
    expect(fits(page)).to_have_text(fits(served).inner_text())
    page.locator(".served-only").first.wait_for(state="hidden")
    page.context.set_offline(True)
    page.goto(host + "some/folder/?" + FIT)
    expect(fits(page)).to_have_text(fits(served).inner_text())
    page.get_by_role("link", name="Close").click()
    expect(page.locator("#fit")).to_have_count(0)


@pytest.mark.parametrize("query", [FIT, "model=llama-9b&gpu=t4"])
def test_a_permalink_to_what_fits_shows_what_the_server_shows(look, visit, query):
    page, served = look(query), visit(query)
    expect(page.locator(".waiting")).to_have_count(0)
    expect(page.locator("#fit")).to_have_count(1)
    assert body(page) == body(served)


def test_the_answer_of_a_permalink_does_not_wait_for_what_fits(look, visit):
    query = "micro_batch=3&" + FIT
    with held(look, "fit.js", query) as page:
        expect(figure(page, "Effective batch")).to_have_text("72")
        expect(page.locator("#results")).to_have_class("results waiting")
        seen = "() => [...document.querySelectorAll('#results > *')].map((each) => getComputedStyle(each).opacity)"
        assert page.evaluate(seen)[:2] == ["1", "0.45"]
        assert page.get_by_label("Target batch").input_value() == "64"
    expect(page.locator(".waiting")).to_have_count(0)
    assert body(page) == body(visit(query))


def test_what_is_typed_before_what_fits_has_come_is_kept_on_top_of_the_permalink(look):
    with held(look, "fit.js", "micro_batch=3&" + FIT) as page:
        expect(figure(page, "Effective batch")).to_have_text("72")
        page.get_by_label("Target batch").fill("640")
        expect(figure(page, "Effective batch")).to_have_text("648")
    expect(page.locator(".waiting")).to_have_count(0)
    expect(figure(page, "Effective batch")).to_have_text("648")
    expect(page.get_by_label("Target batch")).to_have_value("640")
    expect(page.locator("#fit")).to_have_count(1)


def test_what_fits_works_from_a_file(chromium, site):
    with visiting(chromium, (site / "index.html").as_uri()) as open_file:
        expect(fits(open_file(FIT))).not_to_be_empty()


@pytest.mark.parametrize(
    "before",
    [refuse("**/fit.js"), answered("**/fit.js", body="globalThis.gradaccum.fit = {version: 'other', sources: {}}")],
    ids=["blocked", "of another version"],
)
def test_without_its_files_the_panel_says_so_and_the_rest_works(look, before):
    page = look(before=before, service_workers="block")
    edited(page)
    page.get_by_role("link", name="What fits on my GPU?").click()
    expect(page.locator("#part-fit")).to_contain_text("What fits did not load")
    page.goto(page.url.partition("?")[0] + "?" + FIT)
    expect(page.locator("#part-fit")).to_contain_text("What fits did not load")
    expect(figure(page, "Effective batch")).to_have_text("64")
    assert look.complaints
    look.complaints.clear()
