"""The panel's pictures against the bytes that they show, and its words."""

from __future__ import annotations

import re

import pytest

import gradaccum
from gradaccum.show.fit_panel import PanelInput, found_parts, panel
from gradaccum.show.html import EMPTY
from gradaccum.show.memory_pictures import kind_of, memory_bar, memory_curve
from tests.show.markup import having, parse, the, words

FITS = gradaccum.fit(model="gpt2", gpu="a100-sxm-80gb", target_batch=64).to_dict()
NOTHING = gradaccum.fit(model="llama-3.1-8b", gpu="t4").to_dict()
BOXES = re.compile(r"M(\d+) (\d+)h(\d+)v(\d+)h-(\d+)z")


def drawn(markup, kind):
    """(left, top, width, height) of each box of a kind."""
    found = [each.get("d") for each in having(parse(str(markup)), "ga-" + kind)]
    return [tuple(map(int, box[:4])) for path in found for box in BOXES.findall(path)]


@pytest.mark.parametrize("found", [FITS, NOTHING], ids=["fits", "nothing"])
def test_the_bar_is_to_scale(found):
    memory = found["memory"]
    whole = max(memory["capacity_bytes"], memory["process_high_bytes"])
    bar = memory_bar(memory)
    parts = [box for kind in ("gradients", "states", "shared", "weights", "loss", "activations", "outside")
             for box in drawn(bar, kind)]  # fmt: skip
    assert max(left + width for left, _, width, _ in parts) == pytest.approx(
        1000 * memory["process_bytes"] / whole, abs=3
    )
    (weights,) = drawn(bar, "weights")
    line = next(each for each in memory["ledger"] if each["name"] == "weights")
    assert weights[2] == pytest.approx(1000 * line["bytes"] / whole, abs=2)
    (card,) = drawn(bar, "card")
    assert card[2] == pytest.approx(1000 * memory["capacity_bytes"] / whole, abs=1)
    assert bool(drawn(bar, "beyond")) == (memory["process_high_bytes"] > memory["capacity_bytes"])
    reach = drawn(bar, "reach")[0]
    assert reach[0] == pytest.approx(1000 * memory["process_low_bytes"] / whole, abs=1)
    assert reach[0] + reach[2] == pytest.approx(1000 * memory["process_high_bytes"] / whole, abs=2)


@pytest.mark.parametrize("found", [FITS, NOTHING], ids=["fits", "nothing"])
def test_the_curve_crosses_the_capacity_where_it_stops_fitting(found):
    picture = parse(str(memory_curve(found)))
    capacity = int(re.search(r"M\d+ (\d+)H", the(picture, "ga-capacity").get("d"))[1])
    heights = [int(y) for y in re.findall(r"[ML]\d+ (\d+)", the(picture, "ga-expected").get("d"))]
    assert len(heights) == len(found["curve"])
    assert heights == sorted(heights, reverse=True)  # more sequences, more bytes: further up
    for height, point in zip(heights, found["curve"], strict=True):
        over = point["process_bytes"] > found["memory"]["capacity_bytes"]
        assert (height < capacity) == over or abs(height - capacity) <= 1
    labels = [words(each) for each in picture.iter("text")]
    assert len(labels) == len(set(labels))


def test_the_persons_own_micro_batch_is_marked_where_it_is_on_the_chart():
    def marked(own):
        return "yours" in [words(each) for each in parse(str(memory_curve(FITS, own))).iter("text")]

    assert marked(3)
    assert not marked(FITS["micro_batch"])
    assert not marked(10**9)
    assert not marked(None)


def test_the_table_holds_every_line_and_its_formula():
    root = parse(str(found_parts(FITS, "A100", None)))
    rows = [words(each) for each in the(root, "ledger").find("tbody").iter("tr")]
    for line in FITS["memory"]["ledger"]:
        assert any(row.startswith(f"{line['name']} {line['formula']}") for row in rows)
    assert [row.split("GiB")[0].split()[0] for row in rows if row.endswith("100.00%")] == ["the"]
    assert FITS["memory"]["peak_at"] in words(the(root, "fit-bar"))


def test_without_a_way_to_apply_them_changes_are_words():
    assert "8-bit AdamW states" in words(parse(str(found_parts(NOTHING, "T4", None))))
    assert having(parse(str(found_parts(NOTHING, "T4", None))), "changes")[0].find(".//a") is None
    linked = parse(str(found_parts(NOTHING, "T4", lambda changes: "?" + str(sorted(changes.items())))))
    addresses = [each.get("href") for part in having(linked, "changes") for each in part.iter("a")]
    assert "?[('checkpointing', 'full')]" in addresses


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gradients and DDP's buckets", "gradients"),
        ("optimizer's temporary", "states"),
        ("unsharded layers in flight", "shared"),
        ("weights", "weights"),
        ("logits and loss", "loss"),
        ("last norm, input of the head", "activations"),
        ("CUDA context", "outside"),
        ("something new", "outside"),
    ],
)
def test_a_line_has_the_colour_of_its_kind(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("value", "errors", "is_open"), [("", {}, False), ("16", {}, True), ("", {"rank": EMPTY}, True)]
)
def test_rare_inputs_are_folded_until_they_say_something(value, errors, is_open):
    inputs = [PanelInput("model", "Model", "", "gpt2"), PanelInput("rank", "Rank", "", value, rare=True)]
    root = parse(str(panel(inputs, errors, "?", EMPTY)))
    (more,) = having(root, "fit-rare")
    assert [each.get("name") for each in more.iter("input")] == ["rank"]
    assert ("open" in more.attrib) == is_open
    assert not having(parse(str(panel(inputs[:1], {}, "?", EMPTY))), "fit-rare")


def test_what_two_engines_say_is_shown():
    engine = {"max_micro_batch": 3, "peak_bytes": 2**30, "process_bytes": 2**30, "at": "end of forward"}
    found = {
        **FITS,
        "engine": "trace",
        "evidence": {**FITS["evidence"], "words": "yours: none; nearest 20 measured cases, worst 0.3%"},
        "engines": [{**engine, "engine": "trace", "traces": [1, 2]}, {**engine, "engine": "closed form", "traces": []}],
        "disagreement": {"bytes": -5, "percent": "-1.50"},
    }
    text = words(parse(str(found_parts(found, "A100", None))))
    assert "Peak by the trace: 1 GiB, end of forward, traced at micro-batch 1, 2." in text
    assert "Evidence: yours: none; nearest 20 measured cases, worst 0.3%. Engine: trace." in text
    assert "They differ by \u22121.50%." in text
