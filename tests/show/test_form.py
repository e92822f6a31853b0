"""The form: every input once, labelled and described, folded until wanted, and safe whatever it holds."""

from __future__ import annotations

import pytest

from gradaccum.core.fields import FIELDS
from gradaccum.errors import Problem
from gradaccum.show.form import error_words, form, origin, presets
from gradaccum.show.html import EMPTY, fragment
from tests.show.markup import having, parse, the, words

OWN_FIELDS = [spec for spec in FIELDS if spec.name != "target_tokens"]


def shown(values=None, errors=None, echoes=None, hidden=()):
    return parse(str(form(values or {}, errors or {}, echoes or {}, hidden, EMPTY)))


def controls(root):
    return [each for tag in ("input", "select") for each in root.iter(tag) if each.get("type") != "hidden"]


def test_every_input_has_a_control_and_the_five_come_first():
    names = [each.get("name") for tag in ("input", "select") for each in shown().iter(tag)]
    assert set(names) == {spec.name for spec in OWN_FIELDS}
    main = [each.get("name") for each in the(shown(), "main").iter("input")]
    assert list(dict.fromkeys(main)) == ["micro_batch", "num_gpus", "target_batch", "sequence_length", "rounding"]


def test_every_control_has_a_label_and_is_described_by_what_is_there():
    root = shown(errors={"num_gpus": fragment("is wrong")})
    ids = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(ids) == len(set(ids))
    labels = {each.get("for") for each in root.iter("label")}
    for control in controls(root):
        assert control.get("id") in labels
        assert set(control.get("aria-describedby", "").split()) <= set(ids)


def test_text_fields_bring_up_a_keyboard_for_numbers():
    modes = {each.get("name"): each.get("inputmode") for each in controls(shown()) if each.get("type") == "text"}
    assert modes["micro_batch"] == "numeric"
    assert modes["epochs"] == modes["learning_rate"] == "decimal"
    assert not [each for each in controls(shown()) if each.get("type") == "number"]


def test_values_are_shown_and_chosen():
    root = shown({"micro_batch": "4k", "rounding": "ceil", "last_group": "drop", "vary": "num_gpus"})
    texts = {each.get("name"): each.get("value") for each in root.iter("input") if each.get("type") == "text"}
    assert (texts["micro_batch"], texts["num_gpus"]) == ("4k", "")
    assert [each.get("value") for each in root.iter("input") if "checked" in each.attrib] == ["ceil"]
    chosen = [each.get("value") for each in root.iter("option") if "selected" in each.attrib]
    assert chosen == ["num_gpus", "drop", ""]


def test_each_rounding_is_explained_in_words():
    choice = the(shown(), "choice")
    assert [words(each) for each in having(choice, "hint")] == [
        "round: smallest gap",
        "ceil: at least the target",
        "floor: at most",
        "exact: the target itself, with a smaller last micro-step",
    ]


def test_a_group_is_open_when_one_of_its_fields_is_set_or_wrong():
    def is_open(**changes):
        folds = {each.get("id"): "open" in each.attrib for each in shown(**changes).iter("details")}
        return [name for name, state in folds.items() if state]

    assert is_open() == []
    assert is_open(values={"tensor_parallel": "1", "micro_batch": "9"}) == []
    assert is_open(values={"tensor_parallel": "2"}) == ["group-parallel"]
    assert is_open(errors={"learning_rate": fragment("x"), "epochs": fragment("y")}) == ["group-data", "group-rate"]


def test_an_error_and_an_echo_stand_beside_their_field():
    root = shown(errors={"num_gpus": fragment("is wrong")}, echoes={"micro_batch": "= 4,000"})
    (wrong,) = [each for each in root.iter() if each.get("aria-invalid")]
    assert wrong.get("id") == "num_gpus"
    texts = {each.get("id"): words(each) for each in root.iter("p")}
    assert (texts["num_gpus-error"], texts["micro_batch-echo"], texts["micro_batch-error"]) == (
        "is wrong",
        "= 4,000",
        "",
    )


def test_without_a_script_there_is_a_button_and_a_get_form():
    root = shown()
    (button,) = root.find(".//noscript")
    assert button.get("type") == "submit"
    assert (root.find("form").get("method"), root.find("form").get("action")) == ("get", "?")


HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onfocus='x", "\u0665", "9" * 10_000]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_values_stay_text_in_every_field(text):
    plain = shown()
    root = shown({spec.name: text for spec in OWN_FIELDS}, hidden=[("loop", text)])
    assert [each.tag for each in root.iter()].count("script") == 0
    kept = {
        each.get("name"): each.get("value") for each in root.iter("input") if each.get("type") in ("text", "hidden")
    }
    assert set(kept.values()) == {text}
    # One hidden field, and in each of three lists the word that nobody knows.
    assert len(list(root.iter())) == len(list(plain.iter())) + 1 + 3


def test_a_problem_reads_as_a_sentence_with_links_to_what_is_near():
    problem = Problem("num_gpus", "is 10, <no> multiple of 4", ["8", "12"])
    root = parse(str(error_words(problem, lambda changes: f"?{changes}")))
    assert words(root) == "GPUs is 10, <no> multiple of 4. Nearest: 8 or 12"
    assert [each.get("href") for each in root.iter("a")] == ["?{'num_gpus': '8'}", "?{'num_gpus': '12'}"]


def test_a_problem_of_no_field_has_no_links():
    root = parse(str(error_words(Problem("", "these contradict each other", ["a 1 with b 2"]), lambda changes: "?")))
    assert words(root) == "These contradict each other. Nearest: a 1 with b 2"
    assert not list(root.iter("a"))


def test_presets_are_links():
    root = parse(str(presets([("?preset=a", "A <run>", "4 on 8 GPUs")])))
    (link,) = root.iter("a")
    assert (link.get("href"), words(link)) == ("?preset=a", "A <run>")


def test_the_origin_names_source_day_and_what_is_not_published():
    root = parse(
        str(origin("A run", "a paper", "https://example.org", "2026-01-02", None, ["micro_batch", "num_gpus"]))
    )
    assert root.find(".//a").get("href") == "https://example.org"
    assert "Checked 2026-01-02." in words(root)
    assert "Not published, and filled in by this page: micro-batch, gpus." in words(root)
    assert "Not published" not in words(parse(str(origin("A run", "a", "https://b", "2026-01-02", "n", []))))
