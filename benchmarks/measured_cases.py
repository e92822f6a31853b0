"""The measured runs that predictions are held against, in the words of `gradaccum fit`.

Two files, whose README says where their numbers come from: measured/fitcheck_t4.csv has whole recipes with versions,
which can be traced too; measured/published.csv has the rows of other sources that say enough for the closed form. And
what benchmarks/gpu measured and traced wherever a GPU was at hand, if it is there: measured/gpu/compare.json.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.common import ROOT
from benchmarks.gpu.cases import Case as GpuCase
from gradaccum.catalog.gpus import Gpu, find_gpu
from gradaccum.catalog.models import Model, find_model, read_config
from gradaccum.errors import InputError, Problem
from gradaccum.memory.evidence import Regime, regime
from gradaccum.memory.setup import Setup

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MEASURED = ROOT / "benchmarks" / "measured"
RECIPES, PUBLISHED, NOT_USED = (MEASURED / name for name in ("fitcheck_t4.csv", "published.csv", "not_used.csv"))
OWN = MEASURED / "gpu" / "compare.json"

CAPACITY = 14_912 * 2**20
"""Bytes of the T4 that was measured."""

QUANTITIES = ("allocated", "reserved", "process")
COUNTS = "sequence_length micro_batch accum_steps num_gpus lora_rank tensor_parallel pipeline_parallel".split()
WORDS = "dtype optimizer checkpointing attention strategy lora_targets quantization".split()


@dataclass(frozen=True)
class Case:
    """One measured run. how: the fields of a Setup, those alone that the row says. code: whose code ran the step.

    ran: False where memory was not enough. measured: bytes by quantity; empty where only the outcome is known.
    context: bytes outside the allocator, where they were measured. row: its number in RECIPES, where it is from there.
    traced: what its trace said, where that was made with the measurement.
    """

    source: str
    model: Model
    gpu: Gpu
    how: Mapping[str, Any]
    code: str
    ran: bool
    measured: Mapping[str, int]
    context: int | None = None
    row: int | None = None
    traced: Mapping[str, Any] | None = None

    @property
    def regime(self) -> Regime:
        """What its error has in common with others."""
        return regime(dict(self.how))

    @property
    def capacity(self) -> int:
        """Bytes that programs have of the device."""
        return self.gpu.memory_bytes if self.gpu.usable_bytes is None else self.gpu.usable_bytes

    @property
    def words(self) -> str:
        """The run in a few words."""
        how = self.how
        parts = [str(self.model.id), f"{how['micro_batch']} x {how['sequence_length']}", str(self.regime)]
        return ", ".join(parts if how["checkpointing"] == "none" else [*parts, "checkpointed"])

    def setup(self) -> Setup:
        """The question for the closed form. InputError where it has no word for something in the run."""
        known = {field.name for field in dataclasses.fields(Setup)}
        unknown = [name for name in self.how if name not in known]
        if unknown:
            raise InputError(*[Problem(name, "is no word of the closed form") for name in unknown])
        return Setup(model=self.model, **self.how)


def cases() -> list[Case]:
    """All of them: the whole recipes, then the others, then our own."""
    recipes = read(RECIPES)
    return [*map(_recipe, range(len(recipes)), recipes), *map(_published, read(PUBLISHED)), *own_cases(OWN)]


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file of measured/, as text, in its order."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _recipe(number: int, row: Mapping[str, str]) -> Case:
    attention = {"eager": "eager", "sdpa": "efficient"}[row["attention"]]
    how = {"sequence_length": int(row["seq_len"]), "micro_batch": int(row["micro_batch"]), "accum_steps": 1}
    quantised = {} if row["quantization"] == "none" else {"quantization": row["quantization"]}
    return Case(
        source=row["source"],
        model=_model_of(row),
        gpu=dataclasses.replace(find_gpu("t4-16gb"), usable_bytes=CAPACITY),
        how={
            **how,
            "dtype": "fp16",
            "checkpointing": "full",
            "attention": attention,
            "lora_rank": int(row["lora_rank"]),
            "lora_targets": "attention",
            **quantised,
        },
        code="transformers",
        ran=row["outcome"] == "ran",
        measured=_measured(row),
        context=int(row["context_bytes"]),
        row=number,
    )


def _model_of(row: Mapping[str, str]) -> Model:
    """The architecture of a recipe, from its shapes. ValueError where it has not the parameters that were counted."""
    kind = next((kind for kind in ("qwen2", "mistral") if kind in row["model"].lower()), "llama")
    config = {
        "model_type": kind,
        "hidden_size": int(row["hidden"]),
        "num_hidden_layers": int(row["layers"]),
        "num_attention_heads": int(row["heads"]),
        "num_key_value_heads": int(row["kv_heads"]),
        "vocab_size": int(row["vocab"]),
        "intermediate_size": int(row["ffn"]),
        "tie_word_embeddings": row["tied"] == "1",
        "max_position_embeddings": 8192,
    }
    model = read_config(config, row["model"].rpartition("/")[2].lower())
    if model.params != int(row["params"]):
        raise ValueError(f"{row['model']} has {row['params']} parameters, and not {model.params}")
    return model


def _published(row: Mapping[str, str]) -> Case:
    how: dict[str, Any] = {name: int(row[name]) for name in COUNTS if row[name]}
    how.update({name: row[name] for name in WORDS if row[name]})
    if row["budget_bytes"]:
        gpu = dataclasses.replace(find_gpu("a100-sxm-80gb"), usable_bytes=int(row["budget_bytes"]))
    else:
        gpu = find_gpu(row["gpu"])
    return Case(
        source=row["source"],
        model=read_config(row["config"], row["model"]) if row["config"] else find_model(row["model"]),
        gpu=gpu,
        how=how,
        code=row["code"],
        ran=row["outcome"] == "ran",
        measured=_measured(row),
    )


def _measured(row: Mapping[str, str]) -> dict[str, int]:
    return {name: int(row[f"{name}_bytes"]) for name in QUANTITIES if row[f"{name}_bytes"]}


def own_cases(path: Path) -> list[Case]:
    """What benchmarks/gpu/compare.py wrote: the runs of models of the catalog, not compiled. None without the file."""
    if not path.exists():
        return []
    found = map(_own, json.loads(path.read_text(encoding="utf-8"))["rows"])
    return [case for case in found if case is not None]


def _own(result: Mapping[str, Any]) -> Case | None:
    run = GpuCase(**result["fields"])
    if run.plain or run.compiled:
        return None
    environment = result["environment"]
    adapters = {"lora_rank": run.lora_rank, "lora_targets": "all-linear"} if run.lora_rank else {}
    kind, _, dtype = run.dtype.rpartition("-")
    capacity = run.card_gb * 2**30 or environment["total_memory"]
    said = result["predicted"]
    return Case(
        source=f"benchmarks/gpu on {environment['device']}",
        model=run.shape,
        gpu=dataclasses.replace(
            find_gpu(f"{capacity} bytes"), capability=".".join(map(str, environment["capability"]))
        ),
        how={
            "sequence_length": run.sequence_length or run.shape.positions,
            "micro_batch": run.micro_batch,
            "accum_steps": run.accum_steps,
            "dtype": f"{dtype}-mixed" if kind == "amp" else run.dtype,
            "optimizer": run.optimizer,
            "checkpointing": run.checkpointing,
            "attention": {"sdpa": "flash"}.get(run.attention, run.attention),
            **adapters,
        },
        code="transformers",
        ran=result["status"] == "ok",
        measured={name: result[f"{name}_bytes"] for name in ("allocated", "reserved")}
        if result["status"] == "ok"
        else {},
        context=result["context_bytes"],
        traced={"why": said["why"]} if said["status"] == "failed" else _bytes_of(said),
    )


def _bytes_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """A trace's figures; reserved_bytes is None where it was out of memory."""
    return {**said, "reserved_bytes": said["reserved_bytes"] if said["status"] == "ok" else None}
