"""TD3+BC and IQL in plain eager torch, in the manner of single-file implementations: updates a second.

    python -m benchmarks.peers.corl_style_offline td3_bc --threads 1
    python -m benchmarks.peers.corl_style_offline iql --threads 1

Our own writing, with the choices for which CORL's files are known: the data set as tensors, indexed by NumPy's draws,
every network a module of its own, Adam as torch has it, targets moved parameter by parameter. TD3+BC steps its critics
(an Adam each) every time, its actor and all targets every second time. IQL steps value, critics and actor, in this
order, the actor's rate on a cosine, and moves the target, every time. Prints one JSON line.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from benchmarks.peers.cleanrl_style_sac import network
from benchmarks.protocol import report
from benchmarks.replay import ACTION, BATCH, DISCOUNT, OBS, RATE, TAU, TRANSITIONS, asked, limit, speed, transitions
from torch import Tensor, nn
from torch.nn import functional as F

ALPHA, DELAY, NOISE, NOISE_CLIP = 2.5, 2, 0.2, 0.5  # of TD3+BC
EXPECTILE, BETA, MOST, HORIZON = 0.7, 3.0, 100.0, 1_000_000  # of IQL


class Data:
    """The transitions as tensors."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.columns = {k: torch.from_numpy(v) for k, v in transitions(seed).items()}

    def draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Observations, actions, rewards (B, 1), following observations, ends (B, 1), of which there are none."""
        rows = self.random.integers(0, TRANSITIONS, BATCH)
        obs, action, reward, following = (self.columns[k][rows] for k in ("obs", "action", "reward", "next_obs"))
        return obs, action, reward[:, None], following, torch.zeros(BATCH, 1)


def adam(*modules: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam([p for m in modules for p in m.parameters()], lr=RATE)


def follow(target: nn.Module, source: nn.Module) -> None:
    for t, p in zip(target.parameters(), source.parameters(), strict=True):
        t.data.copy_((1 - TAU) * t.data + TAU * p.data)


def at(critic: nn.Module, obs: Tensor, action: Tensor) -> Tensor:
    return critic(torch.cat([obs, action], 1))


class TD3BC:
    """Two critics, an actor, and a lagging copy of each."""

    def __init__(self) -> None:
        self.actor = nn.Sequential(network(OBS, ACTION), nn.Tanh())
        self.critics = [network(OBS + ACTION, 1) for _ in range(2)]
        self.slow_actor, self.slow_critics = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.of_actor, self.of_critics = adam(self.actor), [adam(c) for c in self.critics]
        self.count = 0

    def update(self, data: Data) -> None:
        self.count += 1
        obs, action, reward, following, end = data.draw()
        with torch.no_grad():
            noise = (torch.randn_like(action) * NOISE).clamp(-NOISE_CLIP, NOISE_CLIP)
            then = (self.slow_actor(following) + noise).clamp(-1, 1)
            worth = torch.min(*(at(c, following, then) for c in self.slow_critics))
            wanted = reward + (1 - end) * DISCOUNT * worth
        loss = sum(F.mse_loss(at(c, obs, action), wanted) for c in self.critics)
        for optimiser in self.of_critics:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in self.of_critics:
            optimiser.step()
        if self.count % DELAY:
            return
        chosen = self.actor(obs)
        worth = at(self.critics[0], obs, chosen)
        loss = -ALPHA / worth.abs().mean().detach() * worth.mean() + F.mse_loss(chosen, action)
        self.of_actor.zero_grad()
        loss.backward()
        self.of_actor.step()
        for target, source in zip([self.slow_actor, *self.slow_critics], [self.actor, *self.critics], strict=True):
            follow(target, source)


class IQL:
    """A value, two critics with a lagging copy, and a Gaussian actor with a deviation of its own."""

    def __init__(self) -> None:
        self.value = network(OBS, 1)
        self.critics = nn.ModuleList(network(OBS + ACTION, 1) for _ in range(2))
        self.slow = copy.deepcopy(self.critics).requires_grad_(False)
        self.mean = nn.Sequential(network(OBS, ACTION), nn.Tanh())
        self.log_std = nn.Parameter(torch.zeros(ACTION))
        self.of_value, self.of_critics = adam(self.value), adam(self.critics)
        self.of_actor = torch.optim.Adam([*self.mean.parameters(), self.log_std], lr=RATE)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.of_actor, HORIZON)

    def update(self, data: Data) -> None:
        obs, action, reward, following, end = data.draw()
        with torch.no_grad():
            worth, after = torch.min(*(at(c, obs, action) for c in self.slow)), self.value(following)
        gain = worth - self.value(obs)
        self._step(self.of_value, (torch.abs(EXPECTILE - (gain < 0).float()) * gain**2).mean())
        wanted = reward + (1 - end) * DISCOUNT * after
        self._step(self.of_critics, sum(F.mse_loss(at(c, obs, action), wanted) for c in self.critics) / 2)
        for target, source in zip(self.slow, self.critics, strict=True):
            follow(target, source)
        weight = (BETA * gain.detach()).exp().clamp(max=MOST)[:, 0]
        normal = torch.distributions.Normal(self.mean(obs), self.log_std.clamp(-20, 2).exp())
        self._step(self.of_actor, (weight * -normal.log_prob(action).sum(1)).mean())
        self.schedule.step()

    def _step(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def main() -> None:
    flags = asked()
    flags.add_argument("algorithm", choices=["td3_bc", "iql"])
    args = flags.parse_args()
    limit(args.threads)
    torch.manual_seed(args.seed)
    learner, data = TD3BC() if args.algorithm == "td3_bc" else IQL(), Data(args.seed)

    def update(n: int) -> None:
        for _ in range(n):
            learner.update(data)

    found = speed(args.algorithm, update, args.seconds)
    settings, versions = "modules one by one, Adam of torch", ("torch", "numpy")
    report(
        "corl-style", versions, what=args.algorithm, seed=args.seed, threads=args.threads, settings=settings, **found
    )


if __name__ == "__main__":
    main()
