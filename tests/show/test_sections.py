"""The pieces of the page, read back and compared with arithmetic done here."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradaccum
from gradaccum.show.rest import charts_section, update_section
from gradaccum.show.sections import (
    algebra_section,
    answer,
    drift_kind,
    findings_section,
    pinned,
    run_section,
    summary,
)
from tests.show.markup import having, parse, the, words


def plan(**inputs):
    return gradaccum.plan(**{"micro_batch": 4, "num_gpus": 8, "target_batch": 500, **inputs})


def tree(markup):
    return parse(str(markup))


def figures(markup):
    """Label -> (number, words beside it)."""
    return {
        words(each.find("dt")): (words(the(each, "number")), words(the(each, "aside")))
        for each in having(tree(markup), "figure")
    }


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 10**6), st.integers(1, 10**5))
def test_the_answer_is_the_arithmetic(micro_batch, num_gpus, target, length):
    steps = max(1, math.floor(Fraction(target, micro_batch * num_gpus) + Fraction(1, 2)))
    batch = micro_batch * num_gpus * steps
    shown = figures(
        answer(plan(micro_batch=micro_batch, num_gpus=num_gpus, target_batch=target, sequence_length=length))
    )
    assert shown["Accumulation steps"][0] == f"{steps:,}"
    assert shown["Effective batch"][0] == f"{batch:,}"
    assert shown["Drift"][0] == f"{batch - target:+,}".replace("-", "\u2212").replace("+0", "0")
    assert shown["Tokens per update"] == (f"{batch * length:,}", f"{batch:,} \u00d7 {length:,}")


@pytest.mark.parametrize(
    ("inputs", "kind", "beside"),
    [
        ({}, "small", "+2.40% \u00b7 12 more than 500"),
        ({"target_batch": 520}, "small", "\u22121.54% \u00b7 8 fewer than 520"),
        ({"target_batch": 512}, "none", "on the target of 512"),
        ({"target_batch": 16}, "large", "+100.00% \u00b7 16 more than 16"),
        (
            {"target_batch": None, "target_tokens": "1M", "sequence_length": 2048},
            "small",
            "\u22121.70% \u00b7 16,960 tokens fewer than 1,000,000 tokens",
        ),
        ({"target_batch": None, "accum_steps": 3}, "none", "the target is what these make"),
    ],
)
def test_drift_has_sign_percent_and_words(inputs, kind, beside):
    assert drift_kind(plan(**inputs)) == kind
    assert figures(answer(plan(**inputs)))["Drift"][1] == beside


def test_what_was_solved_for_comes_first():
    def first(**inputs):
        return next(iter(figures(answer(gradaccum.plan(**inputs))).items()))

    assert first(micro_batch=4, num_gpus=8, target_batch=64)[0] == "Accumulation steps"
    assert first(micro_batch=4, accum_steps=8, target_batch=64)[0] == "GPUs"
    assert first(micro_batch=4, accum_steps=8, target_batch=64)[1][0] == "2"
    assert first(num_gpus=4, accum_steps=8, target_batch=64)[0] == "Micro-batch"
    assert first(micro_batch=4, num_gpus=8, accum_steps=5) == ("Effective batch", ("160", "sequences per update"))


def test_unknown_tokens_are_said_and_not_guessed():
    assert figures(answer(plan()))["Tokens per update"] == ("unknown", "give a sequence length")
    assert "tokens" not in summary(plan())


def test_supervised_tokens_stand_beside_all_tokens():
    shown = figures(answer(plan(sequence_length=1000, supervised_fraction=0.25)))
    assert shown["Tokens per update"] == ("512,000", "about 128,000 of them carry loss")


@pytest.mark.parametrize(
    ("inputs", "line"),
    [
        ({}, "4 micro-batch \u00d7 8 GPUs \u00d7 16 accumulation steps = 512 effective batch"),
        (
            {"num_gpus": 64, "tensor_parallel": 4, "pipeline_parallel": 2, "target_batch": 32},
            "4 micro-batch \u00d7 8 ranks \u00d7 1 accumulation step = 32 effective batch "
            "8 data-parallel ranks = 64 GPUs / (tensor 4 \u00d7 pipeline 2)",
        ),
        (
            {"rounding": "exact"},
            "4 micro-batch \u00d7 8 GPUs \u00d7 16 accumulation steps = 512 places \u2212 12 left empty at the end "
            "= 500 effective batch",
        ),
    ],
)
def test_the_equation_holds_the_persons_numbers(inputs, line):
    assert words(the(tree(answer(plan(**inputs))), "equation")) == line


def test_a_huge_answer_keeps_all_its_digits():
    micro_batch, num_gpus, target = 7**40, 3**60, 10**99
    steps = math.floor(Fraction(target, micro_batch * num_gpus) + Fraction(1, 2))
    shown = figures(answer(plan(micro_batch=micro_batch, num_gpus=num_gpus, target_batch=target)))
    assert shown["Accumulation steps"][0] == f"{steps:,}"
    assert shown["Effective batch"][0] == f"{micro_batch * num_gpus * steps:,}"
    assert "huge" in str(answer(plan(micro_batch=micro_batch, num_gpus=num_gpus, target_batch=target)))


def test_summary_and_the_pinned_line_hold_the_answer():
    assert summary(plan(sequence_length=2048)) == (
        "16 accumulation steps, effective batch 512, 12 more than the target of 500 (+2.40%), "
        "1,048,576 tokens per update"
    )
    assert words(tree(pinned(plan()))) == "16 steps batch 512 +12 (+2.40%)"
    assert words(tree(pinned(plan(target_batch=512)))) == "16 steps batch 512 0"


def test_the_update_is_drawn_wide_and_narrow_with_one_caption():
    root = tree(update_section(plan()))
    assert [each.get("class") for each in root.iter("div")] == ["wide", "narrow"]
    assert len(list(root.iter("svg"))) == 2
    assert len(list(root.iter("figcaption"))) == 1


def test_two_charts():
    assert [each.find("title").text for each in tree(charts_section(plan())).iter("svg")] == [
        "effective batch by micro-batch",
        "effective batch by GPUs",
    ]


def test_one_finding_at_most_is_open_and_each_says_what_to_do_and_whence():
    shown = plan(gradient_dtype="bf16", target_batch=8000, params="7B")
    folds = list(tree(findings_section(shown)).iter("details"))
    assert [each.get("id") for each in folds] == [finding.code for finding in shown.findings]
    assert ["open" in each.attrib for each in folds] == [True] + [False] * (len(folds) - 1)
    assert {each.get("name") for each in folds} == {"finding"}
    for fold, finding in zip(folds, shown.findings):
        assert words(fold.find("summary")) == f"{finding.severity.capitalize()} {finding.message}"
        for part in (finding.action, finding.code, finding.source.replace("https://", "")):
            assert " ".join(part.split()) in words(fold)


def test_no_finding_no_section():
    class Spotless:
        findings = ()

    assert str(findings_section(Spotless())) == ""


def rows(markup):
    return {words(each.find("dt")): words(each.find("dd")) for each in tree(markup).iter("div")}


def test_the_run_counts_updates_of_a_dataset():
    shown = rows(
        run_section(plan(dataset_size=10_000, epochs=3, warmup_fraction="1%", sequence_length=1024, params="1M"))
    )
    # 10,000 / 512 = 19 and 272 left: 20 updates an epoch, 60 in all; 1% of 60 rounds up to 1; 30,720,000 tokens
    assert shown["Updates"] == "60 20 per epoch"
    assert shown["Warm-up"] == "1 updates, 1.67% of all updates"
    assert shown["Short last group"] == "272 sequences, an update of its own, divided by what it holds"
    assert shown["Tokens"] == "30,720,000 the run trains on 30.7M"
    assert shown["Tokens per parameter"] == "30.72 compute-optimal is about 20"


def test_the_run_counts_updates_of_a_budget():
    shown = rows(run_section(plan(token_budget="1M", sequence_length=100)))
    assert (
        shown["Updates"] == "19 27,200 tokens are left over: they fill no further update"
    )  # 1e6 = 19 x 51,200 + 27,200


def test_updates_per_epoch_alone():
    assert rows(run_section(plan(dataset_size=1024)))["Updates per epoch"] == "2 give epochs for the whole run"


def test_the_bubble_of_a_pipeline():
    shown = rows(run_section(plan(num_gpus=32, pipeline_parallel=4, virtual_pipeline=2)))
    # 16 micro-batches through 4 stages, 2 on each rank: 3 / (2 x 16 + 3) = 8.571...%
    assert shown["Pipeline bubble"] == "8.57% of an update is idle: 16 micro-batches through 4 stages, 2 per rank"


def test_learning_rates_name_their_rule_for_whom_and_whence():
    shown = rows(run_section(plan(learning_rate=0.1, base_batch=256)))
    assert shown["Learning rate, linear rule"].startswith("0.2 for SGD with momentum")
    assert shown["Learning rate, square root rule"].startswith("0.1414 for Adam and AdamW")
    assert "arXiv:1706.02677" in shown["Learning rate, linear rule"]


def test_without_a_run_there_is_no_section():
    assert str(run_section(plan())) == ""


def test_the_algebra_shows_formula_numbers_and_result():
    shown = rows(algebra_section(plan(sequence_length=2048)))
    assert shown["effective_batch"] == "= micro_batch x data_parallel x accum_steps= 4 x 8 x 16= 512"
    assert shown["tokens_per_step"].endswith("= 1,048,576")
