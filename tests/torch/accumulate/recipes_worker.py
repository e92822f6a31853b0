"""Runs the blocks of docs/recipes.md as they stand on every rank: recipes_worker.py FOLDER. Rank r writes r.json there.

Beside each stands the truth: plain PyTorch on one process, which sees every group as one batch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from tests.structure import markdown  # noqa: E402

Names = dict[str, Any]


def classifier(names: Names, world: int) -> torch.nn.Module:
    """The two of a linear layer: the samples in their order, 4 x 4 of them on each rank for one update."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=10)
    whole = [each.split(16 * world) for each in names["dataset"].tensors]
    for inputs, targets in zip(*whole, strict=True):
        loss = cross_entropy(model(inputs), targets, reduction="sum") / (targets != -100).sum()
        one_update(model, optimizer, loss)
        scheduler.step()
    return model


def language_model(names: Names, world: int) -> torch.nn.Module:
    """The targets are shifted here, and the logits of all eight texts are those of one padded batch."""
    torch.manual_seed(0)
    model: torch.nn.Module = type(names["model"])(names["model"].config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    texts = names["texts"]
    for first in range(0, len(texts), 8):
        batch = names["padded"](texts[first : first + 8])
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        targets = batch["labels"][:, 1:]
        total = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        one_update(model, optimizer, total / sum(len(each) - 2 for each in texts[first : first + 8]))
    return model


def one_update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """As everybody writes it."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def distance(found: torch.nn.Module, right: torch.nn.Module) -> float:
    """Of all parameters, relative, in the 2-norm."""
    ours, theirs = (torch.nn.utils.parameters_to_vector(each.parameters()).detach() for each in (found, right))
    return float((ours - theirs).norm() / theirs.norm())


def main(folder: str) -> None:
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:  # as `accelerate launch --cpu` and `fabric run --accelerator=cpu --devices=2 --strategy=ddp` tell it
        told = {"CLI_USED": "1", "ACCELERATOR": "cpu", "DEVICES": str(world), "STRATEGY": "ddp"}
        os.environ.update({f"LT_{name}": value for name, value in told.items()}, ACCELERATE_USE_CPU="true")
    blocks = markdown.blocks((ROOT / "docs" / "recipes.md").read_text(encoding="utf-8"), "python")
    truths = {"Accelerate": classifier, "Fabric": classifier, "causal LM": language_model}
    said = {}
    for (name, truth), block in zip(truths.items(), blocks, strict=True):
        if world > 1 and name == "causal LM":
            continue  # it stands on one process
        names: Names = {"__name__": "__main__"}
        exec(compile(block, name, "exec"), names)
        wrappers = [type(each).__name__ for each in (names["model"], names["optimizer"])]
        ranks = names["accumulator"].sync.world
        said[name] = {"apart": distance(names["model"], truth(names, world)), "wrappers": wrappers, "ranks": ranks}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(said))
    if world > 1:
        torch.distributed.barrier()
    os._exit(0)  # without the end of threads that PyTorch leaves: on a busy machine it may abort there


if __name__ == "__main__":
    main(*sys.argv[1:])
