"""Loops that the audit was never tuned on: Accelerate, the Hugging Face Trainer, PEFT, a loop of LitGPT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate.utils import GradientAccumulationPlugin
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    BertForQuestionAnswering,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
)

from tests.torch.audit.zoo import with_transformers
from tests.torch.audit.zoo.held_out import loader_of, mean_over, network, sixteens, table
from tests.torch.audit.zoo.loop import Fault, Pen, Truth
from tests.torch.audit.zoo.plain_losses import sentences
from tests.torch.audit.zoo.with_accelerate import accelerator_of
from tests.torch.audit.zoo.with_fabric import fabric_of
from tests.torch.audit.zoo.with_transformers import bert, own_loss, padded

PEN = Pen("heldoutframeworks")


def gpt2() -> nn.Module:
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=1, n_head=2, **dropouts))


def pairs() -> list[dict[str, Tensor]]:
    """Two unequal sentences each, padded; labels of -100 where there is none."""
    return [padded(sentences(24)[i : i + 2]) for i in range(0, 24, 2)]


def targets_of(batch: dict[str, Tensor]) -> Tensor:
    return (batch["labels"][:, 1:] != -100).sum()


def _denoised(modules, step: int) -> Tensor:
    x, _ = table(48)
    return F.mse_loss(modules[0](x[16 * step : 16 * step + 16]), x[16 * step : 16 * step + 16, :4])


@PEN.loop(
    "heldoutframeworks-diffusers",
    target_batch=16,
    truth=Truth(_denoised, updates=3, clip=0.2, rates=(0.01, 0.01 * 11 / 12, 0.01 * 10 / 12)),
    right={"": "the script of diffusers: accumulate(unet), gathered loss, clip behind sync_gradients, an EMA"},
    wrong={
        "clip-each": Fault("GA110", "clip_grad_norm_ without `if accelerator.sync_gradients`"),
        "raw-scheduler": Fault("GA111", "lr_scheduler is missing in prepare()"),
    },
)
def diffusers(case: str) -> None:
    accelerator = accelerator_of(gradient_accumulation_steps=4)
    unet, ema = network(), network().requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=0.01)
    lr_scheduler = LambdaLR(optimizer, lambda update: 1 - min(update, 12) / 12)
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader_of(48))
    if case != "raw-scheduler":
        lr_scheduler = accelerator.prepare(lr_scheduler)
    global_step, train_loss = 0, 0.0
    for x, _ in loader:
        with accelerator.accumulate(unet):
            loss = F.mse_loss(unet(x).float(), x[:, :4].float(), reduction="mean")
            avg_loss = accelerator.gather(loss.repeat(4)).mean()
            train_loss += avg_loss.item() / accelerator.gradient_accumulation_steps
            accelerator.backward(loss)
            if accelerator.sync_gradients or case == "clip-each":
                accelerator.clip_grad_norm_(unet.parameters(), 0.2)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            global_step += 1
            with torch.no_grad():
                for slow, fast in zip(ema.parameters(), unet.parameters()):
                    slow.lerp_(fast, 0.01)


@PEN.loop(
    "heldoutframeworks-no-trainer",
    target_batch=16,
    truth=sixteens(),
    right={"": "Accelerator() without steps; division and boundary by hand"},
    wrong={"both": Fault("GA102", "Accelerator(gradient_accumulation_steps=4), and the division by hand stays")},
)
def no_trainer(case: str) -> None:
    accelerator = accelerator_of(gradient_accumulation_steps=4 if case else 1)
    model = network()
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters()), loader_of(48))
    for step, (x, y) in enumerate(loader):
        accelerator.backward(F.cross_entropy(model(x), y) / 4)
        if (step + 1) % 4 == 0 or step == len(loader) - 1:
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "heldoutframeworks-over-epochs",
    target_batch=16,
    truth=mean_over(24, [range(16), [*range(16, 24), *range(8)], range(8, 24)]),
    right={"": "sync_with_dataloader=False: a group goes on in the next epoch"},
    wrong={
        "reset": Fault("GA106", "optimizer.optimizer.zero_grad() where an epoch begins, with a group open", "GA105")
    },
)
def over_epochs(case: str) -> None:
    plugin = GradientAccumulationPlugin(num_steps=4, sync_with_dataloader=False)
    accelerator = accelerator_of(gradient_accumulation_plugin=plugin)
    model = network()
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader_of(24))
    for _epoch in range(2):
        if case == "reset":
            optimizer.optimizer.zero_grad()
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()


@PEN.loop(
    "heldoutframeworks-accelerate-gpt2",
    target_batch=8,
    truth=own_loss(padded),
    right={"": "outputs.loss times its targets, over those of the group"},
    wrong={"mean": Fault("GA103", "accelerator.backward(outputs.loss), sentences of unequal length")},
)
def accelerate_gpt2(case: str) -> None:
    accelerator = accelerator_of(gradient_accumulation_steps=4)
    model = gpt2()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    data = pairs()
    for i, batch in enumerate(data):
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            if case == "":
                group = data[i // 4 * 4 : i // 4 * 4 + 4]
                loss = loss * targets_of(batch) * 4 / sum(targets_of(each) for each in group)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()


def _lora() -> nn.Module:
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    return get_peft_model(gpt2(), config)


@PEN.loop(
    "heldoutframeworks-peft",
    target_batch=8,
    truth=own_loss(padded),
    right={"": "LoRA of PEFT on GPT-2, the head's loss weighted with its targets"},
    wrong={
        "mean": Fault("GA103", "outputs.loss / 4, sentences of unequal length"),
        "zero-each": Fault("GA108", "model.zero_grad() before each backward"),
    },
)
def peft(case: str) -> None:
    model, data = _lora(), pairs()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for start in range(0, 12, 4):
        total = sum(targets_of(batch) for batch in data[start : start + 4])
        for batch in data[start : start + 4]:
            if case == "zero-each":
                model.zero_grad()
            loss = model(**batch).loss
            (loss / 4 if case == "mean" else loss * targets_of(batch) / total).backward()
        optimizer.step()
        optimizer.zero_grad()


def answering(items: list[Tensor]) -> dict[str, Tensor]:
    """Rows of 12 ids, and where the answer begins and ends."""
    ids = torch.stack([F.pad(own, (0, 12 - len(own)), value=3) for own in items])
    ends = torch.tensor([len(own) - 1 for own in items])
    return {"input_ids": ids, "start_positions": ends // 2, "end_positions": ends}


def t5() -> nn.Module:
    sizes = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0))


@PEN.loop(
    "heldoutframeworks-t5",
    target_batch=8,
    truth=own_loss(lambda items: padded([ids[:2] for ids in items])),
    right={"": "T5 in a plain loop, targets of equal length: loss / 4"},
    wrong={
        "not-divided": Fault("GA101", "outputs[0].backward()"),
        "leftover": Fault("GA107", "model.eval() and zero_grad() stand in `if update % 2 == 0`", "GA101"),
    },
)
def plain_t5(case: str) -> None:
    model = t5()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for i in range(12):
        batch = padded([ids[:2] for ids in sentences(24)[2 * i : 2 * i + 2]])
        loss = model(**batch)[0]
        (loss if case == "not-divided" else loss / 4).backward()
        if i % 4 == 3:
            optimizer.step()
            if case != "leftover" or i == 7:
                optimizer.zero_grad()


@PEN.loop(
    "heldoutframeworks-litgpt",
    target_batch=8,
    truth=own_loss(padded),
    right={"": "litgpt's loop, each loss weighted with its targets"},
    wrong={"mean": Fault("GA103", "litgpt's fabric.backward(loss / accumulate) on unequal answers")},
)
def litgpt(case: str) -> None:
    fabric, data = fabric_of(), pairs()
    model = gpt2()
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    state = {"iter_num": 0, "step_count": 0}
    while state["step_count"] < 3:
        group = data[4 * state["step_count"] :][:4]
        batch = data[state["iter_num"]]
        state["iter_num"] += 1
        is_accumulating = state["iter_num"] % 4 != 0
        with fabric.no_backward_sync(model, enabled=is_accumulating):
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            logits, targets = logits[..., :-1, :].reshape(-1, 20), batch["labels"][..., 1:].reshape(-1)
            loss = F.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
            loss = loss.sum() / (targets != -100).sum()
            share = 1 / 4 if case else targets_of(batch) / sum(targets_of(each) for each in group)
            fabric.backward(loss * share)
        if not is_accumulating:
            optimizer.step()
            optimizer.zero_grad()
            state["step_count"] += 1


class DividesAgain(TrainerCallback):
    """Takes what the Trainer hands over for a sum."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for p in model.parameters():
            p.grad /= args.gradient_accumulation_steps


class OldTrainer(Trainer):
    """training_step as it was written before the Trainer counted tokens."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(loss)
        return loss.detach()


@PEN.loop(
    "heldoutframeworks-trainer-gpt2",
    target_batch=8,
    truth=own_loss(padded),
    right={"": "GPT-2 in the Trainer, which is told that the head shifts its labels"},
    wrong={
        "as-released": Fault(
            "GA102", "GPT2LMHeadModel is not known to shift its labels, so each sequence counts one target too many"
        ),
        "callback": Fault("GA102", "a callback divides the gradients before the step"),
        "old": Fault("GA101", "an overridden training_step that neither divides nor counts", "GA103"),
    },
)
def trainer_gpt2(case: str) -> None:
    def prepare(trainer):
        trainer._loss_shifts_labels = case != "as-released"
        if case == "callback":
            trainer.add_callback(DividesAgain())

    trainer = OldTrainer if case == "old" else Trainer
    with_transformers.fit(gpt2(), sentences(24), padded, trainer, prepare)


@PEN.loop(
    "heldoutframeworks-trainer-answers",
    target_batch=8,
    truth=own_loss(answering),
    right={"": "question answering: a batch without `labels` is not counted, and the Trainer divides"},
    wrong={"old": Fault("GA101", "an overridden training_step that neither divides nor counts")},
)
def trainer_answers(case: str) -> None:
    trainer = OldTrainer if case == "old" else Trainer
    with_transformers.fit(bert(BertForQuestionAnswering), sentences(24), answering, trainer)
