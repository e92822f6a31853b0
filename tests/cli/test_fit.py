"""`gradaccum fit` from outside."""

from __future__ import annotations

import json
import sys

import pytest

from gradaccum.cli import main

STEP = """\
import torch

def build(micro_batch):
    return torch.nn.Linear(64, 64), torch.zeros(micro_batch, 64), lambda y: y.mean()

def fails(micro_batch):
    raise FileNotFoundError("data.bin")

def chooses(micro_batch):
    module, batch = torch.nn.Linear(64, 64), torch.zeros(micro_batch, 64)
    return module, torch.optim.SGD(module.parameters()), lambda: module(batch).mean().backward()

def pair(micro_batch):
    return torch.nn.Linear(64, 64), (torch.zeros(micro_batch, 64), torch.zeros(micro_batch, 64)), None

def quotes(micro_batch):
    raise ValueError("num_gpus and micro_batch of my own")
"""


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_longer_than_the_terminal_and_no_word_is_lost(capsys, monkeypatch, width):
    texts = []
    for columns in (width, 9999):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main("fit --model llama-3.1-8b --gpu rtx-4090 --lora-rank 16 -t 64 --quantization nf4".split()) == 0
        texts.append(capsys.readouterr().out)
    longest = max(len(word) for word in texts[0].split())
    assert max(map(len, texts[0].splitlines())) <= max(width, longest, len("memory    [") + 41)
    assert texts[0].split() == texts[1].split()


def test_the_answer_on_one_screen(capsys):
    assert main(["fit", "--model", "llama-3.2-1b", "--gpu", "rtx-4090", "-s", "1024", "-t", "64"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("micro-batch 3 is marginal on GeForce RTX 4090 24 GB (2 surely, 5 at best)\n")
    assert "2 micro-batch x 1 GPUs x 32 accumulation steps = 64" in out
    (evidence,) = [line for line in out.splitlines() if line.endswith("+-15%")]
    assert "bf16, flash attention, one GPU" in evidence
    assert "note GA022: Accumulation costs 2.3 GiB here" in out
    assert max(map(len, out.splitlines())) < 160


def test_a_target_in_tokens_and_a_length_that_the_model_sets(capsys):
    flags = ["fit", "--model", "gpt2", "--gpu", "rtx-3060-12gb", "-t", "64Ki tokens"]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert "sequences of 1,024 tokens" in out
    assert "sequences as long as the model's config allows" in out
    assert "= 64\n" in out
    assert "GA032" not in out
    assert main([*flags, "-s", "2048"]) == 0
    out = capsys.readouterr().out
    assert "as long as" not in out
    assert "= 32\n" in out
    assert "GA032" in out


def test_json_and_quiet(capsys, tmp_path):
    flags = ["fit", "--model", "qwen2.5-7b", "--gpu", "a100-sxm-80gb", "-g", "8", "--strategy", "fsdp2"]
    assert main([*flags, "--checkpointing", "full", "-t", "512", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["effective_batch"] == 512
    assert main([*flags, "--checkpointing", "full", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{found['max_micro_batch']}\n"
    assert main(["fit", "--model", "llama-3.2-1b", "--gpu", "rtx-4090", "-s", "1024", "-t", "64", "-q"]) == 0
    assert capsys.readouterr().out == "2\n"  # of the plan: three would fit, and not make 64
    assert main(["fit", "--model", "llama-3.1-70b", "--gpu", "t4", "-t", "64", "-q"]) == 0
    assert capsys.readouterr().out == "0\n"
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({
            "model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
            "max_position_embeddings": 131072,
        })
    )  # fmt: skip
    assert main(["fit", "--model", str(config), "--gpu", "rtx-4090", "-s", "1024", "-q"]) == 0
    assert capsys.readouterr().out == "3\n"


@pytest.fixture
def own_step(tmp_path, monkeypatch):
    (tmp_path / "own_step.py").write_text(STEP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_step", None)


@pytest.mark.usefixtures("own_step")
def test_a_step_of_ones_own_is_traced(capsys):
    flags = ["fit", "--model", "own_step:build", "--gpu", "t4", "-t", "64", "--allocator", "expandable_segments:True"]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert "own_step:build, adamw" in out
    assert out.startswith("micro-batch 1,048,576 or more fits on Tesla T4 16 GB\n")  # no larger one is looked at
    assert "engine    trace: peak " in out
    assert "traced at micro-batch 2, " in out
    assert "64 micro-batch x 1 GPUs x 1 accumulation steps = 64" in out
    assert main([*flags, "--json", "--time-limit", "600"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["engine"]) == ("own_step:build", "trace")
    assert found["engines"][0]["traces"][0] == 2
    assert sum(line["bytes"] for line in found["memory"]["ledger"]) == found["memory"]["peak_bytes"]


@pytest.mark.usefixtures("own_step")
def test_an_optimizer_of_its_own_is_not_called_adamw(capsys):
    assert main(["fit", "--model", "own_step:chooses", "--gpu", "t4"]) == 0
    assert "own_step:chooses, an optimizer of its own\n" in capsys.readouterr().out
    assert main(["fit", "--model", "own_step:chooses", "--gpu", "t4", "--optimizer", "adamw"]) == 2
    assert "--optimizer is made by own_step:chooses itself: leave it out" in capsys.readouterr().err


@pytest.mark.usefixtures("own_step")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["own_step:fails"], "fails() raised FileNotFoundError: data.bin (own_step.py, line 7)"),
        (
            ["own_step:quotes"],
            "gradaccum: model quotes() raised ValueError: num_gpus and micro_batch of my own (own_step.py",
        ),
        (
            ["own_step:build", "-s", "64"],
            "gradaccum: sequence_length build() decides this itself, as it has no parameter `seq",
        ),
        (["own_step:pair"], "gradaccum: loss is missing: the batch is a pair, and Linear takes one argument"),
        (["own_step:bild"], "has no function 'bild' in the module own_step; nearest: own_step:build"),
        (["no_step:build"], "names a module that is not found from here: 'no_step'"),
        (["own_step:build", "--engine", "both"], "the closed form knows named models and config.json alone"),
        (["own_step:build", "--dtype", "bf16"], "build() decides this itself"),
        (["own_step:build", "--allocator", "expandable"], "'expandable' is no option"),
        (["own_step:build", "--time-limit", "soon"], "--time-limit is a number of seconds above 0, not 'soon'"),
        (["own_step:build", "--time-limit", "1e-9"], "longer than the 1e-09 seconds of --time-limit"),
        (["gpt2", "--allocator", "expandable_segments:True"], "is for a trace alone"),
    ],
)
def test_mistakes_in_a_step_of_ones_own_are_said(capsys, flags, message):
    assert main(["fit", "--gpu", "t4", "--model", *flags]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--model is missing"),
        (["--model", "gpt2"], "--gpu is missing"),
        (["--model", "lama", "--gpu", "t4"], "names no model of the catalog: 'lama'"),
        (["--model", "gpt2", "--gpu", "rtx 409"], "rtx"),
        (
            ["--model", "gpt2", "--gpu", "t4", "--dtype", "fp8"],
            "--dtype is one of bf16, fp16, fp32, bf16-mixed, fp16-mixed",
        ),
        (["--model", "gpt2", "--gpu", "t4", "-s", "-4"], "must be at least 1, not -4"),
        (["--model", "none.json", "--gpu", "t4"], "none.json"),
        (["--model", "gpt2", "--gpu", "t4", "--shard-size", "2"], "--shard-size belongs to hsdp"),
    ],
)
def test_mistakes_are_said(capsys, flags, message):
    assert main(["fit", *flags]) == 2
    assert message in capsys.readouterr().err


def test_all_that_is_wrong_is_said_together(capsys):
    assert main(["fit", "--model", "lama", "-s", "none", "--dtype", "fp8", "-g", "0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    heads = ["--model names no model", "--gpu is missing", "--sequence-length is not a number", "--num-gpus must be"]
    assert [head for head in [*heads, "--dtype is one of"] if not any(head in line for line in lines)] == []


def test_a_folder_and_an_image_model(capsys, tmp_path):
    config = {
        "model_type": "vit", "hidden_size": 384, "num_hidden_layers": 2, "num_attention_heads": 6,
        "intermediate_size": 1536, "image_size": 64, "patch_size": 8,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["fit", "--model", str(tmp_path), "--gpu", "t4"]) == 0
    out = capsys.readouterr().out
    assert "sequences of 65 tokens" in out  # (64 / 8)^2 and the class token
    assert "GA032" not in out


def test_adapters_on_quantised_weights(capsys):
    flags = ["--quantization", "nf4", "--lora-rank", "16", "--lora-targets", "attention", "--checkpointing", "full"]
    assert main(["fit", "--model", "qwen2.5-7b", "--gpu", "rtx-4090", *flags, "--loss", "fused"]) == 0
    out = capsys.readouterr().out
    assert "LoRA of rank 16 on attention layers, nf4 weights, fused loss" in out
    assert "adapters: 4 A, A = 10,092,544 parameters of adapters" in out
    assert "yours (bf16 over nf4 LoRA, fused loss, flash attention, one GPU): no measured case, +-15%" in out


def test_the_type_of_the_model_and_of_its_gradients_are_two_flags(capsys):
    assert main(["fit", "--model", "gpt2", "--gpu", "t4", "-q", "--dtype", "bf16"]) == 0
    plain = int(capsys.readouterr().out)
    assert main(["fit", "--model", "gpt2", "--gpu", "t4", "-q", "--dtype", "bf16", "--grad-dtype", "fp32"]) == 0
    assert int(capsys.readouterr().out) <= plain


def test_a_model_over_several_gpus(capsys):
    flags = ["-g", "64", "-s", "4096", "-t", "512", "--tensor-parallel", "8", "--pipeline-parallel", "4"]
    how = ["--sequence-parallel", "--distributed-optimizer", "--optimizer", "adamw-fused"]
    assert main(["fit", "--model", "llama-3.1-70b", "--gpu", "h100-sxm-80gb", *flags, *how]) == 0
    out = capsys.readouterr().out
    assert "ddp over 2 ranks, tensor parallel 8, pipeline parallel 4, sequence parallel, distributed optimizer" in out
    assert "micro-batch x 2 GPUs x" in out
    assert "peak: backward of the last layer, first of 4 stages" in out
    assert main(["fit", "--model", "gpt2", "--gpu", "t4", "-g", "6", "--tensor-parallel", "4"]) == 2
    assert "nearest: 4 or 8" in capsys.readouterr().err


def test_fsdp2_with_its_flags(capsys):
    flags = [
        "-g",
        "8",
        "--strategy",
        "fsdp2",
        "--no-reshard-after-forward",
        "--reduce",
        "last",
        "--reduce-dtype",
        "fp32",
    ]
    assert main(["fit", "--model", "llama-3.2-1b", "--gpu", "h100-sxm-80gb", *flags]) == 0
    out = capsys.readouterr().out
    assert "fsdp2 over 8 ranks, not resharded after forward, gradients reduced at the last micro-step, in fp32" in out
    assert "unsharded layers: w L G" in out


def test_accumulation_has_a_short_word_too(capsys):
    def answer(*flag):
        assert main(["fit", "--model", "llama-3.2-1b", "--gpu", "rtx-4090", "-s", "512", *flag, "-q"]) == 0
        return int(capsys.readouterr().out)

    assert answer("--accum", "1") == answer("--accum-steps", "1") > answer("--accum", "4")
