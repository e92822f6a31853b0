"""Hugging Face's Trainer for loops of a few small batches: it writes, logs and reports nothing by itself."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments


def arguments(folder: str, accum_steps: int, **own: Any) -> TrainingArguments:
    """Batches of one item, in the order of the data, with this loop's own settings beside."""
    quiet = {
        "use_cpu": True,
        "per_device_train_batch_size": 1,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(output_dir=folder, gradient_accumulation_steps=accum_steps, **quiet, **own)
