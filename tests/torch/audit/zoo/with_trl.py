"""TRL's SFTTrainer and DPOTrainer, offline: a model of a few hundred weights, a vocabulary of words, data in memory."""

from __future__ import annotations

import os
import tempfile
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tests.torch.audit.zoo.loop import Fault, Pen, Truth
from tests.torch.audit.zoo.plain_losses import sentences
from tests.torch.audit.zoo.with_transformers import llama, padded

PEN = Pen("trl")


def words() -> PreTrainedTokenizerFast:
    """w1 to w19 are the ids 1 to 19; 0 pads."""
    vocabulary = {"<pad>": 0, **{f"w{i}": i for i in range(1, 20)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="w19", unk_token="<pad>")


def fit(trainer: type, config: type, data: Dataset, others: dict[str, Any] | None = None, **arguments) -> None:
    """Updates of 4 micro-batches of 2, in order; nothing is logged, shown, sent or kept."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {"CI": "1"}):
        usual = {
            "output_dir": folder,
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "disable_tqdm": True,
            "logging_strategy": "no",
            "save_strategy": "no",
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "num_train_epochs": 1,
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant",
            "learning_rate": 1e-3,
            "train_sampling_strategy": "sequential",
            "gradient_checkpointing": False,
        }
        running = trainer(
            model=llama(),
            args=config(**{**usual, **arguments}),
            train_dataset=data,
            processing_class=words(),
            **(others or {}),
        )
        running.remove_callback(PrinterCallback)
        running.train()
    enable_progress_bars()


def _tokens(samples: int) -> Dataset:
    return Dataset.from_list([{"input_ids": ids.tolist()} for ids in sentences(samples)])


class Overridden(SFTTrainer):
    """Two overrides that people write."""

    mistake = ""

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.mistake == "zero-first":
            model.zero_grad()
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.mistake == "count-dropped":
            num_items_in_batch = None
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def _sft(modules, step: int) -> Tensor:
    batch = padded(sentences(24)[8 * step : 8 * step + 8])
    logits = _plain(modules[0], batch["input_ids"], batch["attention_mask"])
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def _plain(model, ids, mask):
    """Logits by the class's own forward: TRL replaces the instance's."""
    return LlamaForCausalLM.forward(model, input_ids=ids, attention_mask=mask).logits


@PEN.loop(
    "trl-sft",
    target_batch=8,
    truth=Truth(_sft, updates=3),
    right={"": "SFTTrainer as released, its own chunked loss over the tokens of the group"},
    wrong={
        "zero-first": Fault("GA108", "training_step zeroes the gradients first"),
        "count-dropped": Fault("GA101", "compute_loss drops num_items_in_batch: means, which nobody divides", "GA103"),
    },
)
def sft(case: str) -> None:
    fit(type("Overridden", (Overridden,), {"mistake": case}), SFTConfig, _tokens(24))


@PEN.loop(
    "trl-sft-loss-func",
    target_batch=8,
    truth=Truth(_sft, updates=3),
    right={"": "compute_loss_func uses num_items_in_batch"},
    wrong={"mean": Fault("GA101", "compute_loss_func takes a mean, which nobody divides", "GA103")},
)
def sft_loss_func(case: str) -> None:
    def compute(outputs, labels, num_items_in_batch=None):
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        if case == "mean":
            return F.cross_entropy(logits, targets)
        return F.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch

    fit(SFTTrainer, SFTConfig, _tokens(24), {"compute_loss_func": compute})


def _preferences(samples: int) -> Dataset:
    rows = [[f"w{int(i)}" for i in ids] for ids in sentences(2 * samples)]
    pairs = zip(rows[:samples], rows[samples:])
    return Dataset.from_list(
        [{"prompt": "w3 w4", "chosen": " " + " ".join(a), "rejected": " " + " ".join(b)} for a, b in pairs]
    )


class DividedDPO(DPOTrainer):
    """Divides by the accumulation steps, which the Trainer does."""

    def compute_loss(self, *arguments, **named):
        return super().compute_loss(*arguments, **named) / self.args.gradient_accumulation_steps


def _dpo(modules, step: int) -> Tensor:
    policy, reference = modules
    ids = sentences(48)
    total = torch.zeros(())
    for row in range(8 * step, 8 * step + 8):
        chosen, rejected = (_completion(policy, ids[i]) - _completion(reference, ids[i]) for i in (row, 24 + row))
        total = total - F.logsigmoid(0.1 * (chosen - rejected)) / 8
    return total


def _completion(model, ids):
    """The log probability of a completion and its end, after the prompt w3 w4."""
    whole = torch.tensor([[3, 4, *ids.tolist(), 19]])
    log_probabilities = _plain(model, whole, torch.ones_like(whole))[0, 1:-1].log_softmax(-1)
    return log_probabilities.gather(1, whole[0, 2:, None]).sum()


@PEN.loop(
    "trl-dpo",
    target_batch=8,
    truth=Truth(_dpo, updates=3),
    notes="GA118",
    right={"": "DPOTrainer as released: a mean over pairs, as many in each micro-batch"},
    wrong={"divided-by-hand": Fault("GA102", "compute_loss divides by the steps once more")},
)
def dpo(case: str) -> None:
    fit(DPOTrainer if case == "" else DividedDPO, DPOConfig, _preferences(24), {"ref_model": llama()})
