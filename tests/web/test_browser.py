"""The page in a real browser. One server and one browser serve all cases; each case has a context of its own."""

from __future__ import annotations

import json
import re
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import expect

from gradaccum.show.loop import training_loop
from gradaccum.web.page import answer
from tests.web.conftest import WIDE

pytestmark = pytest.mark.slow

PHONE = {"width": 360, "height": 740}
DEFAULT_AXE = {"resultTypes": ["violations"]}


@contextmanager
def one_answer(page):
    """Waits until the edit inside has been answered and shown."""
    with page.expect_response(lambda response: "/live?" in response.url):
        yield
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")


def figure(page, name):
    return page.locator(".figure", has_text=name).locator(".number")


def query_of(page):
    page.wait_for_timeout(350)  # the address follows a moment after the last edit
    return urlsplit(page.url).query


def expect_query(page, query):
    """The address follows a moment after the last edit."""
    expect(page).to_have_url(re.compile(re.escape("?" + query) + "$"))


# Editing


def test_typing_updates_the_results_and_the_address(visit):
    page = visit()
    expect(figure(page, "Accumulation steps")).to_have_text("16")
    page.get_by_label("Target batch").fill("4M tokens")
    expect(figure(page, "Drift")).to_have_text("\u22122,304")  # 1,953 x 2,048 would be nearer; 32 sequences at a time
    expect(figure(page, "Accumulation steps")).to_have_text("61")
    expect(page.locator("#target_batch-echo")).to_have_text("= 4,000,000 tokens")
    expect_query(page, "target_tokens=4M")
    assert page.title().startswith("61 steps, batch 1,952")
    expect(page.locator("#json")).to_have_attribute("href", "api/plan?target_tokens=4M")


def test_each_key_is_answered_and_the_latest_wins(visit):
    page = visit()
    page.get_by_label("Micro-batch", exact=True).fill("")
    page.get_by_label("Micro-batch", exact=True).press_sequentially("123456")
    expect(page.locator(".equation .factor").first).to_have_text("123,456")
    expect_query(page, "micro_batch=123456")


def test_an_old_answer_never_replaces_a_newer_one(visit):
    page = visit()
    held = []
    page.context.route("**/live?*target_batch=7&*", lambda route: held.append(route))
    page.get_by_label("Target batch").fill("7")
    page.wait_for_timeout(50)
    with one_answer(page):
        page.get_by_label("Target batch").fill("640")
    assert len(held) == 1
    expect(figure(page, "Effective batch")).to_have_text("640")
    held[0].abort()
    page.wait_for_timeout(100)
    expect(figure(page, "Effective batch")).to_have_text("640")


def test_huge_numbers_pass_through_to_the_last_digit(visit):
    page = visit()
    micro, target = 10**50 + 9, 10**98 + 3
    steps = (2 * target + 8 * micro) // (16 * micro)
    page.get_by_label("Micro-batch", exact=True).fill(str(micro))
    page.get_by_label("Target batch").fill(str(target))
    expect(figure(page, "Effective batch")).to_have_text(f"{micro * 8 * steps:,}")
    expect(figure(page, "Drift")).to_have_text(f"{micro * 8 * steps - target:+,}".replace("-", "\u2212"))


def test_a_wrong_field_keeps_the_last_plan_dimmed_and_says_what_to_do(visit):
    page = visit()
    field = page.get_by_label("Micro-batch", exact=True)
    field.fill("0")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_accessible_description(
        "sequences that one data-parallel rank puts through one forward and backward "
        "Micro-batch must be at least 1, not 0. Nearest: 1"
    )
    expect(page.locator("#results")).to_have_class("results stale")
    expect(figure(page, "Accumulation steps")).to_have_text("16")
    assert query_of(page) == ""
    page.locator("#micro_batch-error a").click()
    expect(field).to_have_value("1")
    expect(figure(page, "Accumulation steps")).to_have_text("63")
    expect(page.locator("#results")).to_have_class("results")
    assert field.get_attribute("aria-invalid") is None


def test_a_wrong_field_of_a_folded_group_unfolds_it(visit):
    page = visit()
    page.evaluate(
        "() => { tensor_parallel.value = '3'; tensor_parallel.dispatchEvent(new Event('input', {bubbles: true})) }"
    )
    expect(page.locator("#num_gpus-error")).to_contain_text("8 is no multiple")
    page.evaluate(
        "() => { tensor_parallel.value = 'x'; tensor_parallel.dispatchEvent(new Event('input', {bubbles: true})) }"
    )
    expect(page.locator("#group-parallel")).to_have_attribute("open", "")
    expect(page.locator("#tensor_parallel-error")).to_be_visible()


def test_inputs_that_contradict_each_other_say_so_above_the_form(visit):
    page = visit()
    page.locator("#group-solve summary").click()
    page.get_by_label("Accumulation steps").fill("3")
    expect(page.locator("#form-error")).to_contain_text("4 x 8 x 3 = 96, not the target_batch 500")
    page.get_by_label("Target batch").fill("")
    expect(page.locator("#target_batch-echo")).to_have_text("found: 96")
    expect(page.locator("#form-error")).to_be_empty()


WHEN_SAID = """() => {
  window.times = {};
  document.addEventListener("input", () => { times.input = performance.now(); }, true);
  new MutationObserver(() => { times.said ??= performance.now(); })
    .observe(document.querySelector("[role=status]"), { childList: true, characterData: true, subtree: true });
}"""


def test_a_screen_reader_hears_the_answer_once_typing_pauses(visit):
    page = visit()
    status = page.get_by_role("status")
    page.evaluate(WHEN_SAID)
    with one_answer(page):
        page.get_by_label("Target batch").fill("256")
    expect(status).to_have_text(
        "8 accumulation steps, effective batch 256, exactly the target of 256, 524,288 tokens per update"
    )
    assert page.evaluate("() => times.said - times.input") > 500
    with one_answer(page):
        page.get_by_label("Target batch").fill("x")
    expect(status).to_contain_text("is not a number: 'x'")


def test_a_server_that_is_gone_is_said(visit):
    page = visit()
    page.context.route("**/live?*", lambda route: route.fulfill(status=500, body="no"))
    page.get_by_label("Target batch").fill("256")
    expect(page.get_by_role("status")).to_have_text("No answer: is the server still running?")
    expect(page.locator("#results")).to_have_class("results stale")
    assert ["500" in each for each in visit.complaints] == [True]
    visit.complaints.clear()


# Links


def test_a_better_choice_applies_without_a_reload_and_back_undoes_it(visit):
    page = visit()
    page.evaluate("() => { window.here = true }")
    page.get_by_role("link", name="3 \u00d7 8 \u00d7 21").click()
    expect(page.get_by_label("Micro-batch", exact=True)).to_have_value("3")
    expect(figure(page, "Effective batch")).to_have_text("504")
    expect_query(page, "micro_batch=3")
    page.go_back()
    expect(page.get_by_label("Micro-batch", exact=True)).to_have_value("4")
    expect(figure(page, "Effective batch")).to_have_text("512")
    page.go_forward()
    expect(figure(page, "Effective batch")).to_have_text("504")
    assert page.evaluate("() => window.here")


def test_back_and_forward_faster_than_the_answers_end_where_the_address_says(visit):
    page = visit()
    page.get_by_role("link", name="3 \u00d7 8 \u00d7 21").click()
    expect_query(page, "micro_batch=3")
    page.context.route("**/live/rest?*", lambda route: (time.sleep(0.3), route.continue_()))
    page.go_back()
    page.go_forward()
    expect(figure(page, "Effective batch")).to_have_text("504")
    expect_query(page, "micro_batch=3")
    page.wait_for_timeout(500)
    expect(figure(page, "Effective batch")).to_have_text("504")


def test_an_edit_that_is_left_at_once_is_not_written_over_the_entry_before(visit):
    page = visit()
    page.get_by_role("link", name="3 \u00d7 8 \u00d7 21").click()
    expect_query(page, "micro_batch=3")
    with page.expect_response("**/live/rest?*"):
        page.get_by_label("Target batch").fill("640")
    page.go_back()
    expect(figure(page, "Effective batch")).to_have_text("512")
    assert query_of(page) == ""


def test_a_neighbour_applies_its_rounding(visit):
    page = visit()
    page.get_by_role("link", name="4 \u00d7 8 \u00d7 15").click()
    expect(page.get_by_label("floor")).to_be_checked()
    expect(figure(page, "Drift")).to_have_text("\u221220")


def test_a_published_run_applies_and_its_groups_unfold(visit):
    page = visit()
    page.locator("#presets summary").click()
    page.get_by_role("link", name="BLOOM-176B (final plan)").click()
    expect(figure(page, "Accumulation steps")).to_have_text("128")
    expect(page.get_by_label("Pipeline parallel")).to_have_value("12")
    expect(page.get_by_label("Pipeline parallel")).to_be_visible()
    expect(page.locator(".origin")).to_contain_text("BLOOM-176B")
    expect_query(page, "preset=bloom-176b")
    page.get_by_label("GPUs").fill("768")
    expect(page.locator(".origin")).to_have_count(0)
    expect(page).to_have_url(re.compile("num_gpus=768"))
    assert "preset" not in query_of(page)


def test_the_loop_takes_the_form_that_was_chosen_and_keeps_it(visit):
    page = visit()
    page.get_by_role("link", name="FSDP2", exact=True).click()
    expect(page.locator(".loop pre")).to_contain_text("fully_shard")
    with one_answer(page):
        page.get_by_role("link", name="Loss by samples").click()
    with one_answer(page):
        page.get_by_label("Target batch").fill("640")
    expect(figure(page, "Accumulation steps")).to_have_text("20")
    expect_query(page, "target_batch=640&loop=fsdp2&weighting=mean")
    shown = page.locator(".loop pre code").text_content()
    assert shown == training_loop(answer("target_batch=640").plan, "fsdp2", "mean")


@pytest.mark.parametrize(
    "query", ["micro_batch=3&rounding=ceil", "preset=bloom-176b", "target_tokens=1M&sequence_length=4Ki&loop=fsdp2"]
)
def test_a_permalink_shows_what_it_was_copied_from(visit, query):
    page = visit(query)
    with one_answer(page):
        page.get_by_label("Target batch").dispatch_event("input")
    page.wait_for_timeout(300)
    again = visit(query_of(page))
    assert again.locator("#results").inner_text() == page.locator("#results").inner_text()
    assert answer(query_of(page)).plan.to_dict() == answer(query).plan.to_dict()


def test_what_is_unfolded_stays_so_through_an_edit(visit):
    page = visit()
    page.locator("#GA005 summary").click()
    page.locator("#trainer-3 summary").click()
    with one_answer(page):
        page.get_by_label("Target batch").fill("640")
    expect(page.locator(".trainer[open] summary")).to_have_text("DeepSpeed")
    assert page.locator("#GA005").get_attribute("open") is not None
    assert page.locator(".finding[open]").count() == 1
    page.locator("#GA005 summary").click()
    with one_answer(page):
        page.get_by_label("Target batch").fill("650")
    assert page.locator(".finding[open]").count() == 0


# Copying


def test_copy_buttons_copy_to_the_letter(visit):
    page = visit("sequence_length=2048", permissions=["clipboard-read", "clipboard-write"])
    for name, text in [
        ("Copy the training loop", training_loop(answer("").plan)),
        ("Copy the command", "gradaccum plan -m 4 -g 8 -t 500 -s 2048"),
        ("Copy the setting for Hugging Face Trainer", None),
    ]:
        button = page.get_by_role("button", name=name)
        button.click()
        expect(button).to_have_text("Copied")
        copied = page.evaluate("() => navigator.clipboard.readText()")
        assert text is None or copied == text
    assert copied.startswith("TrainingArguments(per_device_train_batch_size=4")


def test_where_copying_is_forbidden_the_text_is_selected(visit):
    page = visit()
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')) }")
    page.get_by_role("button", name="Copy the command").click()
    expect(page.get_by_role("button", name="Copy the command")).to_contain_text("Selected")
    assert page.evaluate("() => String(getSelection())") == "gradaccum plan -m 4 -g 8 -t 500 -s 2048"


# Without a script, without a mouse


def test_without_a_script_a_submit_gives_the_same_page(visit):
    page = visit(java_script_enabled=False)
    assert page.get_by_role("button", name="Copy the command").count() == 0
    page.locator("#target_batch").fill("640")
    page.locator("label[for='rounding=ceil']").click()
    page.get_by_role("button", name="Work it out").click()
    assert figure(page, "Effective batch").inner_text() == "640"
    assert page.locator("#target_batch").input_value() == "640"
    with_script = visit("target_batch=640&rounding=ceil")
    assert page.locator("#results").inner_text().replace("Copy\n", "") == with_script.locator(
        "#results"
    ).inner_text().replace("Copy\n", "")
    page.locator("#micro_batch").fill("0")
    page.get_by_role("button", name="Work it out").click()
    assert "must be at least 1, not 0" in page.locator("#micro_batch-error").inner_text()
    page.locator("#micro_batch-error a").click()
    assert page.locator("#micro_batch").input_value() == "1"


def test_the_keyboard_alone_is_enough(visit):
    page = visit()
    focused = "() => document.activeElement.id || document.activeElement.textContent"
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(focused))
    assert seen == [
        "gradaccum",
        "json",
        "API",
        "micro_batch",
        "num_gpus",
        "target_batch",
        "sequence_length",
        "rounding=round",
    ]
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("ceil")).to_be_checked()
    expect_query(page, "rounding=ceil")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "What fits on my GPU?"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#presets")).to_have_attribute("open", "")
    page.keyboard.press("Enter")
    for _ in range(5):
        page.keyboard.press("Tab")
    assert "\u00d7 8 \u00d7" in page.evaluate(focused)
    page.keyboard.press("Enter")
    expect(page.locator("#the-plan")).to_be_focused()
    outline = page.evaluate("() => { micro_batch.focus(); return getComputedStyle(micro_batch).outlineStyle }")
    assert outline == "solid"


def test_reduced_motion_is_respected(visit):
    def moves(page):
        return page.evaluate("() => getComputedStyle(document.querySelector('.segments label')).transitionDuration")

    assert moves(visit(reduced_motion="reduce")) == "0s"
    assert moves(visit(reduced_motion="no-preference")) != "0s"


# Looks

BIG = "micro_batch=" + "7" * 90 + "&num_gpus=" + "3" * 90 + "&target_batch=" + "9" * 100 + "&sequence_length=4k"
QUERIES = {
    "default": "",
    "exact": "rounding=exact&target_batch=70&num_gpus=16",
    "pipeline": "num_gpus=64&tensor_parallel=4&pipeline_parallel=8&virtual_pipeline=2&dataset_size=1M&epochs=3"
    "&params=7B&learning_rate=3e-4&base_batch=256&gradient_dtype=bf16&warmup_fraction=1%25&supervised_fraction=0.3",
    "big": BIG,
    "long": "micro_batch=123456&num_gpus=1234567&target_batch=987654321987654",
    "below": "target_batch=16",
    "wrong": "micro_batch=0&num_gpus=x&foo=1",
    "preset": "preset=bloom-176b",
    "solved": "num_gpus=&accum_steps=4&target_batch=4M tokens",
    "embedded": "embed=1",
}


@pytest.mark.parametrize("viewport", [PHONE, {"width": 768, "height": 900}, {"width": 1100, "height": 800}, WIDE])
def test_nothing_has_to_be_scrolled_sideways(visit, viewport):
    page = visit(viewport=viewport)
    for name, query in QUERIES.items():
        page.goto(page.url.partition("?")[0] + "?" + query)
        page.evaluate("() => document.querySelectorAll('details.group').forEach(each => each.open = true)")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= viewport["width"], name


def test_inputs_answer_and_picture_fit_one_screen(visit):
    page = visit()
    for selector in ("#rounding", ".answer", ".update figure"):
        box = page.locator(selector).bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 900, selector


def test_on_a_phone_the_answer_is_pinned_to_the_foot(visit):
    page = visit(viewport=PHONE)
    pinned = page.locator("#part-pinned")
    expect(pinned).to_have_text("16 steps batch 512 +12 (+2.40%)")
    box = pinned.bounding_box()
    assert box["y"] + box["height"] == 740
    assert box["height"] < 60
    with one_answer(page):
        page.get_by_label("GPUs").fill("16")
    expect(pinned).to_contain_text("8 steps")
    assert pinned.bounding_box()["y"] == box["y"]
    assert visit().locator("#part-pinned").is_hidden()


def test_the_pinned_answer_leads_to_the_results_and_touches_no_field(visit):
    page = visit(viewport=PHONE)
    page.get_by_label("Micro-batch", exact=True).fill("x")
    page.locator(".pinned.stale").wait_for()
    page.locator("#part-pinned a").click()
    page.wait_for_timeout(200)
    expect(page.get_by_label("Micro-batch", exact=True)).to_have_value("x")
    assert page.locator("#results").bounding_box()["y"] < 50


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_one_of_the_two_pictures_is_shown(visit, viewport):
    page = visit(viewport=viewport)
    assert page.locator(".update .wide").is_visible() == (viewport == WIDE)
    assert page.locator(".update .narrow").is_visible() == (viewport == PHONE)


def test_light_and_dark_follow_the_system_and_print_is_light(visit):
    def colours(page):
        return page.evaluate(
            "() => { const s = getComputedStyle(document.documentElement); return [s.backgroundColor, s.color] }"
        )

    (light_back, light_ink), (dark_back, dark_ink) = (colours(visit(color_scheme=each)) for each in ("light", "dark"))
    assert sum(map(int, light_back[4:-1].split(", "))) > 600 > 200 > sum(map(int, light_ink[4:-1].split(", ")))
    assert sum(map(int, dark_back[4:-1].split(", "))) < 200 < 600 < sum(map(int, dark_ink[4:-1].split(", ")))
    page = visit()
    page.emulate_media(media="print")
    assert page.locator("#inputs").is_hidden()
    assert page.locator(".answer").is_visible()


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(visit, viewport, scheme):
    page = visit(viewport=viewport, color_scheme=scheme)
    states = {
        "default": lambda: None,
        "unfolded": lambda: page.evaluate(
            "() => document.querySelectorAll('details').forEach(each => each.open = true)"
        ),
        "stale": lambda: (page.get_by_label("Micro-batch", exact=True).fill("0"), page.wait_for_selector(".stale")),
        "wrong from the start": lambda: page.goto(page.url.partition("?")[0] + "?" + QUERIES["wrong"]),
        "everything": lambda: page.goto(page.url.partition("?")[0] + "?" + QUERIES["pipeline"]),
        "embedded": lambda: page.goto(page.url.partition("?")[0] + "?embed=1"),
    }
    for name, reach in states.items():
        reach()
        found = Axe().run(page, options=DEFAULT_AXE).response["violations"]
        assert not found, (
            name
            + "\n"
            + json.dumps(
                [
                    (each["id"], [node["html"][:200] + node["failureSummary"] for node in each["nodes"]])
                    for each in found
                ],
                indent=1,
            )
        )


# Frames


def answer_with(body):
    return lambda route: route.fulfill(content_type="text/html", body=body)


def test_a_frame_shows_the_page_with_embed_alone(visit, address):
    host = visit().context.new_page()
    for query, allowed in (("?embed=1", True), ("", False), ("?micro_batch=3&embed=1", True)):
        body = f"<iframe src='{address}{query}' width=1000 height=700></iframe>"
        host.route("**/host", answer_with(body))
        host.goto(address + "host")
        frame = host.frame_locator("iframe")
        if allowed:
            expect(frame.locator(".figure").first).to_be_visible()
            assert frame.locator("header").bounding_box()["height"] <= 1
        else:
            host.wait_for_timeout(300)
            assert frame.locator(".figure").count() == 0
        host.unroute("**/host")


def test_embedded_links_stay_embedded(visit):
    page = visit("embed=1")
    page.get_by_role("link", name="3 \u00d7 8 \u00d7 21").click()
    expect(figure(page, "Effective batch")).to_have_text("504")
    expect_query(page, "micro_batch=3&embed=1")
