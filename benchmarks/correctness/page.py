"""docs/correctness.md, from the results."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.correctness.cases import CASES

OWNERS = {
    "accelerate": "huggingface/accelerate",
    "pytorch-lightning": "Lightning-AI/pytorch-lightning",
    "sentence-transformers": "UKPLab/sentence-transformers",
    "transformers": "huggingface/transformers",
}

HEAD = """# Who is right

Written by `python -m benchmarks.correctness`. Known failure cases of accumulating loops, through installed libraries,
on a CPU; cases marked 2 on two gloo ranks. Each cell is the gradient of every update as the optimizer saw it, beside
the right one: that of one concatenated batch. **Bold** is wrong, – does not apply. Most cases train one weight with the
loss w x, so that the gradient is the mean of x; where x is not said, it is 1, 10, 100 and so on. Of larger models it is
shown how far the gradient is off, in the 2-norm.

{versions}.

"""

MIDDLE = """

## How the loops are written

As each library's guide says, with a mean loss for each micro-batch:

- **gradaccum**: [Accumulator](accumulator.md), with `group.backward_mean`; `group.skip` where a micro-batch is left
  out, `group.cached` for the contrastive loss, `accumulate_in=torch.float32` for bf16, `grad_norm=True`.
- **Accelerate**: `with accelerator.accumulate(model)`. **Counting** is the way of the same guide for samples of
  variable size: the loop's author counts the targets of all micro-batches and ranks, and undoes the library's division.
- **Fabric**: `no_backward_sync` around forward and backward. Its guide leaves the division to the loop's author, who
  divides by the micro-batches of an update here, as in plain PyTorch loops. The guide's `iteration % 8 != 0` makes its
  first update of one micro-batch; here the count starts with 1.
- **Lightning**: `accumulate_grad_batches` and `gradient_clip_val` of its Trainer; an epoch is left by a hook that
  answers -1, a micro-batch by a `training_step` that returns None.
- **HF Trainer**: a head that divides by `num_items_in_batch`, as those of Transformers do; one without that argument
  where the caller's loss is a sum or divided already, and for the contrastive loss.

## What to know

"""

NOTES = {
    "A3": "The guide of Fabric has no line for the end of an epoch, so that the last two micro-batches make no update.",
    "A4": "To drop the three, as Lightning does, is right too. Accelerate and a modulo of one's own mix two epochs.",
    "A6": "The Trainer leaves the division to every head that takes keywords; whether one does divide, nobody checks.",
    "A8": "Here we are as wrong as the others: a runtime cannot see that its caller has divided. With us there is no "
    "reason to: `backward` takes the sum.",
    "A9": "`group.backward` takes a sum and its weight. The others expect a mean, and their guides say so.",
    "A10": "The others divide by a micro-batch that has nothing. What they log is NaN.",
    "A11": "An update of nothing still moves momentum and weight decay. We make none, and say `no weight`.",
    "A15": "Where the norm is known (`clip_norm`, `scaler` or `grad_norm=True`) we skip the update and go on; without "
    "it we would step too. After the NaN the weight is NaN, whatever comes next.",
    "A31": "Accelerate counts by a modulo that does not begin anew: 3 micro-batches are divided by 5, and the last 2.",
    "A32": "With a plain `DataLoader`, which Lightning begins anew; one with a state of its own it would save. The "
    "Trainer skips as many updates as were made, times the new count.",
    "A21": "The others stop at an assertion inside PyTorch; we refuse before anything has run, and name two ways out.",
    "A22": "Only with `accumulate_in`; without it ours is 0.25 too.",
    "A27": "Plain accumulation cannot do this. sentence-transformers has cached losses.",
}

TAIL = """
## Not run here

Of the same list: tensor and context parallelism (A12, A13: trl#7100, verl#6049), pipelines (A25, A26: torchtitan#1733,
DeepSpeed#8154) and DeepSpeed's engine (A17, A24: DeepSpeed#8588, DeepSpeed#7981), CUDA graphs (A36: pytorch#96693) and
half-precision sharding (A19, A20, A23), which need what a CPU has not or a library that is not among these; the search
for a micro-batch (A30), planning (A33, A34: ludwig, DeepSpeed#8237) and validation (A35), which are no matter of an
update's gradient; a cached loss over gathered representations (A28, A29: tevatron#30, GradCache), which is not in these
libraries. Several models (A5: accelerate#668) are right in Accelerate's own `accumulate(*models)`; an optimizer in the
backward pass (A37: pytorch#124523) leaves no loop to write.
What ours does there is in `tests/torch/accumulate/test_failure_cases.py`.
"""


def page(result: dict[str, Any]) -> str:
    """The whole text."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    notes = "\n".join(f"- **{name}**: {text}" for name, text in NOTES.items() if name in result["cases"])
    return HEAD.format(versions=versions) + table_of(result["cases"]) + MIDDLE + notes + "\n" + TAIL


def table_of(found: dict[str, Any]) -> str:
    """One row for each case."""
    names = list(next(iter(found.values()))["loops"])
    lines = [["", "case", "right", *names], ["---"] * (3 + len(names))]
    for case in CASES:
        if case.name not in found:
            continue
        row = found[case.name]
        where = f" ({_linked(case.source)})" if case.source else ""
        head = f"{case.name}, 2" if case.ranks > 1 else case.name
        cells = [_cell(row["loops"][name]) for name in names]
        lines.append([head, case.what + where, _numbers(row["right"]), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(outcome: dict[str, Any]) -> str:
    if outcome["holds"] is None:
        return "–"
    text = "refused" if "refused" in outcome else "breaks" if "error" in outcome else _numbers(outcome["found"])
    return text if outcome["holds"] else f"**{text}**"


def _numbers(values: list[Any]) -> str:
    return ", ".join(_number(each) for each in values) if values else "no update"


def _number(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['off']:.0%} off" if value["off"] > 1e-6 else "equal"
    if isinstance(value, list):
        return f"({', '.join(_number(each) for each in value)})"
    return "NaN" if value is None else f"{value:g}"


def _linked(source: str) -> str:
    """`accelerate#668` as a link to the thread."""
    found = re.fullmatch(r"([\w./-]+)#(\d+)", source)
    if found is None:
        return source
    where = OWNERS.get(found[1], found[1])
    return f"[{source}](https://github.com/{where}/issues/{found[2]})"
