"""A description becomes a plan, and a plan is plain data: `make_plan(Request) -> Plan`."""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.core.choices import Choice, Neighbour, better_choices, neighbours, split_drift
from gradaccum.core.findings import Facts, Finding
from gradaccum.core.pipeline import Pipeline, pipeline
from gradaccum.core.request import Request
from gradaccum.core.rules import findings
from gradaccum.core.scaling import ScaledRate, scaled_rates
from gradaccum.core.solve import solve
from gradaccum.core.training import Training, training
from gradaccum.units import number, rounded, rounded_ratio, show_count, show_percent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from typing import Any

SCHEMA_VERSION = 1


DISPLAY: dict[str, Callable[[Plan], str]] = {}
"""How a plan shows itself: "text" and "html". The package's top fills it, since core knows no renderer."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """One update, and what follows from it. Counts are exact integers; None does not apply or is unknown.

    request: what was asked, with every input that is not repeated here.
    micro_batch, device_batch, effective_batch, target_batch, drift, last_micro_batch: sequences.
    target_tokens, drift_tokens, tokens_per_step: tokens. drift and drift_tokens: one of them, by the target's unit.
    accum_steps: micro-steps per update. data_parallel: ranks.
    drift_percent: of the target, two decimals, as text.
    solved_for: which of target_batch, micro_batch, num_gpus, accum_steps was computed.
    """

    request: Request
    micro_batch: int
    num_gpus: int
    data_parallel: int
    target_batch: int | None
    target_tokens: int | None
    device_batch: int
    accum_steps: int
    effective_batch: int
    drift: int | None
    drift_tokens: int | None
    drift_percent: str
    tokens_per_step: int | None
    last_micro_batch: int
    solved_for: str | None
    neighbours: tuple[Neighbour, ...]
    better_choices: tuple[Choice, ...]
    training: Training
    pipeline: Pipeline | None
    scaled_rates: tuple[ScaledRate, ...]
    findings: tuple[Finding, ...]

    @property
    def rounding(self) -> str:
        """round, ceil, floor or exact."""
        return self.request.rounding

    @property
    def sequence_length(self) -> int | None:
        """Tokens per sequence."""
        return self.request.sequence_length

    @property
    def tensor_parallel(self) -> int:
        """GPUs that share each layer."""
        return self.request.tensor_parallel

    @property
    def pipeline_parallel(self) -> int:
        """Pipeline stages."""
        return self.request.pipeline_parallel

    @property
    def context_parallel(self) -> int:
        """GPUs that share each sequence."""
        return self.request.context_parallel

    @property
    def virtual_pipeline(self) -> int:
        """Stages per rank under interleaving."""
        return self.request.virtual_pipeline

    @property
    def params(self) -> int | None:
        """Parameters of the model."""
        return self.request.params

    @property
    def is_exact(self) -> bool:
        """Whether an update sees the target itself: drift 0."""
        return not (self.drift or self.drift_tokens)

    @property
    def drift_signed_percent(self) -> str:
        """`+2.40%`"""
        return ("+" if (self.drift or self.drift_tokens or 0) > 0 else "") + self.drift_percent + "%"

    def __repr__(self) -> str:
        micro, steps, ranks, batch = (
            show_count(count)
            for count in (self.micro_batch, self.accum_steps, self.data_parallel, self.effective_batch)
        )
        return (
            f"<Plan {micro} micro-batch x {ranks} ranks x {steps} accumulation = {batch}, {self.drift_signed_percent}>"
        )

    def __str__(self) -> str:
        return DISPLAY["text"](self) if "text" in DISPLAY else repr(self)

    def _repr_html_(self) -> str | None:
        """What a notebook shows."""
        return DISPLAY["html"](self) if "html" in DISPLAY else None

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, str]:
        """What a notebook may choose from: `text/plain`, as a terminal shows it, and `text/html`.

        include, exclude: MIME types, as IPython gives them. Nothing in include is no choice; exclude wins.
        """
        return mime_bundle(self, include, exclude)

    def link(self, page: str) -> str:
        """The address of the live page with this plan in it: `https://host/folder/?micro_batch=3`.

        page: where the page is, `https://`, `http://` or `file://`: a folder or its index.html. Its own `loop`,
        `weighting` and `embed` stay, as does a fragment. Raises InputError where page is no such address, or the plan
        does not go into one: numbers of more than 100 digits, a query of more than 2,000 characters.
        """
        from gradaccum.core.link import link  # not loaded for a plan alone

        return link(page, self.request)

    def to_dict(self) -> dict[str, object]:
        """The JSON contract: plain ints, strings, lists and None. `schema_version` is 1."""
        return _to_dict(self)


def mime_bundle(thing: Any, include: Container[str] | None, exclude: Container[str] | None) -> dict[str, str]:
    """What a notebook may choose from, of a thing that shows itself; see `Plan._repr_mimebundle_`."""
    bundle = {}
    for kind, show in (("text/plain", thing.__str__), ("text/html", thing._repr_html_)):
        if (not include or kind in include) and not (exclude and kind in exclude):
            shown = show()
            if shown is not None:
                bundle[kind] = shown
    return bundle


def make_plan(request: Request) -> Plan:
    """The plan for a request. Raises InputError where the input gives none: what, why, the nearest valid values."""
    return _plan(request, True)


def make_headline(request: Request) -> Plan:
    """The same without `better_choices` and `findings`, which are searched for: for who waits for the numbers alone."""
    return _plan(request, False)


def _plan(request: Request, whole: bool) -> Plan:
    sizes = solve(request)
    run = training(request, sizes.effective_batch)
    pipe = pipeline(request.pipeline_parallel, request.virtual_pipeline, sizes.accum_steps)
    better = better_choices(sizes, request.vary) if whole else ()
    drift, drift_tokens = split_drift(sizes.goal, sizes.drift)
    length = request.sequence_length
    return Plan(
        request=request,
        micro_batch=sizes.micro_batch,
        num_gpus=sizes.num_gpus,
        data_parallel=sizes.data_parallel,
        target_batch=None if sizes.goal.in_tokens else sizes.goal.amount,
        target_tokens=request.target_tokens,
        device_batch=sizes.device_batch,
        accum_steps=sizes.accum_steps,
        effective_batch=sizes.effective_batch,
        drift=drift,
        drift_tokens=drift_tokens,
        drift_percent=show_percent(sizes.drift, sizes.goal.amount),
        tokens_per_step=None if length is None else sizes.effective_batch * length,
        last_micro_batch=sizes.last_micro_batch,
        solved_for=sizes.solved_for,
        neighbours=neighbours(sizes),
        better_choices=better,
        training=run,
        pipeline=pipe,
        scaled_rates=()
        if request.learning_rate is None or request.base_batch is None
        else scaled_rates(request.learning_rate, request.base_batch, sizes.effective_batch),
        findings=findings(Facts(request, sizes, run, pipe, better)) if whole else (),
    )


def _to_dict(plan: Plan) -> dict[str, object]:
    request, run, pipe = plan.request, plan.training, plan.pipeline
    return {
        "schema_version": SCHEMA_VERSION,
        "micro_batch": plan.micro_batch,
        "num_gpus": plan.num_gpus,
        "tensor_parallel": plan.tensor_parallel,
        "pipeline_parallel": plan.pipeline_parallel,
        "context_parallel": plan.context_parallel,
        "virtual_pipeline": plan.virtual_pipeline,
        "data_parallel": plan.data_parallel,
        "max_micro_batch": request.max_micro_batch,
        "target_batch": plan.target_batch,
        "target_tokens": plan.target_tokens,
        "rounding": plan.rounding,
        "solved_for": plan.solved_for,
        "vary": request.vary,
        "device_batch": plan.device_batch,
        "accum_steps": plan.accum_steps,
        "effective_batch": plan.effective_batch,
        "drift": plan.drift,
        "drift_tokens": plan.drift_tokens,
        "drift_percent": plan.drift_percent,
        "sequence_length": plan.sequence_length,
        "tokens_per_step": plan.tokens_per_step,
        "last_micro_batch": plan.last_micro_batch,
        "bubble_percent": pipe and show_percent(pipe.bubble.numerator, pipe.bubble.denominator),
        "dataset_size": request.dataset_size,
        "epochs": number(request.epochs),
        "token_budget": request.token_budget,
        "updates": run.updates,
        "updates_per_epoch": run.updates_per_epoch,
        "last_group": request.last_group,
        "last_group_size": run.last_group_size,
        "warmup_updates": run.warmup_updates,
        "warmup_tokens": request.warmup_tokens,
        "warmup_fraction": number(request.warmup_fraction),
        "leftover_tokens": run.leftover_tokens,
        "tokens": run.tokens,
        "supervised_fraction": number(request.supervised_fraction),
        "loss_tokens_per_step": run.loss_tokens_per_step,
        "params": request.params,
        "tokens_per_param": run.tokens_per_param and rounded_ratio(run.tokens_per_param),
        "gradient_dtype": request.gradient_dtype,
        "learning_rate": request.learning_rate,
        "base_batch": request.base_batch,
        "scaled_rates": [
            {
                "rule": rate.rule,
                "learning_rate": rounded(rate.learning_rate),
                "holds_for": rate.holds_for,
                "advice": rate.advice,
                "source": rate.source,
            }
            for rate in plan.scaled_rates
        ],
        "findings": [finding.to_dict() for finding in plan.findings],
        "neighbours": [
            {
                "rounding": each.rounding,
                "accum_steps": each.accum_steps,
                "effective_batch": each.effective_batch,
                "drift": each.drift,
                "drift_tokens": each.drift_tokens,
            }
            for each in plan.neighbours
        ],
        "better_choices": [_choice_to_dict(choice) for choice in plan.better_choices],
    }


def _choice_to_dict(choice: Choice) -> dict[str, object]:
    return {
        "micro_batch": choice.micro_batch,
        "num_gpus": choice.num_gpus,
        "accum_steps": choice.accum_steps,
        "effective_batch": choice.effective_batch,
        "drift": choice.drift,
        "drift_tokens": choice.drift_tokens,
    }
