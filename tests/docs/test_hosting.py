"""docs/hosting.md and the workflow for GitHub Pages say what works: their code is taken from their text and run."""

from __future__ import annotations

import gzip
import re
import shutil
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect
from ruamel.yaml import YAML

from gradaccum.cli import site as site_command
from gradaccum.cli.options import parse
from gradaccum.web.site.build import build
from gradaccum.web.site.engine import PACKAGE, VERSION
from tests import engine
from tests.host import hosted
from tests.structure import markdown
from tests.structure.source import ROOT

GUIDE = (ROOT / "docs" / "hosting.md").read_text(encoding="utf-8")
WORKFLOW = ROOT / ".github" / "workflows" / "pages.yml"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built folder, below another: .../batch."""
    package = engine.find()
    if package is None:
        pytest.skip(engine.MISSING)
    folder = tmp_path_factory.mktemp("host") / "batch"
    build(str(folder), package)
    return folder


def block(language, words):
    """The one block of the guide in this language that holds these words."""
    (found,) = [each for each in markdown.blocks(GUIDE, language) if words in each]
    return found


# Commands


def built_into(line):
    """The folder of a line `gradaccum site build ...`, as the command itself reads it."""
    words = line.split()
    assert words[:2] == ["gradaccum", "site"]
    options = parse(site_command.parser(), words[2:])
    assert options.what == "build"
    return options.folder


def test_the_commands_of_the_guide_are_taken_and_build_what_is_served_and_pushed():
    lines = [line for text in markdown.blocks(GUIDE, "") for line in text.splitlines()]
    builds = [line for line in lines if line.startswith("gradaccum ")]
    assert [built_into(line) for line in builds] == ["public", "public"]
    assert "python3 -m http.server --directory public" in lines
    assert "hf upload USER/gradaccum public . --repo-type space" in lines
    assert f"npm pack {PACKAGE}@{VERSION}" in lines
    package = PACKAGE.removeprefix("@").replace("/", "-") + f"-{VERSION}.tgz"  # the name that npm gives it
    assert [line.partition(" --engine ")[2] for line in builds] == ["", package]


# The workflow


@pytest.fixture
def workflow():
    return YAML(typ="safe").load(WORKFLOW)


def test_the_workflow_builds_with_commands_that_exist_and_publishes_what_it_built(workflow):
    build_steps, deploy_steps = (workflow["jobs"][name]["steps"] for name in ("build", "deploy"))
    install, make = [step["run"] for step in build_steps if "run" in step]
    assert install == "pip install ."
    (upload,) = [step for step in build_steps if step.get("uses", "").startswith("actions/upload-pages-artifact@")]
    assert upload["with"]["path"] == built_into(make)
    assert not [step for step in deploy_steps if "run" in step]
    (published,) = [step for step in deploy_steps if step["uses"].startswith("actions/deploy-pages@")]
    assert f"steps.{published['id']}.outputs.page_url" in workflow["jobs"]["deploy"]["environment"]["url"]
    assert workflow["jobs"]["deploy"]["needs"] == "build"
    used = [step["uses"] for step in [*build_steps, *deploy_steps] if "uses" in step]
    assert [each for each in used if not re.fullmatch(r"actions/[\w-]+@v\d+", each)] == []


def test_the_workflow_runs_on_pushes_and_by_hand_one_at_a_time_with_the_least_permissions(workflow):
    assert workflow["on"] == {"push": {"branches": ["main"]}, "workflow_dispatch": None}
    assert workflow["concurrency"] == {"group": "pages", "cancel-in-progress": False}
    assert workflow["permissions"] == {}
    held = {name: job["permissions"] for name, job in workflow["jobs"].items()}
    assert held == {"build": {"contents": "read"}, "deploy": {"pages": "write", "id-token": "write"}}
    assert "on each push to `main`\nand by hand" in GUIDE


# The folder


def test_the_table_names_every_file_with_its_size(site):
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| (\d+) kB \| (\d+) kB \|$", GUIDE, flags=re.MULTILINE)
    files = {path.relative_to(site).as_posix(): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    assert sorted(name for name, _, _ in rows) == sorted(files)
    for name, *said in rows:
        for kilobytes, size in zip(map(int, said), (len(files[name]), len(gzip.compress(files[name]))), strict=True):
            assert abs(kilobytes - size / 1000) <= max(1, 0.1 * size / 1000), (name, kilobytes, size)


def test_the_head_of_the_space_names_a_page_that_is_there(site):
    _, head, rest = block("yaml", "sdk: static").split("---\n")
    settings = YAML(typ="safe").load(head)
    assert rest == ""
    assert settings["sdk"] == "static"
    assert (site / settings["app_file"]).is_file()


def test_nginx_is_told_the_type_of_every_file(site):
    text = block("nginx", "alias")
    types = dict(re.findall(r"^ {12}(\w+/[\w+-]+) +(\w+);$", text, flags=re.MULTILINE))
    assert set(types.values()) == {path.suffix[1:] for path in site.rglob("*.*") if path.suffix}
    assert set(types) - {"text/html"} == set(re.findall(r"gzip_types (.*);", text)[0].split())  # HTML always is
    assert text.count("{") == text.count("}")


# In a browser. No request leaves this machine.


@pytest.fixture
def around(chromium, site, tmp_path):
    """around(html, query): a page on an origin of its own with this code in it; .complaints: its errors."""
    complaints = []
    with ExitStack() as stack:
        page_address, own_address = stack.enter_context(hosted(site.parent)), stack.enter_context(hosted(tmp_path))
        context = stack.enter_context(chromium.new_context(viewport={"width": 1300, "height": 800}))
        context.route("**/*", lambda route: route.continue_() if is_here(route.request.url) else route.abort())

        def open_page(html, query=""):
            assert "https://example.org/batch/" in html
            html = html.replace("https://example.org/", page_address)
            icon = '<link rel="icon" href="data:,">'
            (tmp_path / "index.html").write_text(f"<!DOCTYPE html><title>around</title>{icon}{html}")
            page = context.new_page()
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(own_address + query)
            open_page.page = page
            return page

        open_page.complaints = complaints
        yield open_page


def is_here(address):
    return urlsplit(address).hostname in {"127.0.0.1", None}


def until(page, happened):
    """Waits up to ten seconds, in which the page goes on."""
    for _ in range(100):
        if happened():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it never came true")


def steps(page):
    return page.frame_locator("iframe").locator(".figure", has_text="Accumulation steps").locator(".number")


def heights(page):
    """Of the frame, and of what is in it."""
    (inner,) = [frame for frame in page.frames if frame.parent_frame]
    outside = page.locator("iframe").evaluate("(frame) => frame.clientHeight")
    return outside, inner.evaluate("() => document.documentElement.offsetHeight")


STATE = "() => [location.href, document.querySelector('iframe').height]"
FOREIGN_MESSAGE = f"""() => new Promise((done) => {{
    addEventListener("message", () => done(({STATE})()), {{ once: true }}); // after the page's own listener
    postMessage({{ queryString: "micro_batch=7", height: 1 }}, "*");
}})"""


@pytest.mark.slow
def test_the_frame_of_the_guide_is_as_high_as_the_plan_and_the_address_bar_follows(around):
    page = around(block("html", "<script>"))
    expect(page).to_have_url(re.compile(r"/\?target_batch=512$"))
    frame = page.frame_locator("iframe")
    expect(frame.locator(".waiting")).to_have_count(0)
    assert frame.locator("header").bounding_box()["height"] <= 1
    frame.get_by_label("Target batch").fill("640")
    expect(steps(page)).to_have_text("20")
    expect(page).to_have_url(re.compile(r"/\?target_batch=640$"))
    until(page, lambda: heights(page)[0] == heights(page)[1] > 1500)
    frame.get_by_label("Target batch").press("Enter")
    frame.locator("button.copy").first.click()
    expect(frame.locator("button.copy").first).to_have_text("Copied")
    frame.get_by_label("Target batch").fill("500")  # the default: nothing is left to say
    expect(page).to_have_url(re.compile(r"/$"))
    # Any window may post: another one's words are not taken.
    assert page.evaluate(FOREIGN_MESSAGE) == page.evaluate(STATE)
    assert around.complaints == []


@pytest.mark.slow
def test_a_link_to_the_page_around_the_frame_opens_its_plan(around):
    page = around(block("html", "<script>"), "?preset=bloom-176b#here")
    expect(steps(page)).to_have_text("128")
    assert page.frame_locator("iframe").locator("header").bounding_box()["height"] <= 1
    page.wait_for_timeout(300)
    assert page.url.endswith("/?preset=bloom-176b#here")
    assert page.evaluate("() => history.length") == 2  # the blank tab and this page: none for the frame
    assert around.complaints == []


@pytest.mark.slow
def test_the_short_frame_works_alone(around):
    short = next(each for each in markdown.blocks(GUIDE, "html") if "<script>" not in each)
    page = around(short)
    expect(steps(page)).to_have_text("16")
    page.frame_locator("iframe").get_by_label("Target batch").fill("640")
    expect(steps(page)).to_have_text("20")
    assert around.complaints == []


def without(word):
    code = block("html", "<script>")
    assert word in code
    return code.replace(word, "")


@pytest.mark.slow
def test_each_permission_of_the_frame_is_needed_for_what_the_guide_says(around):
    named = re.search(r'allow="[\w-]+"\s+sandbox="([\w -]+)"', block("html", "<script>"))
    assert named
    popups = ["allow-popups", "allow-popups-to-escape-sandbox"]
    assert named.group(1).split() == ["allow-scripts", "allow-same-origin", "allow-forms", *popups]

    with around(block("html", "<script>")).expect_popup() as popup:
        around.page.frame_locator("iframe").locator("#trainer-0 a").click()
    assert popup.value.url  # what it opens is blocked here, and no longer of the sandbox

    page = around(without("allow-popups allow-popups-to-escape-sandbox"))
    page.frame_locator("iframe").locator("#trainer-0 a").click()
    until(page, lambda: around.complaints)
    assert ["allow-popups" in each for each in around.complaints] == [True]

    around.complaints.clear()
    frame = around(without("allow-scripts")).frame_locator("iframe")
    expect(frame.locator("noscript .remark")).to_contain_text("Without it, it shows this one plan.")

    around.complaints.clear()
    frame = around(without("allow-same-origin")).frame_locator("iframe")
    expect(frame.locator(".remark")).to_contain_text("The calculator did not start")
    assert any("Access-Control-Allow-Origin" in each for each in around.complaints)

    around.complaints.clear()
    page = around(without("allow-forms"))
    page.frame_locator("iframe").get_by_label("Target batch").fill("640")
    expect(steps(page)).to_have_text("20")
    page.frame_locator("iframe").get_by_label("Target batch").press("Enter")
    until(page, lambda: around.complaints)
    assert ["allow-forms" in each for each in around.complaints] == [True]

    around.complaints.clear()
    frame = around(without('allow="clipboard-write"')).frame_locator("iframe")
    frame.locator("button.copy").first.click()
    expect(frame.locator("button.copy").first).to_have_text("Selected: press Ctrl+C")


@pytest.mark.slow
def test_a_new_version_shows_at_the_second_visit_and_the_remover_removes(chromium, site, tmp_path):
    folder = tmp_path / "batch"
    shutil.copytree(site, folder)
    with hosted(tmp_path) as address, chromium.new_context() as context:
        page = context.new_page()
        page.goto(address + "batch/")
        page.wait_for_function("() => navigator.serviceWorker.controller")

        index, worker = folder / "index.html", folder / "offline.js"
        index.write_text(index.read_text().replace("From a target batch", "Anew from a target batch"))
        worker.write_text(worker.read_text().replace('HERE + "', 'HERE + "anew-'))
        assert tagline(page, address).startswith("From")
        until(page, lambda: all("anew-" in name for name in page.evaluate("() => caches.keys()")))
        assert tagline(page, address).startswith("Anew")

        shutil.rmtree(folder)
        folder.mkdir()
        assert tagline(page, address).startswith("Anew")  # kept, though nothing is there
        worker.write_text(block("js", "unregister"))
        assert tagline(page, address).startswith("Anew")
        until(page, lambda: page.evaluate("() => navigator.serviceWorker.getRegistrations()") == [])
        assert page.evaluate("() => caches.keys()") == []
        page.goto(address + "batch/")
        expect(page).to_have_title("Directory listing for /batch/")


def tagline(page, address):
    """A visit, and the line that one of its versions says."""
    page.goto(address + "batch/")
    return page.locator(".tagline").inner_text()
