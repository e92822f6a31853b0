"""What is there to copy: the very text of the loop, settings, and commands that give the same plan."""

from __future__ import annotations

import shlex

import pytest

import gradaccum
from gradaccum.show.loop import training_loop
from gradaccum.show.settings import trainer_settings
from gradaccum.show.snippets import command, copyable, elsewhere_section, loop_section, python_call, settings_section
from tests.show.markup import having, parse, the, words


def plan(**inputs):
    return gradaccum.plan(**{"micro_batch": 4, "num_gpus": 8, "target_batch": 500, **inputs})


def link(changes):
    return "?" + "&".join(f"{name}={value}" for name, value in changes.items())


def loop(shown, strategy="auto", weighting="auto"):
    return parse(str(loop_section(shown, link, strategy, weighting)))


def code(root):
    return "".join(root.find(".//code").itertext())


def test_the_block_holds_the_text_to_the_letter_and_a_button():
    root = parse(str(copyable("the <thing>", "a < b\n  \tif x & y\n")))
    assert code(root) == "a < b\n  \tif x & y\n"
    (button,) = root.iter("button")
    assert (button.get("type"), button.get("aria-label")) == ("button", "Copy the <thing>")


def test_the_loop_is_the_one_that_was_asked_for():
    assert code(loop(plan())) == training_loop(plan())
    assert code(loop(plan(), "fsdp2", "mean")) == training_loop(plan(), "fsdp2", "mean")


def test_the_forms_that_fit_are_links_and_the_shown_one_is_marked():
    root = loop(plan(), "fsdp2", "mean")
    links = {words(each): each for each in root.iter("a")}
    assert [each.get("href") for each in links.values()] == [
        "?loop=ddp",
        "?loop=fsdp2",
        "?loop=fsdp2-deferred",
        "?weighting=tokens",
        "?weighting=mean",
    ]
    assert [name for name, each in links.items() if each.get("aria-current")] == ["FSDP2", "Loss by samples"]
    assert [words(each) for each in loop(plan(tensor_parallel=2)).iter("a")][:2] == ["FSDP2", "FSDP2, reduced once"]


def test_a_form_that_the_plan_refuses_is_named_and_another_shown():
    root = loop(plan(num_gpus=1), "ddp")
    assert "nothing to reduce" in words(the(root, "refusal"))
    assert code(root) == training_loop(plan(num_gpus=1))


def test_a_plan_without_any_loop_says_why():
    shown = plan(num_gpus=16, pipeline_parallel=2, rounding="exact")
    root = loop(shown)
    assert "no update has exactly 500" in words(the(root, "refusal"))
    assert root.find(".//code") is None


def test_settings_show_every_trainer_the_first_one_open():
    shown = plan(sequence_length=2048)
    folds = list(parse(str(settings_section(shown))).iter("details"))
    settings = trainer_settings(shown)
    assert [words(each.find("summary")) for each in folds] == [each.trainer for each in settings]
    assert ["open" in each.attrib for each in folds] == [True] + [False] * (len(folds) - 1)
    for fold, setting in zip(folds, settings):
        assert code(fold) == setting.text
        assert words(having(fold, "hint")[-1]) == " ".join(f"{setting.note} Source".split())
        assert fold.find(".//p/a").get("href") == setting.source


def test_a_trainer_that_cannot_express_the_plan_has_no_text():
    shown = plan(rounding="exact")
    refused = [each for each in trainer_settings(shown) if not each.text]
    folds = [each for each in parse(str(settings_section(shown))).iter("details") if each.find(".//code") is None]
    assert [words(each.find("summary")) for each in folds] == [f"{each.trainer} no setting" for each in refused]


CASES = [
    {"micro_batch": "4", "num_gpus": "8", "target_batch": "500", "rounding": "round"},
    {"micro_batch": "4", "num_gpus": "16x8", "target_tokens": "4M", "sequence_length": "2 k", "rounding": "floor"},
    {"max_micro_batch": "12", "num_gpus": "08", "target_batch": "1,024", "epochs": "1.5", "dataset_size": "1e6"},
    {"micro_batch": "2", "num_gpus": "8", "accum_steps": "4", "learning_rate": "3e-4", "base_batch": "64"},
]


@pytest.mark.parametrize("values", CASES)
def test_the_command_gives_the_same_plan(values, capsys):
    import json

    from gradaccum.cli import main

    first, second, *flags = shlex.split(command(values))
    assert (first, second) == ("gradaccum", "plan")
    assert main(["plan", *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == gradaccum.plan(**values).to_dict()


@pytest.mark.parametrize("values", CASES)
def test_the_python_call_gives_the_same_plan(values):
    assert eval(python_call(values)).to_dict() == gradaccum.plan(**values).to_dict()


def test_defaults_and_blanks_are_left_out():
    values = {
        "micro_batch": "4",
        "num_gpus": " 8 ",
        "target_batch": "500",
        "rounding": "round",
        "vary": "",
        "epochs": " ",
    }
    assert command(values) == "gradaccum plan -m 4 -g 8 -t 500"
    assert python_call(values) == "gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500)"


def test_a_command_is_quoted_for_the_shell():
    assert shlex.split(command({"target_batch": "4 M 'x' $(y)"}))[-1] == "4 M 'x' $(y)"


def test_both_are_there_to_copy():
    root = parse(str(elsewhere_section({"micro_batch": "4"})))
    assert [words(each) for each in root.iter("code")] == ["gradaccum plan -m 4", "gradaccum.plan(micro_batch=4)"]
