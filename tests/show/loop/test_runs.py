"""The shown loops: the very text is executed, and its gradients are those of one concatenated batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import gradaccum
from gradaccum.show.loop import training_loop
from tests.show.loop.cases import FOUR_RANKS, MISTAKES, MISTAKES_OF_ONE, ONE_RANK, TWO_RANKS, Case
from tests.torchrun import torchrun

torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]


# One process.


def names(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


@pytest.mark.parametrize("case", ONE_RANK, ids=names(ONE_RANK))
def test_one_gpu_has_the_gradient_of_one_batch(case: Case):
    from tests.show.loop import worker

    assert worker.run(case) == ""


@pytest.mark.parametrize("case", MISTAKES_OF_ONE, ids=names(MISTAKES_OF_ONE))
def test_a_mistake_on_one_gpu_is_noticed(case: Case):
    from tests.show.loop import worker

    assert worker.run(case).startswith(("update 0: ", "update 1: ", "6 updates instead of 2"))


# Several processes: one launch for many cases, since the start is what takes the time.


def results(processes: int, cases: str, folder: Path) -> dict[str, list[str]]:
    """For each case what each rank found wrong."""
    torchrun(processes, str(FOLDER / "worker.py"), cases, str(folder))
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return results(2, "TWO_RANKS,MISTAKES", tmp_path_factory.mktemp("two_ranks"))


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return results(4, "FOUR_RANKS", tmp_path_factory.mktemp("four_ranks"))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", names(TWO_RANKS))
def test_two_ranks_have_the_gradient_of_one_batch(two_ranks: dict[str, list[str]], case: str):
    assert two_ranks[case] == ["", ""]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", names(MISTAKES))
def test_a_mistake_is_noticed(two_ranks: dict[str, list[str]], case: str):
    for found in two_ranks[case]:
        assert found.startswith(("update 0: ", "update 1: ", "reductions of each update: "))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", names(FOUR_RANKS))
def test_four_ranks_have_the_gradient_of_one_batch(four_ranks: dict[str, list[str]], case: str):
    assert four_ranks[case] == ["", "", "", ""]


SCRIPT = """

if __name__ == "__main__":
    import sys

    from torch import nn
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    torch.manual_seed(0)
    model = set_up(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=20)
    inputs = torch.randn(64, 3)
    dataset = TensorDataset(inputs, inputs @ torch.tensor([[1.0], [2.0], [3.0]]))
    losses = []
    for epoch in range(10):
        sampler = DistributedSampler(dataset)
        sampler.set_epoch(epoch)
        loader = DataLoader(dataset, MICRO_BATCH, sampler=sampler)
        losses += train_epoch(model, loader, nn.functional.mse_loss, optimizer, scheduler)
    with open(f"{sys.argv[1]}.{dist.get_rank()}", "w") as file:
        file.write(" ".join(str(loss.item()) for loss in losses))
    dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_text_is_a_script_that_its_first_lines_say_how_to_start(tmp_path: Path):
    text = training_loop(gradaccum.plan(micro_batch=4, num_gpus=2, target_batch=16))
    start = "# Start it with: torchrun --nproc-per-node=2 train.py\n"
    assert start in text
    (tmp_path / "train.py").write_text(text + SCRIPT)
    torchrun(2, "train.py", str(tmp_path / "losses"), folder=tmp_path)
    of_rank = [(tmp_path / f"losses.{rank}").read_text() for rank in range(2)]
    assert of_rank[0] == of_rank[1]
    losses = [float(loss) for loss in of_rank[0].split()]
    assert len(losses) == 10 * 64 // 16
    assert losses[-1] < losses[0] / 100


# The samples of an uneven update.


def deal(plan: gradaccum.Plan, weighting: str, samples: int) -> list[list[Any]]:
    """What `micro_batches` of the text yields on each rank, for a dataset of the numbers 1 to `samples`."""
    namespace: dict[str, Any] = {}
    exec(training_loop(plan, weighting=weighting), namespace)
    numbers = torch.arange(1, samples + 1)
    dataset = torch.utils.data.TensorDataset(numbers, numbers)
    ranks = range(plan.data_parallel)
    if plan.data_parallel == 1:
        return [list(namespace["micro_batches"](dataset, 5))]
    return [list(namespace["micro_batches"](dataset, rank, 5)) for rank in ranks]


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 60), st.integers(0, 40))
def test_an_exact_update_deals_every_sample_once(micro: int, gpus: int, target: int, more: int):
    plan = gradaccum.plan(micro_batch=micro, num_gpus=gpus, target_batch=target, rounding="exact")
    assume(plan.effective_batch != plan.device_batch * plan.accum_steps)
    samples = 2 * target + more % target
    dealt = deal(plan, "tokens", samples)
    steps = [[[int(x) for x in targets if x != -100] for _, targets in rank] for rank in dealt]
    assert len({len(rank) for rank in steps}) == 1
    assert sorted(x for rank in steps for share in rank for x in share) == list(range(1, samples + 1))
    for step in range(len(steps[0])):
        shares = [len(rank[step]) for rank in steps]
        assert shares == sorted(shares, reverse=True)  # the first ranks take one more
        assert max(shares) - min(shares) <= 1
        assert max(shares) <= micro
    for update in range(2):
        of_update = [rank[update * plan.accum_steps : (update + 1) * plan.accum_steps] for rank in steps]
        assert sum(len(share) for rank in of_update for share in rank) == target
        assert max(len(rank[-1]) for rank in of_update) == plan.last_micro_batch


@given(st.integers(1, 5), st.integers(2, 6), st.integers(1, 60))
def test_the_weights_of_an_exact_update_add_up_to_one(micro: int, gpus: int, target: int):
    plan = gradaccum.plan(micro_batch=micro, num_gpus=gpus, target_batch=target, rounding="exact")
    assume(plan.effective_batch != plan.device_batch * plan.accum_steps)
    dealt = deal(plan, "mean", target)
    weights = [[weight for _, _, weight in rank] for rank in dealt]
    assert sum(map(sum, weights)) == pytest.approx(1, abs=1e-12)
    for rank, rank_weights in zip(dealt, weights, strict=True):
        for (inputs, _, _), weight in zip(rank, rank_weights, strict=True):
            assert weight in (len(inputs) / target, 0)
            assert weight or len(inputs) == 1  # a rank without a share runs one repeated sample
