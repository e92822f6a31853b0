"""The inputs of a calculation: one table that every face reads.

Flags, query parameters, form fields, OpenAPI parameters and Python keywords all come from FIELDS,
so that a name means the same everywhere. `Request` (request.py) holds the values.
"""

from __future__ import annotations

from dataclasses import dataclass

COUNT = "count"
"""A whole number, exact at any size."""
RATIO = "ratio"
"""A decimal kept exact: 1.5, 0.3, 30%."""
REAL = "real"
"""A real number: 3e-4."""
CHOICE = "choice"
"""One of a few words."""

ROUNDINGS = ("round", "ceil", "floor", "exact")
LAST_GROUPS = ("step", "drop", "carry")
GRADIENT_DTYPES = ("fp32", "bf16", "fp16")
VARIABLE = ("num_gpus", "micro_batch")


@dataclass(frozen=True, eq=False, repr=False)
class Field:
    """One input.

    name: the one name of design and JSON.
    kind: COUNT, RATIO, REAL or CHOICE.
    group: where a face shows it: "main", "solve", "parallel", "data" or "rate".
    label, hint: a few words beside the field; a sentence with the unit.
    short: the one-letter flag, or "".
    aliases: other spellings that are understood (trainers' names, users' words).
    default: what holds where nothing is given; None is "not given".
    minimum: the smallest count that makes sense.
    """

    name: str
    kind: str
    group: str
    label: str
    hint: str
    short: str = ""
    aliases: tuple[str, ...] = ()
    default: int | str | None = None
    minimum: int = 1
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """`--micro-batch`"""
        return "--" + self.name.replace("_", "-")


FIELDS: tuple[Field, ...] = (
    # The five that come first.
    Field(
        "micro_batch",
        COUNT,
        "main",
        "Micro-batch",
        "sequences that one data-parallel rank puts through one forward and backward",
        short="m",
        aliases=(
            "per_device_train_batch_size",
            "per_device_batch_size",
            "micro_batch_size",
            "train_micro_batch_size_per_gpu",
            "device_batch_size",
        ),
    ),
    Field(
        "num_gpus",
        COUNT,
        "main",
        "GPUs",
        "all devices of the run (the world size); 16x8 is 16 nodes of 8",
        short="g",
        aliases=("gpus", "world_size", "num_processes", "devices"),
    ),
    Field(
        "target_batch",
        COUNT,
        "main",
        "Target batch",
        "sequences that you want per update; '4M tokens' sets the target in tokens",
        short="t",
        aliases=("global_batch_size", "train_batch_size", "total_batch_size", "target"),
    ),
    Field(
        "sequence_length",
        COUNT,
        "main",
        "Sequence length",
        "tokens per sequence",
        short="s",
        aliases=("seq_length", "seq_len", "max_length", "max_seq_length", "max_seq_len"),
    ),
    Field(
        "rounding",
        CHOICE,
        "main",
        "Rounding",
        "round: smallest gap; ceil: at least the target; floor: at most; exact: the target itself, "
        "with a smaller last micro-step",
        short="r",
        default="round",
        choices=ROUNDINGS,
    ),
    # To solve for something else.
    Field(
        "target_tokens",
        COUNT,
        "solve",
        "Target in tokens",
        "tokens that you want per update, instead of sequences",
        aliases=("tokens_per_batch", "total_batch_tokens"),
    ),
    Field(
        "accum_steps",
        COUNT,
        "solve",
        "Accumulation steps",
        "micro-steps per update, where they are fixed and something else is to be found",
        short="a",
        aliases=("gradient_accumulation_steps", "grad_accum", "accumulate_grad_batches", "grad_accum_steps"),
    ),
    Field(
        "max_micro_batch",
        COUNT,
        "solve",
        "Largest micro-batch",
        "what fits on a GPU; the plan then picks the micro-batch itself",
        aliases=("max_micro_batch_size",),
    ),
    Field(
        "vary",
        CHOICE,
        "solve",
        "Also vary",
        "look for better choices on other GPU counts, or with larger micro-batches, too",
        choices=VARIABLE,
    ),
    # Where a model is split over GPUs.
    Field(
        "tensor_parallel",
        COUNT,
        "parallel",
        "Tensor parallel",
        "GPUs that share each layer",
        default=1,
        aliases=("tp", "tensor_model_parallel_size", "tensor_parallel_size"),
    ),
    Field(
        "pipeline_parallel",
        COUNT,
        "parallel",
        "Pipeline parallel",
        "pipeline stages",
        default=1,
        aliases=("pp", "pipeline_model_parallel_size", "pipeline_parallel_size"),
    ),
    Field(
        "context_parallel",
        COUNT,
        "parallel",
        "Context parallel",
        "GPUs that share each sequence",
        default=1,
        aliases=("cp", "context_parallel_size"),
    ),
    Field(
        "virtual_pipeline",
        COUNT,
        "parallel",
        "Virtual pipeline",
        "stages per rank under interleaving",
        default=1,
        aliases=("vpp", "virtual_pipeline_parallel_size"),
    ),
    # What the batch means for a run.
    Field(
        "dataset_size",
        COUNT,
        "data",
        "Dataset size",
        "sequences in one epoch (after packing)",
        aliases=("num_samples", "train_samples"),
    ),
    Field("epochs", RATIO, "data", "Epochs", "passes over the dataset", aliases=("num_train_epochs", "num_epochs")),
    Field("token_budget", COUNT, "data", "Token budget", "tokens to train on", aliases=("total_tokens",)),
    Field(
        "updates",
        COUNT,
        "data",
        "Updates",
        "optimizer updates in all",
        aliases=("steps", "iterations", "max_steps", "train_iters", "num_iterations"),
    ),
    Field(
        "last_group",
        CHOICE,
        "data",
        "Short last group",
        "step: an update of its own; drop: left out; carry: goes on into the next epoch",
        default="step",
        choices=LAST_GROUPS,
    ),
    Field(
        "warmup_updates",
        COUNT,
        "data",
        "Warm-up updates",
        "updates of learning-rate warm-up",
        aliases=("warmup_steps", "warmup_iters"),
        minimum=0,
    ),
    Field("warmup_tokens", COUNT, "data", "Warm-up tokens", "tokens of learning-rate warm-up", minimum=0),
    Field(
        "warmup_fraction",
        RATIO,
        "data",
        "Warm-up fraction",
        "share of all updates, 0 to 1",
        aliases=("warmup_ratio",),
        minimum=0,
    ),
    Field(
        "supervised_fraction",
        RATIO,
        "data",
        "Supervised fraction",
        "share of the tokens that carry loss (no prompt, no padding), 0 to 1",
        minimum=0,
    ),
    Field(
        "params",
        COUNT,
        "data",
        "Parameters",
        "of the model, for tokens per parameter and gradient memory",
        aliases=("num_params", "parameters"),
    ),
    Field(
        "gradient_dtype",
        CHOICE,
        "data",
        "Gradient dtype",
        "the type in which gradients are summed",
        aliases=("dtype", "grad_dtype"),
        choices=GRADIENT_DTYPES,
    ),
    # What a known-good run used.
    Field(
        "learning_rate",
        REAL,
        "rate",
        "Learning rate",
        "a peak learning rate that worked at the base batch",
        aliases=("lr", "peak_learning_rate"),
    ),
    Field(
        "base_batch",
        COUNT,
        "rate",
        "Base batch",
        "the batch at which that learning rate worked, in sequences",
        aliases=("base_batch_size",),
    ),
)

BY_NAME = {field.name: field for field in FIELDS}

NAME_OF = {alias: field.name for field in FIELDS for alias in (field.name, *field.aliases)}
"""Every spelling that is understood, with the one name that it stands for."""
