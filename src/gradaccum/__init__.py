"""gradaccum: from a target batch to a verified training step, on the GPUs that you have.

    >>> import gradaccum
    >>> plan = gradaccum.plan(micro_batch=4, num_gpus=8, target_batch=500, sequence_length=2048)
    >>> plan.accum_steps, plan.effective_batch, plan.drift, plan.tokens_per_step
    (16, 512, 12, 1048576)

Importing the package loads this file alone; each name below is fetched when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Unpack

    from gradaccum.catalog.gpus import Gpu as Gpu
    from gradaccum.catalog.gpus import find_gpu as find_gpu
    from gradaccum.catalog.models import Model as Model
    from gradaccum.catalog.models import find_model as find_model
    from gradaccum.catalog.runs import PublishedRun as PublishedRun
    from gradaccum.catalog.runs import find_run as find_run
    from gradaccum.catalog.runs import published_runs as published_runs
    from gradaccum.core.choices import Choice as Choice
    from gradaccum.core.choices import Neighbour as Neighbour
    from gradaccum.core.findings import Finding as Finding
    from gradaccum.core.plan import Plan as Plan
    from gradaccum.core.request import Inputs
    from gradaccum.core.request import Request as Request
    from gradaccum.core.sweep import Row as Row
    from gradaccum.errors import GradaccumError as GradaccumError
    from gradaccum.errors import InputError as InputError
    from gradaccum.errors import Problem as Problem
    from gradaccum.memory.answer import Fit as Fit
    from gradaccum.show.loop import training_loop as training_loop

__version__ = "0.1.0"

_HOME = {
    "Choice": "core.choices",
    "Fit": "memory.answer",
    "Finding": "core.findings",
    "GradaccumError": "errors",
    "Gpu": "catalog.gpus",
    "InputError": "errors",
    "Model": "catalog.models",
    "Neighbour": "core.choices",
    "Plan": "core.plan",
    "Problem": "errors",
    "PublishedRun": "catalog.runs",
    "Request": "core.request",
    "Row": "core.sweep",
    "find_gpu": "catalog.gpus",
    "find_model": "catalog.models",
    "find_run": "catalog.runs",
    "published_runs": "catalog.runs",
    "training_loop": "show.loop",
}
"""Where each public name lives."""

__all__ = sorted([*_HOME, "fit", "plan", "table"])


def plan(*, preset: str | None = None, **inputs: Unpack[Inputs]) -> Plan:
    """The plan for one update: accumulation steps, the batch that you really get, and what to know about it.

    Of target_batch (or target_tokens), micro_batch, num_gpus and accum_steps give three, and the fourth is solved for.
    Values are integers, or text such as `4M`; docs/python.md lists every input. `preset` starts from a published
    run, which the other inputs override. Raises InputError where the input gives no plan.
    """
    _install_display()
    from gradaccum.core.plan import make_plan
    from gradaccum.core.request import read_inputs

    return make_plan(read_inputs(_with_preset(preset, inputs)))


def table(*, preset: str | None = None, **inputs: object) -> tuple[Row, ...]:
    """Many plans as rows, best first. Each input may be a list, a range, or text such as `8,16,32` and `1..16`.

    Raises InputError where a value is nonsense, no combination gives a plan, or there are more than 10,000.
    """
    from gradaccum.core.sweep import sweep

    return sweep(_with_preset(preset, inputs))


def fit(
    *,
    model: Model | Mapping[str, object] | Callable[..., object] | str,
    gpu: Gpu | str | int,
    target_batch: int | str | None = None,
    engine: str | None = None,
    **how: Any,
) -> Fit:
    """The largest micro-batch that a GPU holds, and where its memory goes, known before the run.

    model: a name such as `llama-3.1-8b`, a Hugging Face config as a dict or as the path of a config.json; or, followed
    by a trace, a torch module, a function that returns (model, batch, loss) for a micro-batch, or such a function's
    name, `package.module:function`. gpu: a name, or bytes. target_batch: sequences of one update, for the plan.
    engine: `closed-form`, `trace`, or `both`, for a named model; by default the closed form.
    how: sequence_length (2048 tokens if not given), num_gpus, accum_steps, dtype, optimizer, checkpointing, lora_rank,
    strategy, tensor_parallel and more; with a module its sample `batch` and `loss`; with a trace `allocator`, the words
    of PYTORCH_ALLOC_CONF, and `time_limit` in seconds. See docs/fit.md.
    Raises InputError for what is not known, or makes no sense.
    """
    _install_fit_display()
    from gradaccum.memory.fit import fit as largest
    from gradaccum.memory.question import read_question

    asked = read_question(model, gpu, target_batch, engine, how)
    if asked.setup is None:
        from gradaccum.torch.fit import fit_own

        return fit_own(model, asked.gpu, target_batch=asked.target_batch, **asked.how)
    if asked.engine == "closed-form":
        return largest(asked.setup, asked.gpu, asked.target_batch)
    from gradaccum.torch.fit import fit_setup

    both, traced = asked.engine == "both", asked.traced
    return fit_setup(asked.setup, asked.gpu, both=both, config=asked.config, target_batch=asked.target_batch, **traced)


def _with_preset(preset: str | None, inputs: Mapping[str, object]) -> Mapping[str, object]:
    if preset is None:
        return inputs
    from gradaccum.catalog.runs import find_run
    from gradaccum.core.request import over_preset

    return over_preset(find_run(preset).inputs(), inputs)


def _install_display() -> None:
    """Hand the renderer to core's types, so that a plan shows itself in a notebook and when printed."""
    from gradaccum.core.plan import DISPLAY

    if not DISPLAY:
        DISPLAY["text"] = _text
        DISPLAY["html"] = _html


def _install_fit_display() -> None:
    """The same for a fit."""
    from gradaccum.memory.answer import DISPLAY

    if not DISPLAY:
        DISPLAY["text"] = _fit_text
        DISPLAY["html"] = _fit_html


def _fit_text(fit: Fit) -> str:
    from gradaccum.show.fit import fit_text

    return fit_text(fit.to_dict(), fit.gpu.name, fit.setup.words)


def _fit_html(fit: Fit) -> str:
    from gradaccum.show.fit_notebook import fit_html

    return fit_html(fit.to_dict(), fit.gpu.name, fit.setup.words)


def _text(plan: Plan) -> str:
    from gradaccum.show.text import plan_text

    return plan_text(plan)


def _html(plan: Plan) -> str:
    from gradaccum.show.notebook import plan_html

    return plan_html(plan)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'gradaccum' has no attribute {name!r}")
    import importlib

    if name == "Plan":
        _install_display()
    if name == "Fit":
        _install_fit_display()
    value = getattr(importlib.import_module(f"gradaccum.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
