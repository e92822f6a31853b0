"""The Hugging Face Trainer. It hands a head the group's count; a head that ignores it trains with k times the gradient.

Loops for 2 ranks need torchrun's RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, besides the group.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from tests.torch.audit.zoo.loop import Fault, Pen, Truth
from tests.torch.audit.zoo.plain_losses import Language, sentences

PEN = Pen("transformers")

Collate = Callable[[list[Tensor]], dict[str, Tensor]]

SMALL = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SWALLOWED = "the head takes **kwargs and ignores the count: 4 times the gradient (transformers#47688)"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def llama(head: type = LlamaForCausalLM, **more) -> nn.Module:
    return head(LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=16, pad_token_id=0, **more))


def bert(head: type, **more) -> nn.Module:
    return head(BertConfig(**SMALL, **NO_DROPOUT, max_position_embeddings=16, **more))


def fit(
    model: nn.Module,
    data,
    collate: Collate,
    trainer: type[Trainer] = Trainer,
    prepare: Callable[[Trainer], object] = lambda trainer: None,
    loss_func: Callable[..., Tensor] | None = None,
    **arguments,
) -> None:
    """Updates of 4 micro-batches of 2, in order; nothing is logged, shown or kept."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    with tempfile.TemporaryDirectory() as folder:
        usual = {
            "output_dir": folder,
            "use_cpu": True,
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
            "remove_unused_columns": False,
        }
        running = trainer(
            model=model,
            args=TrainingArguments(**{**usual, **arguments}),
            train_dataset=data,
            data_collator=collate,
            compute_loss_func=loss_func,
        )
        running.remove_callback(PrinterCallback)
        prepare(running)
        running.train()


def padded(items: list[Tensor]) -> dict[str, Tensor]:
    """Unequal sentences with their own padding; the labels are the ids."""
    ids = nn.utils.rnn.pad_sequence(items, batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


def tagged(items: list[Tensor]) -> dict[str, Tensor]:
    """As `padded`, with one of three labels for each token."""
    batch = padded(items)
    return {**batch, "labels": torch.where(batch["labels"] > 0, batch["labels"] % 3, -100)}


def labelled(items: list[Tensor]) -> dict[str, Tensor]:
    """As `padded`, with one of three labels for each sentence."""
    return {**padded(items), "labels": torch.stack([ids.sum() % 3 for ids in items])}


def multi_labelled(items: list[Tensor]) -> dict[str, Tensor]:
    """As `labelled`, but any of three."""
    return {
        **padded(items),
        "labels": torch.stack([torch.stack([ids[0] % 2, ids[1] % 2, ids[-1] % 2]) for ids in items]).float(),
    }


def own_loss(collate: Collate, samples: int = 24, batch: int = 8, **more) -> Truth:
    """The model's own loss of `batch` samples at once."""

    def loss(modules, step):
        return modules[0](**collate(sentences(samples)[batch * step : batch * step + batch])).loss

    return Truth(loss, updates=samples // batch, **more)


class Mistaken(Trainer):
    """What people override, each in its own subclass."""

    mistake = ""

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.mistake == "zero-first":
            model.zero_grad()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.mistake == "clip-each":
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.mistake == "own-mean":
            outputs = model(**inputs)
            loss = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
        else:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.mistake == "divided-by-hand":
            loss = loss / self.args.gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss


def mistaken(case: str) -> type[Trainer]:
    return type("Mistaken", (Mistaken,), {"mistake": case})


class SteppingSchedule(TrainerCallback):
    """Steps the schedule after every micro-batch that is not the last of its group."""

    def on_substep_end(self, args, state, control, **kwargs):
        kwargs["lr_scheduler"].step()


@PEN.loop(
    "transformers-lm",
    target_batch=8,
    truth=own_loss(padded, rates=(1e-3, 2e-3 / 3, 1e-3 / 3)),
    right={"": "a causal LM, unequal token counts, which the Trainer counts over the group"},
    wrong={
        "divided-by-hand": Fault("GA102", "compute_loss divides by the steps once more (transformers#40052)"),
        "own-mean": Fault("GA101", "compute_loss takes a mean and ignores num_items_in_batch", "GA103"),
        "zero-first": Fault("GA108", "training_step zeroes the gradients first"),
        "scheduler-each": Fault("GA111", "a callback steps the schedule in on_substep_end"),
    },
)
def language(case: str) -> None:
    def prepare(trainer):
        if case == "scheduler-each":
            trainer.add_callback(SteppingSchedule)

    fit(llama(), sentences(24), padded, mistaken(case), prepare, lr_scheduler_type="linear")


@PEN.loop(
    "transformers-clip",
    target_batch=8,
    truth=own_loss(padded, clip=0.3),
    right={"": "max_grad_norm"},
    wrong={"each": Fault("GA110", "training_step clips after every backward")},
)
def clipped(case: str) -> None:
    trainer = mistaken("clip-each" if case == "each" else "")
    fit(llama(), sentences(24), padded, trainer, max_grad_norm=0.0 if case else 0.3)


def _smoothed(modules, step: int) -> Tensor:
    batch = padded(sentences(24)[8 * step : 8 * step + 8])
    logits = modules[0](input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), label_smoothing=0.1)


@PEN.loop(
    "transformers-smoothing",
    target_batch=8,
    truth=Truth(_smoothed, updates=3),
    right={"": "label_smoothing_factor, over the count of the group"},
    wrong={"divided-by-hand": Fault("GA102", "compute_loss divides by the steps once more")},
)
def smoothing(case: str) -> None:
    fit(llama(), sentences(24), padded, mistaken(case), label_smoothing_factor=0.1)


def _does_not_count(trainer: Trainer) -> None:
    trainer.model_accepts_loss_kwargs = False


def _classifier(name: str, make: Callable[[], nn.Module], collate: Collate) -> None:
    @PEN.loop(
        name,
        target_batch=8,
        truth=own_loss(collate),
        right={"": "the Trainer is told that the head does not count, and divides"},
        wrong={"as-released": Fault("GA101", SWALLOWED)},
    )
    def classify(case: str) -> None:
        fit(make(), sentences(24), collate, prepare=_does_not_count if case == "" else lambda trainer: None)


_classifier("transformers-llama-classifier", lambda: llama(LlamaForSequenceClassification, num_labels=3), labelled)
_classifier("transformers-bert-classifier", lambda: bert(BertForSequenceClassification, num_labels=3), labelled)
_classifier(
    "transformers-bert-multi-label",
    lambda: bert(BertForSequenceClassification, num_labels=3, problem_type="multi_label_classification"),
    multi_labelled,
)


class Counting(Trainer):
    """The count is used, whatever the head does."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = F.cross_entropy(outputs.logits.flatten(0, 1), inputs["labels"].flatten(), reduction="sum")
        return loss / num_items_in_batch


def _tokens(name: str, make: Callable[[], nn.Module], collate: Collate) -> None:
    @PEN.loop(
        name,
        target_batch=8,
        truth=own_loss(collate),
        right={"": "compute_loss divides the sum by num_items_in_batch"},
        wrong={"as-released": Fault("GA101", SWALLOWED + ", and a mean of means", "GA103")},
    )
    def tag(case: str) -> None:
        fit(make(), sentences(24), collate, Counting if case == "" else Trainer)


_tokens("transformers-token-classifier", lambda: bert(BertForTokenClassification, num_labels=3), tagged)
_tokens("transformers-masked-lm", lambda: bert(BertForMaskedLM), padded)


def _pictures(items: list[Tensor]) -> dict[str, Tensor]:
    """A picture for each sentence, and one of three labels."""
    seeds = [int(ids.sum()) for ids in items]
    pictures = [torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return {"pixel_values": torch.stack(pictures), "labels": torch.tensor(seeds) % 3}


@PEN.loop(
    "transformers-vision",
    target_batch=8,
    truth=own_loss(_pictures),
    right={"": "a vision head as released"},
    wrong={"divided-by-hand": Fault("GA102", "compute_loss divides by the steps once more")},
)
def vision(case: str) -> None:
    small = {key: value for key, value in SMALL.items() if key != "vocab_size"}
    config = ViTConfig(**small, **NO_DROPOUT, image_size=8, patch_size=4, num_labels=3)
    fit(ViTForImageClassification(config), sentences(24), _pictures, mistaken(case))


@PEN.loop(
    "transformers-loss-func",
    target_batch=8,
    truth=own_loss(labelled),
    right={"": "compute_loss_func uses num_items_in_batch"},
    wrong={"mean": Fault("GA101", "compute_loss_func takes a mean: with one the Trainer never divides")},
)
def loss_func(case: str) -> None:
    def compute(outputs, labels, num_items_in_batch=None):
        if case == "mean":
            return F.cross_entropy(outputs["logits"], labels)
        return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    fit(bert(BertForSequenceClassification, num_labels=3), sentences(24), labelled, loss_func=compute)


class OwnModel(nn.Module):
    """A model of one's own, with a loss of its own; `accepts_loss_kwargs` tells the Trainer whether it counts."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.net, self.accepts_loss_kwargs = Language(), counts

    def forward(self, input_ids, labels, attention_mask=None, num_items_in_batch=None):
        logits = self.net(input_ids)
        loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum")
        return {"loss": loss / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)}


@PEN.loop(
    "transformers-own-model",
    target_batch=8,
    truth=Truth(lambda modules, step: modules[0](**padded(sentences(24)[8 * step : 8 * step + 8]))["loss"], updates=3),
    right={"": "the model takes num_items_in_batch, and says so"},
    wrong={
        "mean": Fault(
            "GA103", "a mean over the model's own tokens, which the Trainer divides by 4 (transformers#34198)"
        )
    },
)
def own_model(case: str) -> None:
    fit(OwnModel(counts=case == ""), sentences(24), padded)


class Stream(IterableDataset):
    """The same items, without a length."""

    def __init__(self, items: list[Tensor]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.items


def _two_epochs(modules, step: int) -> Tensor:
    parts = [slice(0, 8), slice(8, 16), slice(16, 20)]
    return modules[0](**padded(sentences(20)[parts[step % 3]])).loss


@PEN.loop(
    "transformers-stream",
    target_batch=8,
    truth=Truth(_two_epochs, updates=6),
    notes="GA115",
    right={"": "10 micro-batches an epoch from a dataset with a length: 4, 4 and 2"},
    wrong={
        "unsized": Fault(
            "GA107",
            "without a length the last 2 never step, and stay in .grad for the next epoch",
            "GA101 GA103 GA105 GA118",
        )
    },
)
def stream(case: str) -> None:
    data = sentences(20)
    fit(llama(), data if case == "" else Stream(data), padded, max_steps=6)


def _bf16(modules, step: int) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return modules[0](**padded(sentences(24)[8 * step : 8 * step + 8])).loss


@PEN.loop(
    "transformers-bf16",
    target_batch=8,
    truth=Truth(_bf16, updates=3, tolerance=2e-2),
    right={"": "bf16=True, gradient checkpointing, AdamW in torch"},
    wrong={"zero-first": Fault("GA108", "training_step zeroes the gradients first")},
)
def bf16(case: str) -> None:
    fit(llama(), sentences(24), padded, mistaken(case), bf16=True, gradient_checkpointing=True, optim="adamw_torch")


@PEN.loop(
    "transformers-ranks-lm",
    world=2,
    target_batch=16,
    truth=own_loss(padded, samples=48, batch=16),
    right={"": "tokens are counted over the ranks too, which is the default"},
    wrong={
        "average-off": Fault(
            "GA104", "average_tokens_across_devices=False: each rank counts its own (transformers#34242)"
        ),
        "own-mean": Fault("GA101", "compute_loss takes a mean and ignores num_items_in_batch", "GA103 GA104"),
    },
)
def language_on_ranks(case: str) -> None:
    fit(
        llama(),
        sentences(48),
        padded,
        mistaken(case),
        ddp_backend="gloo",
        average_tokens_across_devices=case != "average-off",
    )
