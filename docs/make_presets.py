"""Writes docs/presets.md from the catalog of published runs: `python docs/make_presets.py`."""

from __future__ import annotations

from pathlib import Path

from gradaccum.catalog import PublishedRun, published_runs
from gradaccum.core.fields import BY_NAME
from gradaccum.units import show_count, show_short

PAGE = Path(__file__).with_name("presets.md")

HEAD = """\
# Presets

Published training runs to start from: {count} rows, each with its source. `docs/make_presets.py` writes this page.

```console
$ gradaccum plan --preset bloom-176b --quiet
128
$ gradaccum plan --preset "llama 2 70b" --micro-batch 1 --num-gpus 64 --tp 8 --quiet
122
```

Your own inputs override a preset, and what says the same as one of yours gives way to it. Names are found whatever
their case, hyphens and spaces; the names in brackets are understood too.

A number marked * is in no source but follows from the others of its row. "Recalled" rows were not compared with their
source. Notes, learning rates and warm-ups of each row: `gradaccum.find_run(name)` in Python.
"""

COMPLETE = """
## Complete

These give a plan as they are, and the tests hold the plan against what was published: micro-batch x ranks x
accumulation steps is the batch.

| preset | parameters | batch | sequence | micro-batch x ranks x steps | GPUs | source |
| --- | ---: | ---: | ---: | ---: | --- | --- |
"""

PARTIAL = """
## With something to add

These leave out what the last but one column names; you give it.

| preset | parameters | batch | sequence | micro-batch | GPUs | add | source |
| --- | ---: | ---: | ---: | ---: | --- | --- | --- |
"""


def page() -> str:
    """The whole page."""
    runs = published_runs()
    complete = "".join(_complete(run) for run in runs if not run.missing)
    partial = "".join(_partial(run) for run in runs if run.missing)
    return HEAD.format(count=len(runs)) + COMPLETE + complete + PARTIAL + partial


def _complete(run: PublishedRun) -> str:
    micro_batch = "micro_batch_tokens" if run.unit == "tokens" else "micro_batch"
    factors = [_count(run, name) for name in (micro_batch, "data_parallel", "accum_steps")]
    return _row(*_beginning(run), " x ".join(factors), _gpus(run), _source(run))


def _partial(run: PublishedRun) -> str:
    missing = ", ".join(BY_NAME[name].flag[2:] for name in run.missing)
    return _row(*_beginning(run), _count(run, "micro_batch"), _gpus(run), missing, _source(run))


def _beginning(run: PublishedRun) -> tuple[str, str, str, str]:
    aliases = f" ({', '.join(run.aliases)})" if run.aliases else ""
    params = show_short(run.params) if run.params else ""
    return f"`{run.id}`{aliases}", params, _batch(run), _count(run, "sequence_length")


def _batch(run: PublishedRun) -> str:
    """In the unit in which it was published: sequences or images where it was, else tokens."""
    if run.target_batch is not None:
        return _count(run, "target_batch") + (" images" if run.unit == "images" else "")
    return _count(run, "tokens_per_step") + " tokens" if run.tokens_per_step else ""


def _gpus(run: PublishedRun) -> str:
    """`384: TP 4, PP 12`"""
    degrees = {"TP": run.tensor_parallel, "PP": run.pipeline_parallel, "CP": run.context_parallel}
    split = ", ".join(f"{name} {degree}" for name, degree in degrees.items() if degree and degree > 1)
    return ": ".join(each for each in (_count(run, "num_gpus"), split) if each)


def _count(run: PublishedRun, name: str) -> str:
    count = getattr(run, name)
    return "" if count is None else show_count(count) + ("*" if name in run.derived else "")


def _source(run: PublishedRun) -> str:
    source = run.source.replace("|", "/").replace("*", r"\*")
    return f"[{source}]({run.url})" + (", recalled" if run.recalled else "")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
