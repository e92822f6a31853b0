"""An audit as text and as HTML, from reports made by hand: what is said, what is drawn, and that nothing overflows."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]

from gradaccum.core.audit import AuditedMicroBatch, AuditedUpdate, AuditFinding, AuditReport
from gradaccum.show.audit import as_fragment, as_html, as_text
from gradaccum.show.audit_picture import weights_picture
from gradaccum.show.audit_words import evidence_words, headline
from gradaccum.show.text import Style
from tests.show import drawing
from tests.show.markup import having, parse, the, words


def update(*ranks, number=0, optimizer="SGD"):
    """ranks: of each, (weight, units) of each micro-batch."""
    made = [
        AuditedMicroBatch(rank, index, weight, units, 4)
        for rank, own in enumerate(ranks)
        for index, (weight, units) in enumerate(own)
    ]
    return AuditedUpdate(number, optimizer, tuple(made), 16, None, 1.0)


FACTS: dict[str, object] = {
    "framework": "torch",
    "ranks": 1,
    "wrapped": "plain",
    "optimizers": ["SGD"],
    "updates": 5,
    "audited_updates": 3,
    "micro_batches_per_update": 4,
    "effective_batch": 16,
    "target_batch": 64,
    "loss_tokens": [11, 12, 13],
    "reductions_per_update": 0,
    "reduction_bytes": 0,
    "scheduler_steps_per_update": None,
    "clipping": "none",
    "gradient_dtypes": ["float32"],
    "last_group": 2,
    "skipped_updates": 0,
    "micro_batches_without_update": 1,
}
MEANS = AuditFinding(
    "GA103",
    "error",
    "A mean of means.",
    {"term": "NllLoss", "unit": "counted", "counts": [[4, 3, 2, 4]], "largest_by_smallest": 2.0, "updates": [0, 1]},
    "short ones are learnt more",
    "sum and divide once",
)
EVIDENCE = (
    "loss term NllLoss; the largest weight is 2 times the smallest; they hold 4, 3, 2, 4 targets; in updates 0, 1"
)
# 13 tokens; each micro-batch has a quarter of the gradient, so a token of one with n weighs 13 / (4 n).
UNEVEN = update([(13 / 16, 4.0), (13 / 12, 3.0), (13 / 8, 2.0), (13 / 16, 4.0)])
EVEN = update([(1.0, 4.0)] * 4)
FAULT = AuditReport("fault", (MEANS,), FACTS, (UNEVEN, replace(UNEVEN, number=1)), ("what XLoss weighs",), None, 2e-4)
RIGHT = AuditReport("right", (), FACTS, (EVEN,), (), None, 2e-4)
NOTHING = AuditReport("not seen", (), {}, (), ("no optimizer step was seen",))
MANY = AuditReport("fault", (MEANS,), FACTS, (update(*[[(0.5, 4.0), (1.5, 4.0)] * 60] * 12),), (), 3, 2e-4)

HOSTILE = "<script>alert(1)</script>&\"'\x1b[31m\x07\u202e" + "x" * 200
ATTACK = AuditReport(
    "fault",
    (AuditFinding("GA103", "error", HOSTILE, {HOSTILE: [HOSTILE]}, HOSTILE, HOSTILE),),
    {"framework": HOSTILE, "optimizers": [HOSTILE], HOSTILE: HOSTILE},
    (update([(1.0, None)], optimizer=HOSTILE),),
    (HOSTILE,),
    None,
    2e-4,
)
STRANGE = AuditReport(
    "fault",
    (),
    {"effective_batch": list(range(100))},
    (update([(None, 3.0), (0.0, 0.0)], [(65536.0, 5.0), (float("inf"), None)], [(1e-9, 1.0)]),),
)
ALL = {"fault": FAULT, "right": RIGHT, "nothing": NOTHING, "many": MANY, "attack": ATTACK, "strange": STRANGE}
each_report = pytest.mark.parametrize("report", ALL.values(), ids=ALL)


# Text


def test_the_verdict_stands_first_in_one_line():
    assert as_text(FAULT).startswith("fault: in 2 audited updates, not what one big batch would do (GA103)\n")
    assert as_text(RIGHT).startswith("right: in 1 audited update, what one big batch would do\n")
    assert as_text(NOTHING).startswith("not seen: ")
    warned = replace(RIGHT, findings=(replace(MEANS, code="GA112", severity="warning"),))
    assert as_text(warned).splitlines()[0].endswith("; but see GA112")


def test_a_finding_has_its_code_evidence_consequence_and_fix():
    _, _, message, evidence, meaning, fix, *_ = as_text(FAULT, width=132).splitlines()
    assert message == "error GA103: A mean of means."
    assert evidence.split(maxsplit=1) == ["evidence", EVIDENCE]
    assert meaning.split(maxsplit=3) == ["what", "it", "means", "short ones are learnt more"]
    assert fix.split(maxsplit=1) == ["fix", "sum and divide once"]


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        (
            {"term": "NllLoss", "times": 4, "of": "micro-batches", "total": 4.0, "updates": [2]},
            "loss term NllLoss; a factor of 4, the number of micro-batches; the weights sum to 4, where 1 is right; "
            "in update 2",
        ),
        (
            {"term": "NllLoss", "micro_batches": 2, "divided_by": 4, "total": 0.5},
            "loss term NllLoss; 2 micro-batches, divided by 4; the weights sum to 0.5, where 1 is right",
        ),
        ({"term": "Aux", "times": 4, "total": 0.4}, "loss term Aux; counted 4 times, its factors add up to 0.4"),
        ({"lost": 2, "micro_batches": 4}, "2 of 4 micro-batches"),
        (
            {"ranks": 2, "passes": 8, "all": True, "updates": [0]},
            "8 backward passes, on 2 ranks; these are all of them; in update 0",
        ),
        ({"ranks": 2, "passes": 3, "all": False}, "3 backward passes, on 2 ranks"),
        ({"unit": "counted", "counts": [[4, 3], [2, 2]]}, "they hold 4, 3 targets on rank 0; 2, 2 on rank 1"),
        ({"unit": "weighed", "counts": [7, 4]}, "they hold 7, 4 units of weight"),
        ({"times": 4, "bytes": 2**20, "optimizer": "Adam 2"}, "4 times; 1 MiB each; optimizer Adam 2"),
        ({"effective_batch": 16, "target_batch": 64}, "16 samples in an update, 64 wanted"),
        ({"new_number": 3, "share": None}, "new number 3; share not seen"),
    ],
)
def test_evidence_is_said_in_words(evidence, said):
    assert evidence_words(evidence) == said


def test_counts_of_many_ranks_are_cut():
    assert evidence_words({"unit": "rows", "counts": [[1, 2]] * 10}).endswith("; 1, 2 on rank 7; and 2 more ranks")


def test_what_a_micro_batch_holds_has_the_name_of_what_its_loss_counts():
    held = replace(update([(1.0, 4.0), (1.0, 1.0), (1.0, 2.5)]), unit="counted")
    text = as_text(replace(RIGHT, updates=(held,)))
    assert [line.split("  ")[-1] for line in text.splitlines() if line.startswith("  micro-batch")] == [
        "4 targets",
        "1 target",
        "2.5 targets",
    ]
    titles = [each.text for each in drawing.read(weights_picture(held, "t", 2e-4)).iter(drawing.SPACE + "title")]
    assert titles[2] == "rank 0, micro-batch 1: weight 1, 1 target"


@pytest.mark.parametrize(
    ("code", "made", "said"),
    [
        (7, 1, "; but the script ended by itself with exit code 7 after 1 of 3 updates"),
        (7, 3, "; but the script ended by itself with exit code 7 after 3 updates"),
        (130, 1, "; but it was interrupted after 1 of 3 updates"),
        (0, 1, ""),
        (None, 1, ""),
    ],
)
def test_the_headline_says_how_a_script_failed(code, made, said):
    updates = tuple(replace(EVEN, number=number, optimizer=name) for number in range(made) for name in ("A", "B"))
    report = replace(RIGHT, updates=updates, script_exit=code, updates_wanted=3)
    assert headline(report) == headline(replace(report, script_exit=None)) + said


def test_bars_of_the_text_are_as_long_as_the_weights():
    lines = [line for line in as_text(FAULT).splitlines() if line.startswith("  micro-batch")]
    found = [re.fullmatch(r"  micro-batch (\d)  +([\d.]+)  ([#| ]+)  (\d) units", line) for line in lines]
    assert [each.group(1, 2, 4) for each in found] == [
        ("0", "0.8125", "4"),
        ("1", "1.083", "3"),
        ("2", "1.625", "2"),
        ("3", "0.8125", "4"),
    ]
    bars = [each.group(3).rstrip() for each in found]
    one = bars[0].index("|")
    assert {bar.index("|") for bar in bars} == {one}
    filled = [bar.count("#") + (bar[-1] != "|") for bar in bars]
    for length, weight in zip(filled, (13 / 16, 13 / 12, 13 / 8, 13 / 16), strict=True):
        assert length == pytest.approx(weight * (one + 1), abs=1)


def test_updates_and_micro_batches_that_look_alike_are_shown_once():
    assert as_text(FAULT).count("Updates 0, 1 of SGD") == 1
    assert "  micro-batch 0-3  1  " in as_text(RIGHT)


def test_facts_say_the_persons_numbers_and_what_is_not_known():
    text = as_text(FAULT)
    for label, value in {
        "updates": "5, 3 of them audited",
        "effective batch": "16 samples; the target is 64",
        "loss targets": "11, 12, 13 per update",
        "scheduler steps": "not seen",
        "last update": "2 micro-batches",
        "left over": "1 micro-batch without an update",
        "not seen": "what XLoss weighs",
    }.items():
        assert re.search(rf"^{label} +{value}$", text, flags=re.MULTILINE), label
    assert "within 0.02%" in text
    assert re.search(r"^script's exit +3$", as_text(MANY), flags=re.MULTILINE)
    cut = {**FACTS, "epoch_cut": {"groups": 2, "micro_batches": 4, "last_group": 2}}
    assert "to 2 groups of 4 micro-batches, and one of 2\n" in as_text(replace(RIGHT, facts=cut))
    ranks = {**FACTS, "ranks": 2, "wrapped": "ddp", "reductions_per_update": [1, 4], "reduction_bytes": 2**20}
    assert re.search(
        r"^reductions +1, 4 per update, 1 MiB each$", as_text(replace(RIGHT, facts=ranks)), flags=re.MULTILINE
    )


def test_more_rows_than_fit_are_counted_with_their_range():
    assert "  and 1424 more, weights from 0.5 to 1.5" in as_text(MANY)  # 12 x 120, less 16


@each_report
@pytest.mark.parametrize("width", [40, 80, 132])
def test_no_line_is_longer_than_the_terminal_and_nothing_steers_it(report, width):
    text = as_text(report, width)
    assert [line for line in text.splitlines() if len(line) > width] == []
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_colour_marks_and_changes_no_word():
    coloured = as_text(FAULT, style=Style(colour=True))
    assert "\x1b[33merror GA103\x1b[0m" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == as_text(FAULT)


# HTML


@each_report
def test_a_page_stands_alone_without_a_script(report):
    page = as_html(report)
    assert page.startswith("<!DOCTYPE html>\n")
    root = parse(page.removeprefix("<!DOCTYPE html>\n"))
    assert not [each for each in root.iter() if each.tag in ("script", "link", "img", "iframe")]
    assert not [name for each in root.iter() for name in each.attrib if name.startswith("on") or name == "id"]
    assert "url(" not in page


def test_the_page_says_what_the_text_says():
    root = parse(as_fragment(FAULT))
    assert words(the(root, "verdict")) == "fault: in 2 audited updates, not what one big batch would do (GA103)"
    (finding,) = having(root, "finding")
    assert words(finding[0]) == "error GA103: A mean of means."
    assert [(words(each[0]), words(each[1])) for each in finding[1]] == [
        ("evidence", EVIDENCE),
        ("what it means", "short ones are learnt more"),
        ("fix", "sum and divide once"),
    ]
    assert [words(each) for each in root.iter("li")] == ["what XLoss weighs"]


def test_names_are_shown_and_never_markup():
    root = parse(as_html(ATTACK).removeprefix("<!DOCTYPE html>\n"))
    assert not list(root.iter("script"))
    assert words(root).count("<script>alert(1)</script>") >= 5


def test_every_selector_of_a_notebooks_output_is_under_one_class():
    style = the(parse(as_fragment(FAULT)), "gradaccum-audit").find("style").text
    assert set(re.findall(r"@[^{;]*", style)) == {"@container gradaccum-audit (max-width: 620px) "}
    plain = re.sub(r"@container[^{]*\{", "", style)
    for selectors in re.findall(r"([^{}]+)\{[^{}]*\}", plain):
        assert all(each.strip().startswith(".gradaccum-audit") for each in selectors.split(","))


# The picture


def bars(root, kind):
    return drawing.boxes(root, kind)


@pytest.mark.parametrize("narrow", [False, True])
def test_a_bar_is_as_wide_as_it_holds_and_as_high_as_one_weighs(narrow):
    root = drawing.read(weights_picture(UNEVEN, "t", 2e-4, narrow))
    drawn = sorted(bars(root, "off"), key=lambda box: box.x)
    assert bars(root, "right") == []
    heights = [box.height for box in drawn]
    assert heights == [
        pytest.approx(heights[2] * weight / (13 / 8), abs=1) for weight in (13 / 16, 13 / 12, 13 / 8, 13 / 16)
    ]
    widths = [box.width for box in drawn]
    assert widths == [pytest.approx(widths[2] * units / 2, abs=6) for units in (4, 3, 2, 4)]
    (one,) = [each.get("d") for each in root.iter(drawing.SPACE + "path") if each.get("class") == "ga-one"]
    bottom = {box.y + box.height for box in drawn}
    assert len(bottom) == 1
    line = int(re.match(r"M\d+ (\d+)H", one).group(1))
    assert bottom.pop() - line == pytest.approx(heights[2] * 8 / 13, abs=1)


def test_what_was_lost_and_what_was_not_seen_look_different():
    root = drawing.read(weights_picture(STRANGE.updates[0], "t", 2e-4))
    assert len(bars(root, "unseen")) == 2  # nothing is known of one, and an infinite one cannot be drawn
    assert [box.height for box in bars(root, "off")] == [0, 72, 0]
    said = [each.text for each in root.iter(drawing.SPACE + "title")][1:]
    assert said[0] == "rank 0, micro-batch 0: weight ?, 3 units"
    assert said[2] == "rank 1, micro-batch 0: weight 65,500, 5 units"


@each_report
@pytest.mark.parametrize("narrow", [False, True])
def test_a_picture_is_well_formed_and_stays_in_its_frame(report, narrow):
    for each in report.updates:
        root = drawing.read(weights_picture(each, "t", 2e-4, narrow))
        _, _, width, height = map(int, root.get("viewBox").split())
        boxes = [box for kind in ("right", "off", "unseen") for box in bars(root, kind)]
        assert boxes
        assert all(box.x >= 0 and box.x + box.width <= width for box in boxes)
        assert all(box.y >= 0 and box.y + box.height <= height for box in boxes)
        assert drawing.inside(root)


def test_many_ranks_and_micro_batches_leave_out_the_middle():
    shown = drawing.texts(drawing.read(weights_picture(MANY.updates[0], "t", 2e-4)))
    assert [each for each in shown if each.startswith("rank")] == [f"rank {rank}" for rank in (0, 1, 2, 3, 4, 10, 11)]
    assert "and 5 more ranks" in shown
    assert shown.count("\u2026") == 7


# In a browser


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1000])
def test_the_page_can_be_read_by_everybody(chromium, theme, width):
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    for report in (FAULT, RIGHT, ATTACK, STRANGE):
        page.set_content(as_html(report))
        page.evaluate("() => document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.evaluate("() => document.documentElement.scrollWidth") == width
        found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        nodes = [node["html"][:200] + node["failureSummary"] for each in found for node in each["nodes"]]
        assert not found, json.dumps(nodes, indent=1)
        assert page.locator("svg:visible").count() == 1
    context.close()
