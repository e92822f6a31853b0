"""Plain PyTorch: recipes with more than one loss, model or optimizer. GAN, VAE, distillation, contrastive, policy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.torch.audit.zoo.loop import Fault, Pen, Truth
from tests.torch.audit.zoo.plain_losses import classes

PEN = Pen("torch")


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(600 + seed))


def _gan_loss(modules, step: int) -> Tensor:
    """The critic steps first, then the generator, on 8 samples in each of the two."""
    critic, generator = modules
    update, ones, zeros = step // 2, torch.ones(8, 1), torch.zeros(8, 1)
    fake = generator(torch.cat([noise(20 + 4 * update + i, 2, 4) for i in range(4)]))
    if step % 2:
        return F.binary_cross_entropy_with_logits(critic(fake), ones)
    real = torch.cat([noise(4 * update + i, 2, 6) for i in range(4)])
    return F.binary_cross_entropy_with_logits(critic(real), ones) + F.binary_cross_entropy_with_logits(
        critic(fake.detach()), zeros
    )


@PEN.loop(
    "torch-gan",
    target_batch=8,
    truth=Truth(_gan_loss, updates=6),
    right={"": "two optimizers, each with groups of its own, zeroed before its group"},
    wrong={
        "leak": Fault("GA107", "the critic is zeroed after its step alone: the generator's backward stays in it"),
        "zero-each": Fault("GA108", "netD.zero_grad() at the top of each micro-batch, as in the DCGAN tutorial"),
        "critic-not-divided": Fault("GA101", "the generator's loss is divided, the critic's two are not"),
    },
)
def gan(case: str) -> None:
    critic = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6))
    criterion = nn.BCEWithLogitsLoss()
    optimizer_d = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.999))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    divisor = 1 if case == "critic-not-divided" else 4
    for update in range(3):
        if case != "leak":
            optimizer_d.zero_grad()
        for i in range(4 * update, 4 * update + 4):
            if case == "zero-each":
                critic.zero_grad()
            (criterion(critic(noise(i, 2, 6)), torch.ones(2, 1)) / divisor).backward()
            fake = generator(noise(20 + i, 2, 4)).detach()
            (criterion(critic(fake), torch.zeros(2, 1)) / divisor).backward()
        optimizer_d.step()
        optimizer_d.zero_grad()
        optimizer_g.zero_grad()
        for i in range(4 * update, 4 * update + 4):
            (criterion(critic(generator(noise(20 + i, 2, 4))), torch.ones(2, 1)) / 4).backward()
        optimizer_g.step()


class VAE(nn.Module):
    """Reconstruction, mean and log-variance of a latent of 3, with given noise."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 6), nn.Linear(3, 6)

    def forward(self, x: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(x).chunk(2, 1)
        return self.decode(mean + epsilon * (log_variance / 2).exp()), mean, log_variance


def _elbo(model, numbers, apart=False):
    x, epsilon = (torch.cat([noise(first + i, 3, width) for i in numbers]) for first, width in ((100, 6), (200, 3)))
    reconstruction, mean, log_variance = model(x, epsilon)
    error = F.mse_loss(reconstruction, x, reduction="sum") / len(x)
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
    return (error, divergence) if apart else error + 4 * divergence


@PEN.loop(
    "torch-vae",
    target_batch=12,
    truth=Truth(lambda modules, step: _elbo(modules[0], range(4 * step, 4 * step + 4)), updates=3),
    notes="GA118 GA101",  # a sum over features, over the number of samples
    right={"": "the sum of squares and beta times the divergence, both over the samples"},
    wrong={"divergence": Fault("GA114", "`loss = error / 4 + beta * kl`: the divergence counts four times")},
)
def vae(case: str) -> None:
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for i in range(12):
        error, divergence = _elbo(model, [i], apart=True)
        loss = error / 4 + 4 * divergence if case == "divergence" else (error + 4 * divergence) / 4
        loss.backward()
        if (i + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


def _labels(i: int) -> Tensor:
    return torch.randint(5, (4,), generator=torch.Generator().manual_seed(700 + i))


def _distilled(student, teacher, numbers, apart=False):
    x, y = torch.cat([noise(300 + i, 4, 6) for i in numbers]), torch.cat([_labels(i) for i in numbers])
    with torch.no_grad():
        soft = (teacher(x) / 2).softmax(-1)
    logits = student(x)
    hard = F.cross_entropy(logits, y)
    kl = nn.KLDivLoss(reduction="batchmean")((logits / 2).log_softmax(-1), soft) * 4
    return (hard, kl) if apart else hard / 2 + kl / 2


@PEN.loop(
    "torch-distillation",
    target_batch=16,
    truth=Truth(lambda modules, step: _distilled(modules[1], modules[0], range(4 * step, 4 * step + 4)), updates=3),
    right={"": "a frozen teacher; cross entropy and KL(batchmean), halves of one loss"},
    wrong={
        "soft-term": Fault("GA114", "only the hard term is divided by the accumulation steps"),
        "never": Fault("GA101", "neither term is divided"),
    },
)
def distillation(case: str) -> None:
    teacher, student = nn.Linear(6, 5).requires_grad_(False).eval(), nn.Linear(6, 5)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for i in range(12):
        hard, kl = _distilled(student, teacher, [i], apart=True)
        hard = hard / 2 if case == "never" else hard / 8
        kl = kl / 8 if case == "" else kl / 2
        (hard + kl).backward()
        if (i + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


class Experts(nn.Module):
    """Two experts, softly mixed; the router's logits are kept for the z-loss."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 2)
        self.experts = nn.ModuleList(nn.Linear(6, 5) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.router(x)
        mixed = torch.stack([expert(x) for expert in self.experts], -1) @ logits.softmax(-1).unsqueeze(-1)
        return mixed.squeeze(-1), logits.logsumexp(-1).square().mean()


def _expert_loss(modules, step: int, decay: float = 0.0) -> Tensor:
    numbers = range(4 * step, 4 * step + 4)
    out, z_loss = modules[0](torch.cat([noise(400 + i, 4, 6) for i in numbers]))
    penalty = sum(p.square().sum() for p in modules[0].parameters())
    return F.cross_entropy(out, torch.cat([_labels(i) for i in numbers])) + 0.5 * z_loss + decay * penalty


@PEN.loop(
    "torch-router",
    target_batch=16,
    truth=Truth(_expert_loss, updates=3),
    right={"": "the router's z-loss is divided with the main loss"},
    wrong={"z-loss": Fault("GA114", "the z-loss is added after the division (NeMo-Automodel#3359)")},
)
def router(case: str) -> None:
    model = Experts()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for i in range(12):
        out, z_loss = model(noise(400 + i, 4, 6))
        loss = F.cross_entropy(out, _labels(i)) / 4
        (loss + 0.5 * z_loss * (1 if case == "z-loss" else 1 / 4)).backward()
        if (i + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


@PEN.loop(
    "torch-weight-penalty",
    target_batch=16,
    truth=Truth(lambda modules, step: _expert_loss(modules, step, decay=0.1), updates=3),
    right={
        "": "an L2 penalty of the weights, divided like the rest",
        "once": "the penalty undivided, in the last micro-batch alone",
    },
    wrong={"each": Fault("GA114", "the undivided penalty is added in every micro-batch: decay times 4")},
)
def weight_penalty(case: str) -> None:
    model = Experts()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for i in range(12):
        last = (i + 1) % 4 == 0
        out, z_loss = model(noise(400 + i, 4, 6))
        penalty = 0.1 * sum(p.square().sum() for p in model.parameters())
        share = {"each": 1.0, "once": float(last)}.get(case, 1 / 4)
        ((F.cross_entropy(out, _labels(i)) + 0.5 * z_loss) / 4 + share * penalty).backward()
        if last:
            optimizer.step()
            optimizer.zero_grad()


def _info_nce(a: Tensor, b: Tensor) -> Tensor:
    logits = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / 0.1
    pairs = torch.arange(len(a))
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def _pairs(i: int) -> tuple[Tensor, Tensor]:
    return noise(800 + i, 2, 6), noise(800 + i, 2, 6) + 0.5 * noise(900 + i, 2, 6)


def _clip_loss(modules, step: int) -> Tensor:
    a, b = (torch.cat(part) for part in zip(*[_pairs(i) for i in range(4 * step, 4 * step + 4)]))
    return _info_nce(modules[0](a), modules[1](b))


@PEN.loop(
    "torch-clip",
    target_batch=8,
    truth=Truth(_clip_loss, updates=3),
    right={
        "": "features of all micro-batches, one loss over 8 pairs, one backward pass",
        "cached": "GradCache: features without a graph, their gradient, then again with a graph",
    },
    wrong={"in-micro-batch": Fault("GA119", "each micro-batch has 1 negative, not 7 (sentence-transformers#1822)")},
)
def clip(case: str) -> None:
    image, text = nn.Linear(6, 4), nn.Linear(6, 4)
    optimizer = torch.optim.AdamW([*image.parameters(), *text.parameters()], lr=1e-2)
    for step in range(3):
        group = [_pairs(i) for i in range(4 * step, 4 * step + 4)]
        if case == "in-micro-batch":
            for a, b in group:
                (_info_nce(image(a), text(b)) / 4).backward()
        elif case == "cached":
            with torch.no_grad():
                features = [(image(a), text(b)) for a, b in group]
            leaves = [torch.cat(part).requires_grad_() for part in zip(*features)]
            _info_nce(*leaves).backward()
            gradients = zip(leaves[0].grad.split(2), leaves[1].grad.split(2))
            for (a, b), (grad_a, grad_b) in zip(group, gradients):
                torch.autograd.backward([image(a), text(b)], [grad_a, grad_b])
        else:
            _info_nce(torch.cat([image(a) for a, _ in group]), torch.cat([text(b) for _, b in group])).backward()
        optimizer.step()
        optimizer.zero_grad()


def _episode(i: int) -> tuple[Tensor, Tensor, Tensor]:
    """States, actions and returns of one episode of 2 to 9 steps."""
    steps = 2 + 3 * i % 8
    actions = torch.randint(3, (steps,), generator=torch.Generator().manual_seed(1000 + i))
    return noise(1100 + i, steps, 6), actions, noise(1200 + i, steps).cumsum(0)


def _policy_loss(modules, step: int) -> Tensor:
    states, actions, returns = (torch.cat(part) for part in zip(*[_episode(i) for i in range(4 * step, 4 * step + 4)]))
    return -(torch.distributions.Categorical(logits=modules[0](states)).log_prob(actions) * returns).mean()


@PEN.loop(
    "torch-reinforce",
    truth=Truth(_policy_loss, updates=3),
    notes="GA118",  # returns are weights of the data's own
    right={"": "four episodes an update; the sum over their steps, over all steps"},
    wrong={"mean": Fault("GA103", "each episode's mean over its own steps, then the mean of four episodes")},
)
def reinforce(case: str) -> None:
    policy = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for update in range(3):
        episodes = [_episode(i) for i in range(4 * update, 4 * update + 4)]
        steps = sum(len(actions) for _, actions, _ in episodes)
        for states, actions, returns in episodes:
            policy_loss = []
            log_probabilities = torch.distributions.Categorical(logits=policy(states)).log_prob(actions)
            for log_probability, value in zip(log_probabilities, returns):
                policy_loss.append(-log_probability * value)
            loss = torch.stack(policy_loss).sum()
            (loss / len(actions) / 4 if case == "mean" else loss / steps).backward()
        optimizer.step()
        optimizer.zero_grad()


def _rollout(part: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, actions, old log probabilities and advantages of 16 steps each for 3 updates."""
    actions = torch.randint(3, (48,), generator=torch.Generator().manual_seed(1300))
    return noise(1301, 48, 6)[part], actions[part], -noise(1302, 48).abs()[part], (3 * noise(1303, 48) + 1)[part]


def _ppo(agent, states, actions, old, advantages):
    out = agent(states)
    chosen = torch.distributions.Categorical(logits=out[:, :3])
    ratio = (chosen.log_prob(actions) - old).exp()
    policy = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
    return policy - 0.01 * chosen.entropy().mean() + 0.5 * F.mse_loss(out[:, 3], advantages)


def _standardised(advantages: Tensor) -> Tensor:
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def _ppo_loss(modules, step: int) -> Tensor:
    states, actions, old, advantages = _rollout(slice(16 * step, 16 * step + 16))
    return _ppo(modules[0], states, actions, old, _standardised(advantages))


@PEN.loop(
    "torch-ppo",
    target_batch=16,
    truth=Truth(_ppo_loss, updates=3, clip=0.5),
    notes="GA118",
    right={"": "advantages standardised over the minibatch of 16, then 4 micro-batches"},
    wrong={
        "standardised-each": Fault("GA119", "advantages standardised over each micro-batch of 4"),
        "clip-each": Fault("GA110", "clip_grad_norm_ with every micro-batch"),
    },
)
def ppo(case: str) -> None:
    agent = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(agent.parameters(), lr=2.5e-4, eps=1e-5)
    for start in range(0, 48, 16):
        states, actions, old, advantages = _rollout(slice(start, start + 16))
        if case != "standardised-each":
            advantages = _standardised(advantages)
        for micro in torch.arange(16).split(4):
            advantage = advantages[micro]
            if case == "standardised-each":
                advantage = _standardised(advantage)
            (_ppo(agent, states[micro], actions[micro], old[micro], advantage) / 4).backward()
            if case == "clip-each":
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()


@PEN.loop(
    "torch-pseudo-labels",
    target_batch=16,
    truth=Truth(lambda modules, step: _fixmatch(modules[0], slice(16 * step, 16 * step + 16)), updates=3),
    notes="GA118",  # a masked sample weighs nothing, by intent
    right={"": "(loss * confident).mean(): the mean is over all, so micro-batches of 4 weigh the same"},
    wrong={"not-divided": Fault("GA114", "the unlabelled term is not divided by the accumulation steps", "GA101")},
)
def pseudo_labels(case: str) -> None:
    model = nn.Linear(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for start in range(0, 48, 16):
        for i in range(start, start + 16, 4):
            supervised, unsupervised = _fixmatch(model, slice(i, i + 4), apart=True)
            (supervised / 4 + (unsupervised if case == "not-divided" else unsupervised / 4)).backward()
        optimizer.step()
        optimizer.zero_grad()


def _fixmatch(model, part, apart=False):
    x, y, _ = classes(48)
    confident = (torch.rand(48, generator=torch.Generator().manual_seed(7))[part] < 0.5).float()
    supervised = F.cross_entropy(model(x[part]), y[part])
    unsupervised = (F.cross_entropy(model(x[part].flip(1)), y[part], reduction="none") * confident).mean()
    return (supervised, unsupervised) if apart else supervised + unsupervised
