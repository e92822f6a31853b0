"""A live model is tried, and is then what it was: to the bit, and the same objects."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradaccum.errors import InputError
from gradaccum.torch import find_micro_batch
from gradaccum.torch.probe import Found

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

FEATURES = 32


class Model(nn.Module):
    """Batch norm, dropout, tied and frozen weights, an embedding, and state outside of parameters and buffers."""

    def __init__(self, dtype: torch.dtype = torch.float32, sparse: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(10, FEATURES, sparse=sparse, dtype=dtype)
        self.first = nn.Linear(FEATURES, FEATURES, dtype=dtype)
        self.norm = nn.BatchNorm1d(FEATURES, dtype=dtype)
        self.drop = nn.Dropout(0.3)
        self.frozen = nn.Linear(FEATURES, FEATURES, dtype=dtype).requires_grad_(False)
        self.last = nn.Linear(FEATURES, FEATURES, dtype=dtype)
        self.last.weight = self.first.weight
        self.calls = 0
        self.seen: dict[str, list[int]] = {"sizes": []}
        self.hidden = torch.zeros(FEATURES, dtype=dtype)

    def forward(self, x: Any) -> Any:
        self.calls += 1
        self.seen["sizes"].append(len(x))
        y = self.drop(torch.relu(self.norm(self.first(self.words(x)))))
        self.hidden += y.detach().mean(0)
        return self.last(self.frozen(y))


class Training:
    """A model that learns, and everything that a step of it changes."""

    def __init__(self, optimizer: Any = torch.optim.AdamW, dtype: torch.dtype = torch.float32, **model: Any) -> None:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        self.model = Model(dtype, **model)
        self.optimizer = optimizer([each for each in self.model.parameters() if each.requires_grad])
        self.fails_at = 10**9
        self.error: type[Exception] = torch.OutOfMemoryError

    def step(self, micro_batch: int) -> None:
        random.random()
        np.random.rand()
        result = self.model(torch.randint(10, (micro_batch,)))
        if micro_batch >= self.fails_at:
            raise self.error("planted")
        result.float().square().mean().backward()

    def learn(self, updates: int) -> None:
        for _ in range(updates):
            self.step(8)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def find(self, **options: Any) -> Found:
        return find_micro_batch(
            model=self.model, optimizer=self.optimizer, step=self.step,
            **{"target_batch": 8, "pick": "largest", "memory_limit": "1GiB", **options},
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """All that can be compared, copied."""
        model, optimizer = self.model, self.optimizer
        return {
            "model": {key: _bits(value) for key, value in model.state_dict().items()},
            "gradients": [None if each.grad is None else _bits(each.grad) for each in model.parameters()],
            "optimizer": _plain(optimizer.state_dict()),
            "attributes": (model.calls, copy.deepcopy(model.seen), _bits(model.hidden)),
            "modes": [each.training for each in model.modules()],
            "wanted": [each.requires_grad for each in model.parameters()],
            "random": (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())),
        }

    def objects(self) -> list[int]:
        """Which objects they are, and where their bytes lie."""
        tensors = [*self.model.parameters(), *self.model.buffers(), self.model.hidden]
        tensors += [each.grad for each in self.model.parameters() if each.grad is not None]
        tensors += [v for each in self.optimizer.state.values() for v in each.values() if torch.is_tensor(v)]
        found = [id(each) for each in tensors]
        found += [each.untyped_storage().data_ptr() for each in tensors if each.layout is torch.strided]
        found += [id(each) for each in (self.model.seen, self.model.seen["sizes"], self.optimizer.param_groups[0])]
        return found + [id(each) for each in self.optimizer.state.values()]


def _bits(tensor: torch.Tensor) -> Any:
    tensor = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return tensor.dtype, tuple(tensor.shape), bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _bits(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


CASES: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "SGD with momentum, bf16": {"optimizer": momentum, "dtype": torch.bfloat16},
    "AdamW with a tensor for lr, float64": {
        "optimizer": lambda each: torch.optim.AdamW(each, lr=torch.tensor(0.01)),
        "dtype": torch.float64,
    },
    "Adafactor": {"optimizer": torch.optim.Adafactor},
    "sparse gradients": {"optimizer": torch.optim.SGD, "sparse": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("updates", "gradients", "fails_at"),
    [(0, False, 10**9), (0, True, 10**9), (2, False, 5), (2, True, 5)],
    ids=["fresh", "fresh, in a group", "in training, 4 fit", "in training and in a group, 4 fit"],
)
def test_all_is_as_it_was(case: str, updates: int, gradients: bool, fails_at: int):
    training = Training(**CASES[case])
    training.learn(updates)
    if gradients:
        training.step(4)
    training.fails_at = fails_at
    state, objects = training.state(), training.objects()
    found = training.find()
    assert found.max_micro_batch == min(8, fails_at - 1)
    assert training.state() == state
    sparse = case == "sparse gradients" and gradients
    assert sparse or training.objects() == objects


def test_training_goes_on_as_if_nothing_had_been():
    tried, other = Training(), Training()
    other.learn(2)
    other.learn(2)
    after = other.state()
    tried = Training()
    tried.learn(2)
    assert tried.find(pick="throughput").chosen is not None
    tried.learn(2)
    assert tried.state() == after


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_all_is_as_it_was_after_an_error_too(error: Any):
    training = Training()
    training.learn(1)
    training.model.eval()
    training.model.norm.train()
    training.error, training.fails_at = error, 8
    state, objects = training.state(), training.objects()
    with pytest.raises(error, match="planted"):
        training.find(prediction=8)
    assert training.state() == state
    assert training.objects() == objects


def test_a_trial_trains_whatever_the_mode_of_the_caller():
    training = Training()
    training.model.eval()
    modes: list[bool] = []
    step = training.step

    def watched(micro_batch: int) -> None:
        modes.append(training.model.drop.training)
        step(micro_batch)

    training.step = watched  # type: ignore[method-assign]
    with torch.no_grad():
        assert training.find().max_micro_batch == 8
        assert not torch.is_grad_enabled()
    assert modes
    assert all(modes)
    assert not any(each.training for each in training.model.modules())


def test_what_else_changes_is_named_and_put_back():
    training = Training(momentum)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    schedule = torch.optim.lr_scheduler.StepLR(training.optimizer, 1)

    def update() -> None:
        scaler.step(training.optimizer)
        scaler.update()
        schedule.step()
        training.optimizer.zero_grad()

    def step(micro_batch: int) -> None:
        result = training.model(torch.randint(10, (micro_batch,)))
        scaler.scale(result.square().mean()).backward()

    def group() -> None:
        step(4)
        update()

    for use_before in (False, True):  # a scaler makes its tensors when it is first used
        if use_before:
            group()
        state = training.state(), scaler.state_dict(), schedule.state_dict()
        find_micro_batch(
            model=training.model, optimizer=training.optimizer, step=step, update=update, also=[scaler, schedule],
            target_batch=8, pick="largest", memory_limit="1GiB",
        )  # fmt: skip
        assert (training.state(), scaler.state_dict(), schedule.state_dict()) == state
    group()
    assert scaler.get_scale() == 2.0**12


def test_the_limit_counts_the_model_that_is_there():
    model = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES).requires_grad_(False))
    optimizer = torch.optim.SGD(model[0].parameters())
    trained = 4 * (FEATURES * FEATURES + FEATURES)

    def find(limit: int) -> Found:
        return find_micro_batch(
            model=model, optimizer=optimizer, step=lambda m: model(torch.ones(m, FEATURES)).sum().backward(),
            target_batch=8, memory_limit=limit, pick="largest",
        )  # fmt: skip

    assert find(2 * trained).max_micro_batch == 0
    assert find(3 * trained + 20_000).max_micro_batch > 0  # the gradients, and what is frozen


def sharded() -> nn.Module:
    """With a parameter that lies on a mesh of devices, as a DTensor does."""
    model = nn.Linear(1, 1)
    model.weight.device_mesh = "a mesh"
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.SyncBatchNorm(1)), "model: has SyncBatchNorm in it: a rank that runs out of memory would"),
        (sharded(), "model: is sharded: a rank that runs out of memory would leave the others waiting"),
        (nn.LazyLinear(1), "model: has parameters that its first forward makes; run it once before"),
    ],
)
def test_what_cannot_be_tried_live(model: nn.Module, said: str):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    with pytest.raises(InputError) as caught:
        find_micro_batch(model=model, optimizer=optimizer, step=print, target_batch=1, device="cpu")
    assert said in str(caught.value)
