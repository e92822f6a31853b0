"""`gradaccum plan` as a person and as a script see it."""

from __future__ import annotations

import json

import pytest

import gradaccum
from gradaccum.cli import main


def run(capsys, *arguments):
    """(exit code, stdout, stderr) of one command."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_first_answer(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, "plan", "-m", "4", "-g", "8", "-t", "500", "-s", "2048")
    assert code == 0
    assert err == ""
    for text in ("16 accumulation steps", "512 sequences", "12 more", "+2.40%", "1,048,576", "= 512", "3 x 8 x 21"):
        assert text in out
    assert "gradient_accumulation_steps=16" in out
    assert len(out.splitlines()) <= 24
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "\x1b" not in out


def test_options_alone_make_a_plan(capsys):
    with_verb = run(capsys, "plan", "-m", "4", "-g", "8", "-t", "500")
    assert run(capsys, "-m", "4", "-g", "8", "-t", "500") == with_verb


@pytest.mark.parametrize(
    "flags",
    [
        ["--micro-batch", "4", "--num-gpus", "8", "--target-batch", "500"],
        ["--micro_batch=4", "--num_gpus=8", "--target_batch=500"],
        ["--per_device_train_batch_size", "4", "--world-size", "8", "--global-batch-size=500"],
        ["--micro-batch-size", "4", "--gpus", "1x8", "--target", "0.5k"],
    ],
)
def test_spellings(capsys, flags):
    assert run(capsys, "plan", *flags, "-q")[:2] == (0, "16\n")


def test_json_is_the_plan(capsys):
    code, out, _ = run(capsys, "plan", "-m", "4", "-g", "8", "-t", "500", "--json")
    assert code == 0
    assert json.loads(out) == gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500).to_dict()


@pytest.mark.parametrize(
    ("flags", "number"),
    [
        ("-m 4 -g 8 -t 500", 16),
        ("-m 4 -g 8 -a 16", 512),
        ("-m 4 -a 16 -t 512", 8),
        ("-g 8 -a 16 -t 512", 4),
        ("-m 4 -g 8 -a 16 -t 512", 16),
    ],
)
def test_quiet_prints_the_one_number(capsys, flags, number):
    assert run(capsys, "plan", *flags.split(), "--quiet")[:2] == (0, f"{number}\n")


def test_strict(capsys):
    assert run(capsys, "plan", "-m", "4", "-g", "8", "-t", "500", "-q", "--strict")[0] == 1
    assert run(capsys, "plan", "-m", "4", "-g", "8", "-t", "512", "-q", "--strict")[0] == 0
    assert run(capsys, "plan", "-m", "4", "-g", "8", "-t", "500", "-r", "exact", "-q", "--strict")[0] == 0


def test_explain(capsys):
    _, out, _ = run(capsys, "plan", "-m", "4", "-g", "8", "-t", "500", "--explain")
    assert "round(500 / 32) = round(15.625) = 16" in out
    assert "GA001" in out
    assert "source:" in out


def test_what_was_read_is_echoed(capsys):
    _, _, err = run(capsys, "plan", "-m", "4", "-g", "8", "-t", "1_024", "-s", "4Ki")
    assert err == "sequence_length: 4Ki is 4,096\n"
    assert run(capsys, "plan", "-m", "4", "-g", "8", "-t", "4M tokens", "-s", "4096")[2] == (
        "target_tokens: 4M is 4,000,000\n"
    )


def test_the_loop_is_python(capsys):
    code, out, _ = run(capsys, "plan", "-m", "4", "-g", "8", "-t", "512", "--loop")
    assert code == 0
    compile(out, "train.py", "exec")
    assert run(capsys, "plan", "-m", "4", "-g", "8", "-t", "512", "--loop", "ddp")[1].count("no_sync") >= 1
    code, out, err = run(capsys, "plan", "-m", "4", "-g", "8", "-t", "512", "--loop", "dpp")
    assert (code, out) == (2, "")
    assert "ddp" in err


def test_presets(capsys):
    assert run(capsys, "plan", "--preset", "bloom-176b", "-q")[1] == "128\n"
    assert run(capsys, "plan", "--preset", "bloom-176b", "-m", "1", "-q")[1] == "256\n"
    code, _, err = run(capsys, "plan", "--preset", "blom-176b")
    assert code == 2
    assert "bloom-176b" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("-m 4.5 -g 8 -t 500", "--micro-batch must be a whole number, not '4.5'; nearest: 4 or 5"),
        ("-m -4 -g 8 -t 500", "--micro-batch must be at least 1, not -4; nearest: 1"),
        ("-m 4 -g 8", "add one of --target-batch, --accum-steps"),
        ("-m 4 -g 12 -t 500 --tensor-parallel 8", "--num-gpus is 12"),
        ("-m 4 -g 8 -t 500 -a 3", "4 x 8 x 3 = 96, not the --target-batch 500"),
        ("-m 4 -m 5 -g 8 -t 500", "--micro-batch was given twice"),
        ("-m 4 --per-device-train-batch-size 5 -g 8 -t 500", "--micro-batch was given twice"),
        ("-m 4 --numgpus 8 -t 500", "there is no option --numgpus; nearest: --num-gpus"),
        ("-m 4 -g 8 -t 500 --epochz 3", "there is no option --epochz; nearest: --epochs"),
        ("-m 4 --per-device-train-batchsize 8 -t 500", "nearest: --micro-batch"),
        ("-m", "expected one argument"),
        ("-m 4 -g 8 -t 500 stray", "'stray' belongs to no option"),
        ("-m 4 -g 8 -t 500 -r up", "--rounding is one of round, ceil, floor, exact, not 'up'"),
    ],
)
def test_mistakes_end_with_2_and_the_nearest_value(capsys, flags, words):
    code, out, err = run(capsys, "plan", *flags.split())
    assert (code, out) == (2, "")
    assert words in err
    assert err.startswith("gradaccum: ")
    assert "Traceback" not in err


def test_what_could_be_misread_is_said(capsys):
    _, _, err = run(capsys, "plan", "-m", "8", "-g", "8", "-t", "512", "--steps", "4")
    assert "--steps is read as --updates" in err
    assert "BLOOM-176B (final plan), bigscience" in run(capsys, "plan", "--preset", "bloom-176b")[2]
    code, _, err = run(capsys, "plan", "-m", "8", "-g", "8", "-t", "512", "--weighting", "tokens")
    assert (code, "--weighting is about the loop" in err) == (2, True)


def test_every_wrong_field_has_its_line(capsys):
    code, _, err = run(capsys, "plan", "-m", "x", "-g", "0", "-t", "nan")
    assert code == 2
    assert len(err.splitlines()) == 3
