"""The plan in the words of the common trainers: one line, or a few, to paste into each.

`rows` lists the trainers, with their keys beside the plan's values; `write` makes text of them. Where a trainer cannot
express the plan, the text is empty and the note says why, rather than a line that trains with another batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradaccum.show.loop.head import GPUS_PER_NODE
from gradaccum.show.settings.rows import TRAINERS
from gradaccum.units import show_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gradaccum.core.plan import Plan
    from gradaccum.show.settings.rows import Keys, Trainer

__all__ = ["Setting", "trainer_settings"]


@dataclass(frozen=True)
class Setting:
    """What to write for one trainer.

    language: of the text; json, python, shell, toml or yaml.
    text: "" where the trainer cannot express the plan. note: what to know, or why there is no text.
    source: where the keys are documented.
    """

    trainer: str
    language: str
    text: str
    note: str
    source: str


def trainer_settings(plan: Plan) -> tuple[Setting, ...]:
    """The settings of every trainer for this plan, in the order of TRAINERS."""
    return tuple([_setting(plan, trainer) for trainer in TRAINERS])


def _setting(plan: Plan, trainer: Trainer) -> Setting:
    values = plan_values(plan)
    keys = trainer.pipeline_keys if trainer.pipeline_keys and plan.pipeline_parallel > 1 else trainer.keys
    text, note = "", _refusal(plan, trainer, keys)
    if not note:
        text = trainer.write([(section, key, values[ours]) for section, key, ours in keys if ours in values])
        note = trainer.note.format(**values)
    return Setting(trainer.name, trainer.language, text, note, trainer.source)


def plan_values(plan: Plan) -> dict[str, int]:
    """What a trainer may ask, by our names. What is unknown is left out, and so are degrees of 1, which all assume."""
    micro, steps, batch, length = plan.micro_batch, plan.accum_steps, plan.effective_batch, plan.sequence_length
    values = {
        "micro_batch": micro,
        "accum_steps": steps,
        "effective_batch": batch,
        "num_gpus": plan.num_gpus,
        "data_parallel": plan.data_parallel,
        "tensor_degree": plan.tensor_parallel,
        "pipeline_degree": plan.pipeline_parallel,
        "rank_batch": micro * steps,
        "all_steps": steps * plan.data_parallel,
    }
    if length is not None:
        values.update(sequence_length=length, micro_tokens=micro * length, update_tokens=batch * length)
    for name in ("tensor_parallel", "pipeline_parallel", "context_parallel", "virtual_pipeline"):
        if getattr(plan, name) > 1:
            values[name] = getattr(plan, name)
    if plan.num_gpus <= GPUS_PER_NODE:
        values["devices"] = plan.num_gpus
    elif plan.num_gpus % GPUS_PER_NODE == 0:
        values.update(devices=GPUS_PER_NODE, nodes=plan.num_gpus // GPUS_PER_NODE)
    return values


def _refusal(plan: Plan, trainer: Trainer, keys: Keys) -> str:
    """Why the trainer cannot express the plan; "" where it can."""
    degrees = ("tensor", plan.tensor_parallel), ("pipeline", plan.pipeline_parallel), ("context", plan.context_parallel)
    unknown = [name for name, size in degrees if size > 1 and name not in trainer.degrees]
    if unknown:
        return f"No setting: the batch arithmetic of {trainer.name} knows no {' or '.join(unknown)} parallelism."
    batch, full = plan.effective_batch, plan.device_batch
    is_uneven = batch != full * plan.accum_steps  # rounding "exact", and a remainder
    if is_uneven and not trainer.splits_batch:
        below = batch // full * full
        nearest = " or ".join([show_count(each) for each in (below, below + full) if each])
        return f"No setting: it has no smaller last micro-step, which {show_count(batch)} needs. Nearest: {nearest}."
    if is_uneven and batch % plan.num_gpus:
        gpus = show_count(plan.num_gpus)
        return f"No setting: it gives every GPU the same share, and {gpus} GPUs do not divide {show_count(batch)}."
    if plan.sequence_length is None and [ours for _, _, ours in keys if ours == "update_tokens"]:
        return "No setting: it counts in tokens. Give a sequence length."
    return ""
