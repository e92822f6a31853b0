"""Faults of released trainers, each as a script that shows it on the release that is installed."""

from __future__ import annotations

ACCELERATE = {
    "GA102": '''
"""accelerator.backward divides by gradient_accumulation_steps, and so does the loop."""
import accelerate
import torch

print("accelerate", accelerate.__version__)
accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
w = torch.nn.Parameter(torch.tensor(0.0))
x = [1.0, 10.0, 100.0, 1000.0]
for each in x:
    accelerator.backward(w * each / 4)
print("wrong", w.grad.item())

w.grad = None
for each in x:
    accelerator.backward(w * each)
print("right", w.grad.item())
''',
    "GA103": '''
"""accelerator.backward divides by the micro-batches, whatever they hold: 2 over one token, 10 over three."""
import accelerate
import torch

print("accelerate", accelerate.__version__)
accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
w = torch.nn.Parameter(torch.tensor(1.0))
parts = [torch.tensor([2.0]), torch.tensor([10.0, 10.0, 10.0])]
for part in parts:
    accelerator.backward((w * part).mean())
print("wrong", w.grad.item())

w.grad = None
for part in parts:
    accelerator.backward((w * part).sum() * accelerator.gradient_accumulation_steps / 4)
print("right", w.grad.item())
''',
    "GA105": '''
"""Six micro-batches, gradient_accumulation_steps=4: the last group has two, and is divided by four."""
import accelerate
import torch

print("accelerate", accelerate.__version__)


class Scalar(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        return (self.w * x).mean()


accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
loader = torch.utils.data.DataLoader([10.0**i for i in range(6)], batch_size=1)
model, loader = accelerator.prepare(Scalar(), loader)
optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.0))
for x in loader:
    with accelerator.accumulate(model):
        accelerator.backward(model(x))
        if accelerator.sync_gradients:
            gradient = model.w.grad.item()
        optimizer.step()
        optimizer.zero_grad()
print("wrong", gradient)
print("right", (10.0**4 + 10.0**5) / 2)
''',
}
"""Code -> script."""

_LIGHTNING = """
import lightning
import torch

print("lightning", lightning.__version__)


class Scalar(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(1.0))
        self.gradients = []

    def training_step(self, batch, index):
        return (self.w * batch).mean()

    def on_before_optimizer_step(self, optimizer):
        self.gradients.append(self.w.grad.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def gradients(data, steps):
    model = Scalar()
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, accumulate_grad_batches=steps, **quiet)
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=None))
    return model.gradients

"""

LIGHTNING = {
    "GA103": '''
"""accumulate_grad_batches divides by the micro-batches, whatever they hold: 2 over one token, 10 over three."""
'''
    + _LIGHTNING.lstrip("\n")
    + """
print("wrong", gradients([torch.tensor([2.0]), torch.tensor([10.0, 10.0, 10.0])], steps=2)[0])
print("right", gradients([torch.tensor([2.0, 10.0, 10.0, 10.0])], steps=1)[0])
""",
    "GA105": '''
"""Six micro-batches, accumulate_grad_batches=4: the last group has two, and is divided by four."""
'''
    + _LIGHTNING.lstrip("\n")
    + """
print("wrong", gradients([torch.tensor(10.0**i) for i in range(6)], steps=4)[1])
print("right", gradients([torch.tensor([10.0**4, 10.0**5])], steps=1)[0])
""",
}
"""Code -> script."""

TRANSFORMERS = {
    "GA101": '''
"""A head takes **kwargs and ignores num_items_in_batch: the Trainer does not divide. Shown: the gradient's norm."""
import tempfile
import torch
import transformers

print("transformers", transformers.__version__)
config = transformers.BertConfig(
    vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)
torch.manual_seed(0)
data = [{"input_ids": torch.randint(0, 32, (8,)), "labels": torch.tensor(i % 3)} for i in range(8)]


class Norm(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.value = torch.nn.utils.get_total_norm([each.grad for each in model.parameters()]).item()


def norm(micro_batch, steps):
    torch.manual_seed(0)
    seen = Norm()
    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=micro_batch, gradient_accumulation_steps=steps, max_steps=1,
        max_grad_norm=0.0, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
    )
    model = transformers.BertForSequenceClassification(config)
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[seen]).train()
    return seen.value


print("wrong", norm(micro_batch=2, steps=4))
print("right", norm(micro_batch=8, steps=1))
''',
}
"""Code -> script."""
