"""A plan in a browser, among the rules that notebooks have for their outputs, light and dark, wide and narrow.

The hosts below say in short what JupyterLab 4, the classic notebook (and Colab) and VS Code say of an output.
"""

from __future__ import annotations

import json

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]

import gradaccum

pytestmark = pytest.mark.slow

LAB = """
.host { color: var(--ink); font: 14px/1.6 sans-serif }
.host h2 { font-size: 24px; margin: 24px 0 } .host p { margin: 0 0 1em; text-align: left }
.host a:link { color: var(--link); text-decoration: none }
.host table { border-collapse: collapse; color: var(--ink); font-size: 13px; margin-left: auto; table-layout: fixed }
.host thead { border-bottom: 1px solid var(--ink); vertical-align: bottom }
.host td, .host th, .host tr { border: none; line-height: normal; padding: 0.5em; vertical-align: middle }
:not(.markdown).host td, :not(.markdown).host th, :not(.markdown).host tr { text-align: right }
.host th { font-weight: bold } .host tbody tr:nth-child(odd) { background: #80808033 }
.host tbody tr:nth-child(even) { background: #80808055 } .host tbody tr:hover { background: #2196f355 }
.host dl { overflow: hidden; width: 100% } .host dt { float: left; font-weight: bold; width: 20% }
.host dd { float: left; width: 80% }
"""
CLASSIC = """
*, *::before { box-sizing: border-box } figure { margin: 0 } summary { display: block } .small { font-size: 92% }
.host { color: var(--ink); font: 14px/1.43 sans-serif } .host h2 { font-size: 157%; line-height: 1 }
.host * + p, .host * + table { margin-top: 1em } dt { font-weight: 700 } dl { margin-bottom: 18px }
.host table { border-collapse: collapse; color: var(--ink); font-size: 12px; table-layout: fixed }
.host tr, .host th, .host td { border: none; padding: 0.5em; text-align: right; vertical-align: middle }
.host th, .host td { white-space: nowrap }
.host th { font-weight: bold } .host tbody tr:nth-child(odd) { background: #80808022 }
.host tbody tr:hover { background: #2196f355 }
"""
VSCODE = """
@layer vscode-default { body { color: var(--ink); font: 13px sans-serif } a { color: var(--link) } }
.host { overflow-x: auto }
table, thead, tr, th, td, tbody { border: none; border-collapse: collapse } table, th, tr { text-align: right }
thead { background-color: rgba(130, 130, 130, 0.16); font-weight: bold } th, td { padding: 4px 8px }
tr:nth-child(even) { background-color: rgba(130, 130, 130, 0.08) } tbody th { font-weight: normal }
"""
HOSTS = {"lab": LAB, "classic": CLASSIC, "vscode": VSCODE}
THEMES = {
    "light": {"paper": "#ffffff", "ink": "#212121", "link": "#0b57d0"},
    "dark": {"paper": "#383838", "ink": "#d5d5d5", "link": "#8ab4f8"},  # Colab's dark, the palest of them
}
PLANS = [
    gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500, sequence_length=2048),
    gradaccum.plan(preset="bloom-176b", updates=1000, token_budget=None, learning_rate=6e-5, base_batch=256),
    gradaccum.plan(micro_batch=10**50 + 9, num_gpus=8, target_batch=10**98 + 3),
]


@pytest.fixture
def cell(chromium):
    """cell(host, theme, width): a page with PLANS as outputs; any request of it fails the test."""
    contexts, asked = [], []

    def show(host, theme="light", width=1000):
        context = chromium.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        colours = "".join(f"--{name}: {colour};" for name, colour in THEMES[theme].items())
        style = f":root {{ {colours} background: var(--paper) }} body {{ margin: 0 }} {HOSTS[host]}"
        outputs = "".join(f"<div class='host'>{plan._repr_html_()}</div>" for plan in PLANS)
        page.set_content(f"<!doctype html><html lang=en><title>t</title><style>{style}</style><main>{outputs}</main>")
        return page

    yield show
    for context in contexts:
        context.close()
    assert asked == []


def look(page, selector, *properties):
    """The computed values of all elements of a selector, each once."""
    script = """([selector, properties]) => [...document.querySelectorAll(selector)].map(
        each => properties.map(name => getComputedStyle(each)[name]).join(' '))"""
    return set(page.evaluate(script, [selector, list(properties)]))


@pytest.mark.parametrize("host", HOSTS)
def test_the_notebooks_rules_for_tables_and_lists_do_not_reach_in(cell, host):
    page = cell(host)
    page.locator("tbody tr").nth(1).hover()
    clear = "rgba(0, 0, 0, 0)"
    assert look(page, ".gradaccum-plan :is(table, thead, tr, th, td)", "backgroundColor", "borderTopWidth") == {
        f"{clear} 0px"
    }
    assert look(page, ".gradaccum-plan :is(th, td):not(.n)", "textAlign") == {"left"}
    assert look(page, ".gradaccum-plan :is(th, td).n", "textAlign") == {"right"}
    assert look(page, ".gradaccum-plan tr:not(.own) > *", "fontWeight") == {"400"}
    assert look(page, ".gradaccum-plan :is(dt, dd)", "float") == {"none"}
    assert look(page, ".gradaccum-plan dt", "fontWeight") == {"400"}
    assert look(page, ".gradaccum-plan summary", "display") == {"list-item"}  # else it would not show that it unfolds
    label, number = (page.locator(f".first {each}").first.bounding_box() for each in ("dt", ".number"))
    assert label["y"] + label["height"] <= number["y"] + 1
    assert label["x"] == number["x"]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("theme", THEMES)
def test_text_is_the_themes_and_can_be_read(cell, host, theme):
    page = cell(host, theme)
    ink = look(page, "main", "color") if host == "vscode" else look(page, ".host", "color")
    assert look(page, ".gradaccum-plan :is(span, dt, p, b, th, td, summary, figcaption)", "color") == ink
    assert look(page, ".gradaccum-plan text:not(.ga-on-sync, .ga-on-optimizer)", "fill") == ink
    page.evaluate("() => document.querySelectorAll('details').forEach(each => each.open = true)")
    options = {"runOnly": {"type": "rule", "values": ["color-contrast"]}, "resultTypes": ["violations"]}
    found = Axe().run(page, options=options).response["violations"]
    assert not found, json.dumps([node["html"][:200] + node["failureSummary"] for node in found[0]["nodes"]], indent=1)


@pytest.mark.parametrize("host", HOSTS)
def test_a_cell_of_any_width_holds_it(cell, host):
    page = cell(host)
    for width in (320, 400, 699, 701, 1000):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("() => document.documentElement.scrollWidth") == width
        for plan in page.locator(".gradaccum-plan").all():
            assert plan.evaluate("each => each.scrollWidth <= each.clientWidth")
            shown = plan.locator(".ga-svg:visible")
            assert shown.count() == 1
            assert shown.evaluate("each => each.getBoundingClientRect().width") <= width
            heights = shown.locator("text:not([transform])").evaluate_all(
                "all => all.map(e => e.getBoundingClientRect().height)"
            )
            assert min(heights) > 9


def test_without_the_stylesheet_the_picture_gives_way_to_its_words(cell):
    page = cell("lab")
    page.evaluate("() => document.querySelectorAll('.gradaccum-plan style').forEach(each => each.remove())")
    assert page.locator(".ga-svg:visible").count() == 0
    assert page.locator("figcaption:visible").count() == len(PLANS)
