"""Loops that the audit was never tuned on, plain PyTorch: losses of many kinds, and what they are divided by."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from tests.torch.audit.zoo.loop import Fault, Pen, Truth
from tests.torch.audit.zoo.plain_losses import Language, sentences, shifted

PEN = Pen("heldout")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _token_mean(modules, step: int) -> Tensor:
    return _token_loss(modules[0], range(8 * step, 8 * step + 8), "mean")[0]


def _token_loss(model, numbers, reduction="sum"):
    ids, targets = shifted([sentences(24)[i] for i in numbers])
    loss = F.cross_entropy(model(ids).transpose(1, 2), targets, ignore_index=-100, reduction=reduction)
    return loss, int(targets.ne(-100).sum())


@PEN.loop(
    "heldout-fairseq",
    target_batch=8,
    truth=Truth(_token_mean, updates=3),
    right={"": "update_freq: sums go backward, then multiply_grads(1 / sample_size)"},
    wrong={
        "overwritten": Fault("GA101", "sample_size = ..., where += was meant: the last micro-batch's tokens", "GA118"),
        "multiplied-each": Fault("GA118", "multiply_grads is within the loop over sub-batches", "GA103 GA106"),
    },
)
def fairseq(case: str) -> None:
    model = Language()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, betas=(0.9, 0.98))

    def multiply_grads(c: float) -> None:
        for p in model.parameters():
            p.grad.data.mul_(c)

    for samples in torch.arange(24).view(3, 4, 2).tolist():
        optimizer.zero_grad()
        sample_size = 0
        for sample in samples:
            loss, ntokens = _token_loss(model, sample)
            loss.backward()
            sample_size = ntokens if case == "overwritten" else sample_size + ntokens
            if case == "multiplied-each":
                multiply_grads(1 / ntokens)
        if case != "multiplied-each":
            multiply_grads(1 / sample_size)
        optimizer.step()


@PEN.loop(
    "heldout-megatron",
    target_batch=8,
    truth=Truth(_token_mean, updates=3),
    right={"": "calculate_per_token_loss: sums of masked losses, the gradients scaled once at the end"},
    wrong={
        "default": Fault("GA103", "sum(losses * loss_mask) / loss_mask.sum() / num_microbatches"),
        "both": Fault("GA102", "calculate_per_token_loss, and num_microbatches divides as well"),
    },
)
def megatron(case: str) -> None:
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for start in range(0, 24, 8):
        total_num_tokens = torch.zeros((), dtype=torch.int)
        for micro in range(start, start + 8, 2):
            ids, labels = shifted(sentences(24)[micro : micro + 2])
            loss_mask = (labels != -100).float().view(-1)
            losses = F.cross_entropy(model(ids).view(-1, 20), labels.clamp(min=0).view(-1), reduction="none").float()
            loss, num_tokens = torch.sum(losses.view(-1) * loss_mask), loss_mask.sum().int()
            if case == "default":
                loss = loss / num_tokens
            if case:
                loss = loss / 4
            total_num_tokens += num_tokens
            loss.backward()
        if case != "default":
            for p in model.parameters():
                p.grad *= 1.0 / max(int(total_num_tokens), 1)
        optimizer.step()
        optimizer.zero_grad()


def _budgets(budget: int = 40) -> list[list[int]]:
    """The sentences of each update: as many as it takes to reach the budget of tokens; an open rest is left."""
    groups, group, held = [], [], 0
    for i, ids in enumerate(sentences(24)):
        group.append(i)
        held += len(ids) - 1
        if held >= budget:
            groups.append(group)
            group, held = [], 0
    return groups


@PEN.loop(
    "heldout-token-budget",
    truth=Truth(
        lambda modules, step: _token_loss(modules[0], _budgets()[step], "mean")[0],
        updates=len(_budgets()),
    ),
    right={"": "one sentence at a time until 40 tokens are there; the gradients are divided by what there is"},
    wrong={
        "mean": Fault("GA103", "each sentence's mean goes backward, divided by the number of sentences at the end"),
        "budget": Fault("GA101", "divided by the budget, and not by what there is", "GA118"),
    },
)
def token_budget(case: str) -> None:
    model = Language()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    held = parts = 0
    for i in range(24):
        loss, count = _token_loss(model, [i], "mean" if case == "mean" else "sum")
        loss.backward()
        held, parts = held + count, parts + 1
        if held >= 40:
            nn.utils.clip_grad_norm_(model.parameters(), float("inf"))  # for the log
            divisor = {"mean": parts, "budget": 40}.get(case, held)
            torch._foreach_div_([p.grad for p in model.parameters()], divisor)
            optimizer.step()
            optimizer.zero_grad()
            held = parts = 0


class Packed(nn.Module):
    """An LSTM over packed sentences: logits of all their tokens, without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(20, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 20)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(ids), lengths, batch_first=True, enforce_sorted=False)
        return self.out(self.rnn(packed)[0].data)


def _packed_loss(model, group, reduction="mean"):
    ids, _ = shifted(group)
    targets = pack_sequence([part[1:] for part in group], enforce_sorted=False).data
    logits = model(ids, torch.tensor([len(part) - 1 for part in group]))
    return F.nll_loss(F.log_softmax(logits, dim=1), targets, reduction=reduction), len(targets)


@PEN.loop(
    "heldout-lstm",
    target_batch=8,
    truth=Truth(lambda modules, step: _packed_loss(modules[0], sentences(24)[8 * step : 8 * step + 8])[0], updates=3),
    right={"": "packed sequences; each mean times its tokens over those of the group"},
    wrong={"mean": Fault("GA103", "the mean over the packed tokens of each micro-batch, over 4")},
)
def lstm(case: str) -> None:
    model = Packed()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for start in range(0, 24, 8):
        group = [sentences(24)[i : i + 2] for i in range(start, start + 8, 2)]
        total = sum(len(ids) - 1 for pair in group for ids in pair)
        model.zero_grad()
        for pair in group:
            loss, n = _packed_loss(model, pair)
            (loss / len(group) if case == "mean" else loss * n / total).backward()
        optimizer.step()


def features(samples: int, width: int = 6, seed: int = 70) -> Tensor:
    return torch.randn(samples, width, generator=seeded(seed))


def _ctc(model, part):
    """4 frames for each feature, 2 to 3 labels out of 4."""
    log_probabilities = model(features(48)[part]).view(len(part), 4, 5).log_softmax(-1).transpose(0, 1)
    targets = torch.tensor([[1, 2, 3], [3, 1, 2]])[part % 2]
    return nn.CTCLoss()(log_probabilities, targets, torch.full((len(part),), 4), 2 + part % 2)


def _triplet(model, part):
    x = features(48)[part]
    return nn.TripletMarginLoss(margin=5.0)(model(x), model(x + 0.1), model(x.flip(1)))


def _cosine(model, part):
    sign = torch.tensor([1.0, -1.0])[part % 2]
    return nn.CosineEmbeddingLoss(margin=-1.0)(model(features(48)[part]), model(features(48, seed=71)[part]), sign)


def _gaussian(model, part):
    mean, raw = model(features(48)[part]).chunk(2, 1)
    return nn.GaussianNLLLoss()(mean, features(48, 10, seed=72)[part], F.softplus(raw))


def _multi_label(model, part):
    weight = torch.linspace(1, 5, 20)
    return nn.BCEWithLogitsLoss(pos_weight=weight)(model(features(48)[part]), (features(48, 20, 73)[part] > 1).float())


def _dice(model, part):
    """One Dice coefficient for each sample, then their mean."""
    got, mask = model(features(48)[part]).sigmoid(), (features(48, 20, seed=74)[part] > 0).float()
    return (1 - (2 * (got * mask).sum(1) + 1) / (got.sum(1) + mask.sum(1) + 1)).mean()


def _preference(model, part):
    """Bradley and Terry: what a reward model and DPO minimise."""
    chosen, rejected = model(features(48)[part]), model(features(48, seed=75)[part])
    return -F.logsigmoid(0.5 * (chosen - rejected).mean(1)).mean()


def _diffusion(model, part):
    """Min-SNR: a weight for each sample from its time step."""
    t = (part * 7) % 10
    noise = features(48, seed=76)[part]
    noisy = features(48)[part] * (1 - t / 10).sqrt()[:, None] + noise * (t / 10).sqrt()[:, None]
    error = F.mse_loss(model(noisy)[:, :6], noise, reduction="none").mean(dim=[1])
    return (error * (5 / (1 + t)).clamp(max=1)).mean()


def _criterion(
    name: str,
    loss_of: Callable[[nn.Module, Tensor], Tensor],
    mistake: str,
    fault: Fault,
    sizes: tuple[int, ...] = (4, 4, 4, 4),
) -> None:
    """Three updates of micro-batches of these sizes, each weighted with its share, and one mistake."""

    @PEN.loop(
        f"heldout-{name}",
        target_batch=16,
        truth=Truth(lambda modules, step: loss_of(modules[0], torch.arange(16 * step, 16 * step + 16)), updates=3),
        right={"": f"{name}: the mean, times the share of the samples"},
        wrong={mistake: fault},
    )
    def train(case: str) -> None:
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 20))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for batch in torch.arange(48).split(16):
            for micro in batch.split(list(sizes)):
                if case == "zero-each":
                    optimizer.zero_grad()
                share = {"not-divided": 1, "mean": 1 / len(sizes), "divided-twice": 1 / len(sizes) ** 2}
                (loss_of(model, micro) * share.get(case, len(micro) / 16)).backward()
            optimizer.step()
            if case != "zero-never":
                optimizer.zero_grad()


_criterion("ctc", _ctc, "not-divided", Fault("GA101", "CTCLoss, never divided"))
_criterion("triplet", _triplet, "zero-each", Fault("GA108", "zero_grad before each backward"))
_criterion("cosine", _cosine, "zero-never", Fault("GA107", "no zero_grad at all", "GA101"))
_criterion("gaussian", _gaussian, "mean", Fault("GA103", "buckets of 2, 3, 4, 7; each mean over 4"), (2, 3, 4, 7))
_criterion("multi-label", _multi_label, "divided-twice", Fault("GA102", "divided by 4 twice"))
_criterion("dice", _dice, "not-divided", Fault("GA101", "one Dice for each sample, never divided"))
_criterion("preference", _preference, "mean", Fault("GA103", "pairs in buckets of 6, 6, 3, 1"), (6, 6, 3, 1))
_criterion("diffusion", _diffusion, "divided-twice", Fault("GA102", "divided by 4 twice"))


def _regulated(model, part):
    weight = torch.tensor([0.5, 1.0, 2.0, 4.0, 1.0])
    y = (part * part) % 5
    y = torch.where(part % 7 == 0, -100, y)
    criterion = nn.CrossEntropyLoss(weight=weight, ignore_index=-100, label_smoothing=0.1, reduction="sum")
    return criterion(model(features(48)[part])[:, :5], y), weight[y[y >= 0]].sum()


@PEN.loop(
    "heldout-weighted-smoothed",
    target_batch=16,
    truth=Truth(
        lambda modules, step: torch.div(*_regulated(modules[0], torch.arange(16 * step, 16 * step + 16))), updates=3
    ),
    right={"": "class weights, label smoothing and an ignored class; the sum over the group's weights"},
    wrong={"mean": Fault("GA103", "reduction='mean' over the micro-batch's own weights, over 4", "GA118")},
)
def weighted_and_smoothed(case: str) -> None:
    model = nn.Linear(6, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch in torch.arange(48).split(16):
        with torch.no_grad():
            whole = _regulated(model, batch)[1]
        for micro in batch.split(4):
            total, own = _regulated(model, micro)
            (total / own / 4 if case == "mean" else total / whole).backward()
        optimizer.step()
        optimizer.zero_grad()


def _focal(model, part):
    """RetinaNet: the sum of focal losses, and the number of anchors that hold something."""
    held = (features(48, 20, seed=77)[part] > 1.2).float()
    logits = model(features(48)[part])
    p_t = torch.where(held > 0, logits.sigmoid(), 1 - logits.sigmoid())
    return (F.binary_cross_entropy_with_logits(logits, held, reduction="none") * (1 - p_t) ** 2).sum(), held.sum()


@PEN.loop(
    "heldout-focal",
    target_batch=16,
    truth=Truth(
        lambda modules, step: torch.div(*_focal(modules[0], torch.arange(16 * step, 16 * step + 16))), updates=3
    ),
    right={"": "focal losses over the positive anchors of the whole group"},
    wrong={"own": Fault("GA103", "focal losses over the positive anchors of each micro-batch, over 4", "GA118")},
)
def focal(case: str) -> None:
    model = nn.Linear(6, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for batch in torch.arange(48).split(16):
        positives = (features(48, 20, seed=77)[batch] > 1.2).sum()
        for micro in batch.split(4):
            total, own = _focal(model, micro)
            (total / own.clamp(min=1) / 4 if case == "own" else total / positives).backward()
        optimizer.step()
        optimizer.zero_grad()


def _two_views(model, part):
    x = features(48)[part]
    return F.normalize(torch.cat([model(x), model(x + 0.3 * features(48, seed=78)[part])]), dim=1)


def _nt_xent(z: Tensor) -> Tensor:
    """SimCLR: each view's class is the other view, all others are negatives."""
    n = len(z) // 2
    similarity = (z @ z.T / 0.5).masked_fill(torch.eye(2 * n, dtype=torch.bool), float("-inf"))
    return F.cross_entropy(similarity, torch.arange(2 * n).roll(n))


def _sigmoid_pairs(z: Tensor) -> Tensor:
    """SigLIP: every pair is a yes or a no."""
    a, b = z.chunk(2)
    signs = 2 * torch.eye(len(a)) - 1
    return -F.logsigmoid(signs * (a @ b.T * 5 - 1)).sum() / len(a)


def _contrastive(name: str, loss_of: Callable[[Tensor], Tensor]) -> None:
    @PEN.loop(
        f"heldout-{name}",
        target_batch=16,
        truth=Truth(
            lambda modules, step: loss_of(_two_views(modules[0], torch.arange(16 * step, 16 * step + 16))), updates=3
        ),
        right={"": "features of all micro-batches first, then one loss"},
        wrong={"within": Fault("GA119", "the loss of each micro-batch of 4 has its own samples alone", "GA118")},
    )
    def train(case: str) -> None:
        model = nn.Linear(6, 8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for batch in torch.arange(48).split(16):
            if case == "within":
                for micro in batch.split(4):
                    (loss_of(_two_views(model, micro)) / 4).backward()
            else:
                views = [_two_views(model, micro).chunk(2) for micro in batch.split(4)]
                loss_of(torch.cat([torch.cat(side) for side in zip(*views)])).backward()
            optimizer.step()
            optimizer.zero_grad()


_contrastive("simclr", _nt_xent)
_contrastive("siglip", _sigmoid_pairs)
