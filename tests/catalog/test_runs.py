"""Finding a published run by name, and what it gives to a plan."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from gradaccum.catalog import PublishedRun, find_run, published_runs
from gradaccum.errors import InputError


def problem(name: str):
    with pytest.raises(InputError) as caught:
        find_run(name)
    (problem,) = caught.value.problems
    return problem


def row(**fields) -> PublishedRun:
    return PublishedRun(id="x", name="X", source="s", url="u", checked="2026-01-01", **fields)


@pytest.mark.parametrize(
    ("typed", "run"),
    [
        ("bloom-176b", "BLOOM-176B (final plan)"),
        ("BLOOM 176B", "BLOOM-176B (final plan)"),
        ("bloom", "BLOOM-176B (final plan)"),
        ("bloom_176b_gbs784", "BLOOM-176B at GBS=784"),
        ("Pythia-1.4B", "Pythia 1.4B"),
        ("gpt-neox-20b", "GPT-NeoX-20B"),
        ("GPTNeoX20B", "GPT-NeoX-20B"),
        ("TinyLlama", "TinyLlama 1.1B"),
        ("SmolLM3 3B", "SmolLM3 3B stage1"),
        ("olmo-2-7b", "OLMo2-7B"),
        ("gpt-3-175b", "GPT-3 175B"),
        ("resnet50-imagenet-8192", "ResNet-50 ImageNet kn=8192"),
    ],
)
def test_a_run_is_found_by_id_or_alias_however_it_is_spelled(typed: str, run: str):
    assert find_run(typed).name == run


def test_every_id_and_alias_finds_its_own_row():
    for run in published_runs():
        assert [find_run(name) for name in (run.id, *run.aliases)] == [run] * (1 + len(run.aliases))


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("bloom-175b", "bloom-176b"),  # a wrong size
        ("mpt-7b", "mpt-7b-recipe"),  # the recipe's data are not the released model's
        ("pyhtia-1.4b", "pythia-1.4b"),  # letters swapped
        ("lama-2-70b", "llama-2-70b"),  # a letter left out
        ("xbloom-176b", "bloom-176b"),  # a wrong beginning
        ("resnet50", "resnet50-imagenet-8k"),  # a family: several runs, so none is chosen
    ],
)
def test_a_miss_is_never_a_guess_and_names_the_nearest_runs(typed: str, nearest: str):
    found = problem(typed)
    assert found.field == "preset"
    assert repr(typed) in found.message
    assert nearest in found.nearest
    assert len(set(found.nearest)) == 3
    assert {find_run(name).id for name in found.nearest} == set(found.nearest)


@pytest.mark.parametrize("typed", ["", "   ", "---", "🙂", "<script>", "b\x00", "z" * 1_000_000])
def test_nonsense_is_answered_at_once_and_shown_short(typed: str):
    found = problem(typed)
    assert len(found.nearest) == 3
    assert len(found.message) < 80
    assert found.message.isprintable()


def test_inputs_have_the_plans_names_and_leave_the_steps_to_be_found():
    assert find_run("bloom-176b-gbs784").inputs() == {
        "micro_batch": 2,
        "num_gpus": 384,
        "tensor_parallel": 4,
        "pipeline_parallel": 12,
        "target_batch": 784,
        "sequence_length": 2048,
        "params": 176_000_000_000,
    }
    assert find_run("smollm3-3b-32k").inputs()["context_parallel"] == 4


def test_degrees_of_one_and_unknown_values_are_left_out():
    given = row(num_gpus=8, tensor_parallel=1, pipeline_parallel=2).inputs()
    assert given == {"num_gpus": 8, "pipeline_parallel": 2}


def test_a_run_that_publishes_tokens_alone_gives_a_target_in_tokens():
    given = find_run("llama-2-70b").inputs()
    assert given["target_tokens"] == 4_000_000
    assert "target_batch" not in given
    # Where both are published the sequences are the exact figure.
    assert "target_tokens" not in find_run("pythia-1.4b").inputs()


def test_a_run_that_counts_tokens_is_a_plan_with_sequences_of_one_token():
    assert find_run("transformer-big-wmt16-big-batch").inputs() == {
        "micro_batch": 3584,
        "num_gpus": 8,
        "target_batch": 458_752,
        "sequence_length": 1,
    }


@pytest.mark.parametrize(
    ("typed", "missing"),
    [
        ("bloom-176b", ()),
        ("roberta-base", ()),
        ("transformer-big-wmt16", ()),
        ("llama-2-70b", ("micro_batch", "num_gpus")),
        ("opt-175b", ("micro_batch",)),
        ("olmo2-7b", ("num_gpus",)),
        ("llama-3-8b", ("micro_batch", "num_gpus", "target_batch")),
        ("nanochat-d26", ("micro_batch", "num_gpus", "sequence_length")),
    ],
)
def test_missing_names_what_a_person_must_add(typed: str, missing: tuple[str, ...]):
    assert find_run(typed).missing == missing


def test_rows_cannot_be_changed_by_a_caller():
    run = find_run("bloom")
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.accum_steps = 1  # type: ignore[misc]
    run.inputs()["micro_batch"] = 99
    assert find_run("bloom").inputs()["micro_batch"] == 2


def test_the_rows_are_read_only_when_they_are_asked_for():
    code = (
        "import sys, gradaccum.catalog as catalog\n"
        "print({'json', 'difflib', 'gradaccum.core'} & set(sys.modules))\n"
        "catalog.published_runs()\n"
        "print('json' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["set()", "True"], done.stderr
