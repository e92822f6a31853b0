"""A model of the catalog, or of a config.json, as Transformers builds it: the step that the closed form describes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from gradaccum.catalog.models import NAMES, parse_config
from gradaccum.errors import InputError, Problem
from gradaccum.memory.setup import Setup
from gradaccum.torch.fit.optimizers import make_optimizer
from gradaccum.torch.trace import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gradaccum.catalog.models import Model

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KNOWN = {
    "checkpointing": ("none", "full"),
    "strategy": ("single", "ddp"),
    "dtype": tuple(DTYPES),
    "attention": ("flash", "eager"),
}
"""Words that this step can be built with."""
READ = {"model", "sequence_length", "micro_batch", "accum_steps", "num_gpus", "optimizer", *KNOWN}
"""The fields of a Setup that are looked at; another one has to have its default."""


def from_setup(setup: Setup, config: Mapping[str, object] | str | None = None) -> Callable[[int], Job]:
    """The step of a causal language model. config: the config.json that the model was read from, if it was.

    InputError without Transformers, and for what this step cannot be built with.
    """
    problems = list(_not_followed(setup))
    if problems:
        raise InputError(*problems)
    transformers = _transformers()
    made = _config(transformers, setup.model, config)

    def build(micro_batch: int) -> Job:
        model = _made(transformers, made, setup)
        count = sum(parameter.numel() for parameter in model.parameters())
        if count != setup.model.params:
            message = f"has {setup.model.params:,} parameters, and as Transformers builds it {count:,}"
            raise InputError(Problem("model", message))
        model.train()
        if setup.checkpointing == "full":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        shape = (micro_batch, setup.sequence_length)
        words, labels = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)

        def step() -> None:
            out = model(input_ids=words, labels=labels, use_cache=False)
            out.loss.backward()

        optimizer = make_optimizer(setup.optimizer, list(model.parameters()))
        return Job(module=model, optimizer=optimizer, step=step, batch=(words, labels))

    return build


def _made(transformers: Any, config: Any, setup: Setup) -> Any:
    attention = "eager" if setup.attention == "eager" else "sdpa"
    try:
        return transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=DTYPES[setup.dtype]
        )
    except ValueError as error:  # a family without fused attention
        said = str(error).partition(". ")[0]
        raise InputError(
            Problem("model", f"is not built by Transformers this way: {said}", ["--attention eager"])
        ) from None


def _not_followed(setup: Setup) -> list[Problem]:
    found = [
        Problem(name, f"is followed by a trace as {' or '.join(words)}, not as {getattr(setup, name)}", words)
        for name, words in KNOWN.items()
        if getattr(setup, name) not in words
    ]
    for each in dataclasses.fields(setup):
        if each.name not in READ and getattr(setup, each.name) != each.default:
            found.append(Problem(each.name, "is not followed by the trace of a named model: give module:function"))
    if setup.model.head != "lm":
        found.append(Problem("model", f"{setup.model.id} is no causal language model; give module:function"))
    return found


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        message = "needs Transformers to build a named model, and it is not installed: pip install transformers"
        raise InputError(Problem("engine", message, ["closed-form"])) from None
    transformers.logging.set_verbosity_error()
    return transformers


def _config(transformers: Any, model: Model, config: Mapping[str, object] | str | None) -> Any:
    """Transformers' own config: from a config.json, or from the model's sizes under the names of its family."""
    if config is not None:
        return transformers.AutoConfig.for_model(**{"model_type": model.family, **parse_config(config)})
    made = transformers.AutoConfig.for_model(model.family)
    for field, names in NAMES.items():
        for name in names:
            # A width of heads that is not the usual one may have no default to be found by.
            known = hasattr(model, field) and (field != "positions" or model.positions)
            if known and (hasattr(made, name) or name == "head_dim"):
                setattr(made, name, getattr(model, field))
    made.tie_word_embeddings = model.tied
    return made
