"""Plain PyTorch: what a loss is divided by. Unequal counts, weights, masks, and terms beside the main loss."""

from __future__ import annotations

from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tests.torch.audit.zoo.loop import Fault, Pen, Truth

PEN = Pen("torch")

MEAN_OF_MEANS = "each micro-batch is divided by its own count, and their mean is taken"


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(samples: int, features: int = 8) -> tuple[Tensor, Tensor]:
    """(samples, features) inputs and a target for each, with a slope."""
    x = torch.randn(samples, features, generator=_seeded(2))
    return x, x.sum(1, keepdim=True) + torch.randn(samples, 1, generator=_seeded(3))


def sentences(samples: int, longest: int = 12, vocabulary: int = 20) -> list[Tensor]:
    """Token ids of unequal lengths, from 2 to `longest`."""
    lengths = torch.randint(2, longest + 1, (samples,), generator=_seeded(4))
    return [torch.randint(1, vocabulary, (int(n),), generator=_seeded(100 + i)) for i, n in enumerate(lengths)]


class Language(nn.Module):
    """Logits (batch, length, 20) of the next token, from an embedding, a recurrent layer and the tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.mix = nn.GRU(16, 16, batch_first=True)
        self.norm = nn.LayerNorm(16)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.norm(self.mix(self.embed(ids))[0]), self.embed.weight)


def shifted(group: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Padded ids and targets, -100 where there is none."""
    return (
        pad_sequence([ids[:-1] for ids in group], batch_first=True),
        pad_sequence([ids[1:] for ids in group], batch_first=True, padding_value=-100),
    )


def _token_mean(modules, step: int) -> Tensor:
    ids, targets = shifted(sentences(24)[8 * step : 8 * step + 8])
    return F.cross_entropy(modules[0](ids).flatten(0, 1), targets.flatten(), ignore_index=-100)


@PEN.loop(
    "torch-lm",
    target_batch=8,
    truth=Truth(_token_mean, updates=3),
    right={"": "sum over the tokens, divided by the tokens of the group", "late": "sums, and .grad divided at the end"},
    wrong={
        "mean": Fault("GA103", f"cross_entropy over unequal token counts: {MEAN_OF_MEANS} (transformers#34191)"),
        "padded": Fault("GA103", "the sum is divided by batch x padded length, which differs between micro-batches"),
    },
)
def language(case: str) -> None:
    model, data = Language(), sentences(24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for start in range(0, 24, 8):
        group = [shifted(data[i : i + 2]) for i in range(start, start + 8, 2)]
        tokens = sum(int((targets != -100).sum()) for _, targets in group)
        for ids, targets in group:
            logits = model(ids).flatten(0, 1)
            total = F.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="sum")
            if case == "mean":
                loss = F.cross_entropy(logits, targets.flatten(), ignore_index=-100) / len(group)
            elif case == "padded":
                loss = total / targets.numel() / len(group)
            else:
                loss = total if case == "late" else total / tokens
            loss.backward()
        if case == "late":
            for parameter in model.parameters():
                parameter.grad.div_(tokens)
        optimizer.step()
        optimizer.zero_grad()


@PEN.loop(
    "torch-sequence-sum",
    target_batch=8,
    truth=Truth(lambda modules, step: _token_sum(modules[0], sentences(24)[8 * step : 8 * step + 8]) / 8, updates=3),
    notes="GA101 GA118",  # larger than a mean over tokens, by intent
    right={"": "the tokens' sum over the number of sequences: the same for one big batch"},
    wrong={
        "lost": Fault("GA106", "a micro-batch with a long sequence runs under no_grad, for its log line only", "GA115")
    },
)
def sequence_sum(case: str) -> None:
    model, data = Language(), sentences(24)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for start in range(0, 24, 8):
        for i in range(start, start + 8, 2):
            with torch.set_grad_enabled(case != "lost" or max(map(len, data[i : i + 2])) < 12):
                loss = _token_sum(model, data[i : i + 2]) / 8
            if loss.requires_grad:
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _token_sum(model, group):
    ids, targets = shifted(group)
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


@PEN.loop(
    "torch-masked",
    target_batch=8,
    truth=Truth(_token_mean, updates=3),
    right={"": "(loss * mask).sum() over the mask of the whole group"},
    wrong={"mean": Fault("GA103", "(loss * mask).sum() / mask.sum() in each micro-batch, then the mean of four")},
)
def masked(case: str) -> None:
    model, data = Language(), sentences(24)
    optimizer = torch.optim.NAdam(model.parameters(), lr=1e-3)
    micro_batches = iter([shifted(data[i : i + 2]) for i in range(0, 24, 2)])
    while group := list(islice(micro_batches, 4)):
        masks = [(targets != -100).float() for _, targets in group]
        for (ids, targets), mask in zip(group, masks):
            log_probabilities = model(ids).log_softmax(-1)
            loss = -log_probabilities.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            if case == "mean":
                loss = (loss * mask).sum() / mask.sum() / len(group)
            else:
                loss = (loss * mask).sum() / sum(mask.sum() for mask in masks)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@PEN.loop(
    "torch-sequence-mean",
    target_batch=8,
    truth=Truth(lambda modules, step: _sequence_means(modules[0], sentences(24)[8 * step : 8 * step + 8]), updates=3),
    right={"": "every sequence weighs the same, in the big batch too"},
    wrong={"not-divided": Fault("GA101", "the mean over sequences, never divided by the micro-batches", "GA118")},
    notes="GA118",  # a long sequence's token weighs less, by intent
)
def sequence_mean(case: str) -> None:
    model, data = Language(), sentences(24)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)
    for start in range(0, 24, 8):
        for i in range(start, start + 8, 2):
            loss = _sequence_means(model, data[i : i + 2])
            (loss if case == "not-divided" else loss / 4).backward()
        optimizer.step()
        optimizer.zero_grad()


def _sequence_means(model, group):
    ids, targets = shifted(group)
    losses = F.cross_entropy(model(ids).transpose(1, 2), targets, ignore_index=-100, reduction="none")
    return (losses.sum(1) / (targets != -100).sum(1)).mean()


@PEN.loop(
    "torch-packed",
    target_batch=4,
    truth=Truth(lambda modules, step: _packed_mean(modules[0], range(4 * step, 4 * step + 4)), updates=3),
    right={"": "packed rows of 24: a target at each place but the starts of documents, counted over the group"},
    wrong={"mean": Fault("GA103", "packed rows are equally long, but hold unequal numbers of documents")},
)
def packed(case: str) -> None:
    model = Language()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for start in range(0, 12, 4):
        group = [_pack(row) for row in range(start, start + 4)]
        count = sum(int((targets >= 0).sum()) for _, targets in group)
        for ids, targets in group:
            log_probabilities = F.log_softmax(model(ids), -1).flatten(0, 1)
            if case == "mean":
                loss = nn.NLLLoss(ignore_index=-1)(log_probabilities, targets.flatten()) / 4
            else:
                loss = nn.NLLLoss(ignore_index=-1, reduction="sum")(log_probabilities, targets.flatten()) / count
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _pack(row: int) -> tuple[Tensor, Tensor]:
    """One row of 24 tokens; the first of each document has no target. More documents in later rows."""
    ids = torch.randint(1, 20, (1, 25), generator=_seeded(200 + row))
    targets = ids[:, 1:].clone()
    targets[:, :: 24 // (1 + 3 * (row % 4))] = -1
    return ids[:, :-1], targets


def _packed_mean(model, numbers):
    ids, targets = (torch.cat(part) for part in zip(*map(_pack, numbers)))
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-1)


@PEN.loop(
    "torch-bucketed-regression",
    target_batch=16,
    truth=Truth(
        lambda modules, step: F.mse_loss(
            modules[0](rows(48)[0].double()[16 * step : 16 * step + 16]),
            rows(48)[1].double()[16 * step : 16 * step + 16],
        ),
        updates=3,
        tolerance=1e-12,
    ),
    right={"": "each bucket's mean is weighted with its share of the 16 samples", "sum": "reduction='sum' over 16"},
    wrong={"mean": Fault("GA103", f"buckets of 8, 5 and 3 samples: {MEAN_OF_MEANS}")},
)
def bucketed(case: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = (part.double() for part in rows(48))
    for start in range(0, 48, 16):
        for xs, ys in zip(x[start : start + 16].split([8, 5, 3]), y[start : start + 16].split([8, 5, 3])):
            if case == "sum":
                loss = F.mse_loss(model(xs), ys, reduction="sum") / 16
            else:
                loss = nn.MSELoss()(model(xs), ys) * (1 / 3 if case == "mean" else len(xs) / 16)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@PEN.loop(
    "torch-ragged-loader",
    target_batch=16,
    truth=Truth(
        lambda modules, step: F.smooth_l1_loss(
            modules[0](rows(44)[0][16 * step : 16 * step + 16]), rows(44)[1][16 * step : 16 * step + 16]
        ),
        updates=3,
    ),
    notes="GA115",  # the third update has 12
    right={"": "drop_last=False, each loss weighted with its samples over those of the group"},
    wrong={"mean": Fault("GA103", "drop_last=False: the last group is 6 and 6, and 5, 1 and 6 samples by turns")},
)
def ragged_loader(case: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adadelta(model.parameters())
    x, y = rows(44)
    for part in torch.arange(44).split(16):
        sizes = [part[:9], part[9:]]  # what a length-grouping sampler does
        for indices in sizes:
            loss = F.smooth_l1_loss(model(x[indices]), y[indices])
            (loss / len(sizes) if case == "mean" else loss * len(indices) / len(part)).backward()
        optimizer.step()
        optimizer.zero_grad()


def classes(samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, rare and frequent classes, and the weight of each class."""
    weight = torch.tensor([0.2, 1.0, 5.0])
    return rows(samples)[0], (torch.rand(samples, generator=_seeded(5)) ** 2 * 3).long(), weight


def _weighted_mean(modules, step: int) -> Tensor:
    x, y, weight = classes(48)
    part = slice(16 * step, 16 * step + 16)
    return F.cross_entropy(modules[0](x[part]), y[part], weight)


@PEN.loop(
    "torch-class-weights",
    target_batch=16,
    truth=Truth(_weighted_mean, updates=3),
    notes="GA118",
    right={"": "the weighted sum, divided by the weight of the whole group"},
    wrong={"mean": Fault("GA103", "CrossEntropyLoss(weight) divides by the weight of its own targets")},
)
def class_weights(case: str) -> None:
    model = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y, weight = classes(48)
    mean, total = nn.CrossEntropyLoss(weight), nn.CrossEntropyLoss(weight, reduction="sum")
    for part in torch.arange(48).split(16):
        for micro in part.split(4):
            if case == "mean":
                loss = mean(model(x[micro]), y[micro]) / 4
            else:
                loss = total(model(x[micro]), y[micro]) / weight[y[part]].sum()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _sample_weights(modules, step: int) -> Tensor:
    x, y, _ = classes(36)
    part = slice(12 * step, 12 * step + 12)
    losses = F.binary_cross_entropy_with_logits(modules[0](x[part]), F.one_hot(y[part], 3).float(), reduction="none")
    return (losses.mean(1) * (1 + y[part])).mean()


@PEN.loop(
    "torch-sample-weights",
    target_batch=12,
    truth=Truth(_sample_weights, updates=3),
    notes="GA118",  # weights that the data bring along
    right={"": "multi-label BCE, each sample with a weight of its own, over the number of samples"},
    wrong={
        "divided-twice": Fault(
            "GA102", "divided by the accumulation steps, and by the whole batch instead of the micro-batch"
        ),
        "zero-first": Fault("GA108", "model.zero_grad() at the top of every micro-batch"),
    },
)
def sample_weights(case: str) -> None:
    model = nn.Linear(8, 3)
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-3)
    x, y, _ = classes(36)
    criterion = nn.BCEWithLogitsLoss(reduction="none")
    for i, micro in enumerate(torch.arange(36).split(3), start=1):
        if case == "zero-first":
            model.zero_grad()
        losses = criterion(model(x[micro]), F.one_hot(y[micro], 3).float()).mean(1) * (1 + y[micro])
        loss = losses.sum() / 12 if case == "divided-twice" else losses.mean()
        (loss / 4).backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


def _segments(number: int) -> tuple[Tensor, Tensor]:
    """One picture of 6 x 6 and its labels, of which the border (255) is ignored; its share differs."""
    labels = torch.randint(4, (1, 6, 6), generator=_seeded(300 + number))
    labels[:, : 1 + number % 5] = 255
    return torch.randn(1, 3, 6, 6, generator=_seeded(400 + number)), labels


def _pixel_mean(modules, step: int) -> Tensor:
    x, y = (torch.cat(part) for part in zip(*[_segments(number) for number in range(4 * step, 4 * step + 4)]))
    return F.cross_entropy(modules[0](x), y, ignore_index=255)


@PEN.loop(
    "torch-segmentation",
    target_batch=4,
    truth=Truth(_pixel_mean, updates=3),
    right={"": "per-pixel loss, divided by the labelled pixels of the group"},
    wrong={"mean": Fault("GA103", f"ignore_index=255: {MEAN_OF_MEANS}")},
)
def segmentation(case: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss(ignore_index=255, reduction="mean" if case == "mean" else "sum")
    for start in range(0, 12, 4):
        group = [_segments(number) for number in range(start, start + 4)]
        labelled = sum((y != 255).sum() for _, y in group)
        optimizer.zero_grad()
        for x, y in group:
            (criterion(model(x), y) / (4 if case == "mean" else labelled)).backward()
        optimizer.step()


@PEN.loop(
    "torch-two-heads",
    target_batch=16,
    truth=Truth(lambda modules, step: _two_heads(modules[0], slice(16 * step, 16 * step + 16)), updates=3),
    right={"": "a class for each sample and a box for some; each term over its own count in the group"},
    wrong={"mean": Fault("GA103", "the box term is divided by the boxes of its micro-batch; the class term is right")},
)
def two_heads(case: str) -> None:
    model = nn.Linear(8, 7)
    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-2)
    x, y, _ = classes(48)
    has_box = torch.rand(48, generator=_seeded(6)) < 0.4
    for part in torch.arange(48).split(16):
        for micro in part.split(4):
            out, boxed = model(x[micro]), has_box[micro]
            box = F.l1_loss(out[:, 3:][boxed], x[micro][:, :4][boxed], reduction="sum")
            boxes = boxed.sum().clamp(min=1) * 4 if case == "mean" else has_box[part].sum()
            (F.cross_entropy(out[:, :3], y[micro]) / 4 + box / (4 * boxes)).backward()
        optimizer.step()
        optimizer.zero_grad()


def _two_heads(model, part):
    x, y, _ = classes(48)
    has_box = torch.rand(48, generator=_seeded(6))[part] < 0.4
    out = model(x[part])
    return F.cross_entropy(out[:, :3], y[part]) + F.l1_loss(out[:, 3:][has_box], x[part][:, :4][has_box])
