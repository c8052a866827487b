"""What an adversary may do to the observations of a policy within a budget for the episode, many episodes at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from partita.core.errors import UserError
from partita.core.spaces import Discrete
from partita.policies.feed_forward import FeedForwardPolicy
from partita.tasks.control.base import Control

THRESHOLDS = (0.0, 0.03, 0.1, 0.3, 1.0)  # of the greedy attacks that are tried


@dataclass
class Smoothed:
    """A policy that acts on o + sigma z, z drawn from `generator`; sigma = 0 is the policy itself."""

    policy: Any
    sigma: float
    generator: torch.Generator
    networks: Any = field(init=False)

    def __post_init__(self) -> None:
        self.networks = copy.deepcopy(self.policy.module).requires_grad_(False)

    def noise(self, *shape: int) -> Tensor:
        """sigma z of this shape, on the policy's device; a step adds one of the shape of its observations."""
        return self.sigma * torch.randn(shape, generator=self.generator).to(self.policy.device)

    def q(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Mean over noise (n, K, D) of Q(o + noise, a), (n, A); gradients reach observations (n, D) alone."""
        seen = (obs[:, None] + noise).flatten(0, 1)
        return self.policy.head(seen, self.networks).unflatten(0, noise.shape[:2]).mean(1)


Attack = Callable[[Smoothed, Tensor, Tensor, int], Tensor]  # observations (n, D), left (n,), step -> shifts (n, D)


@dataclass(frozen=True)
class Greedy:
    """The authors' attack: as soon as a worse action can be had for what is left of the budget, it is bought.

        eps_t = the shift within |eps| <= b_t that makes argmax_a Qbar(o_t + eps, a) the worst action it can,
        b_{t+1}^2 = b_t^2 - |eps_t|^2

    Qbar is the mean of Q over `noises` draws of the noise. Worse is by at least `threshold` in Qbar(o_t); to every such
    action lead at most 2 b_t / step steps of length `step` along the slope of its cross-entropy, projected on the ball,
    until it is the argmax. Where none is reached nothing is spent.
    """

    threshold: float = 0.0
    noises: int = 128
    step: float = 0.01

    def __post_init__(self) -> None:
        if not (self.threshold >= 0 and self.noises >= 1 and self.step > 0):
            raise UserError(f"attack: expected threshold >= 0, noises >= 1 and step > 0, got {self}")

    def __call__(self, victim: Smoothed, obs: Tensor, left: Tensor, t: int) -> Tensor:
        noise = victim.noise(len(obs), self.noises if victim.sigma else 1, obs.shape[1])
        with torch.no_grad():
            q = victim.q(obs, noise)
        best, worth = q.argmax(1), q.amax(1)
        worse = q <= worth[:, None] - self.threshold
        worse[torch.arange(len(obs)), best] = False
        row, target = worse.nonzero(as_tuple=True)
        shift, reached = self.moved(victim, obs[row], noise[row], left[row], target)
        bought = torch.full_like(q, math.inf)
        bought[row[reached], target[reached]] = q[row[reached], target[reached]]
        chosen = bought.argmin(1)
        table = obs.new_zeros((*q.shape, obs.shape[1]))
        table[row, target] = shift * reached[:, None]
        return table[torch.arange(len(obs)), chosen]

    def moved(
        self, victim: Smoothed, obs: Tensor, noise: Tensor, left: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Shifts (m, D) towards target actions (m,), and whether they are the argmax there, (m,)."""
        shift, reached = torch.zeros_like(obs), torch.zeros(len(obs), dtype=torch.bool, device=obs.device)
        most = (2 * left / self.step).long()
        at = most.nonzero()[:, 0]
        for count in range(int(most.max()) + 1 if len(at) else 0):
            there = (obs[at] + shift[at]).requires_grad_()
            q = victim.q(there, noise[at])
            reached[at] = q.argmax(1) == target[at]
            slope = torch.autograd.grad(cross_entropy(q, target[at], reduction="sum"), there)[0]
            on = ~reached[at] & (most[at] > count)
            at, slope = at[on], slope[on]
            if not len(at):
                break
            moved = shift[at] - self.step * normalize(slope, dim=1)
            shift[at] = moved * (left[at] / moved.norm(dim=1).clamp(min=1e-12)).clamp(max=1.0)[:, None]
        return shift, reached


@dataclass(frozen=True)
class Steady:
    """The budget spent evenly over the first `steps` steps.

        eps_t = b_t u_t / sqrt(steps - t)

    u_t: the unit vector `direction`, or where there is none, that along which the best action loses most against the
    worst, the slope of Qbar(worst) - Qbar(best) at what is seen; Qbar as in `Greedy`.
    """

    steps: int
    direction: tuple[float, ...] | None = None
    noises: int = 8

    def __post_init__(self) -> None:
        if self.steps < 1 or self.noises < 1:
            raise UserError(f"attack: expected steps >= 1 and noises >= 1, got {self}")

    def __call__(self, victim: Smoothed, obs: Tensor, left: Tensor, t: int) -> Tensor:
        if t >= self.steps:
            return torch.zeros_like(obs)
        if self.direction is not None:
            along = torch.tensor(self.direction, dtype=obs.dtype, device=obs.device).expand_as(obs)
        else:
            there = obs.detach().requires_grad_()
            q = victim.q(there, victim.noise(len(obs), self.noises if victim.sigma else 1, obs.shape[1]))
            along = torch.autograd.grad((q.amin(1) - q.amax(1)).sum(), there)[0]
        return normalize(along, dim=1) * (left / math.sqrt(self.steps - t))[:, None]


def attacks(policy: Any, env: Control) -> tuple[Attack, ...]:
    """The attacks that are tried on a policy, of which the strongest counts.

    Evenly along each coordinate (the first 8), both ways; and on the action values of a policy that has them, along
    their slope, and greedily from several thresholds, with fewer noises and longer steps than the authors'.
    """
    size, spans = env.observation_shape[0], sorted({1, max(1, env.horizon // 10), env.horizon})
    along = [tuple(sign * float(i == k) for i in range(size)) for k in range(min(size, 8)) for sign in (1, -1)]
    found: list[Attack] = [Steady(steps, direction) for direction in along for steps in spans[1:]]
    if valued(policy):
        found += [Steady(steps) for steps in spans]
        found += [Greedy(x, noises=16, step=0.05) for x in THRESHOLDS]
    return tuple(found)


def valued(policy: Any) -> bool:
    """Whether a policy acts by the values of its actions."""
    return isinstance(policy, FeedForwardPolicy) and policy.shape is None and isinstance(policy.space, Discrete)


def play(
    victim: Smoothed, env: Control, episodes: int, generator: torch.Generator, attack: Attack | None = None,
    budget: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns (n,) float64 of fresh episodes side by side, and the budget that the attack spent on each, (n,)."""
    policy = victim.policy
    envs = env.envs(env.problems(episodes, generator), generator, auto_reset=False, device=str(policy.device))
    live = torch.ones(episodes, dtype=torch.bool, device=envs.obs.device)
    total, square = (torch.zeros(episodes, dtype=torch.float64, device=live.device) for _ in range(2))
    policy.begin(episodes)
    try:
        for t in range(env.horizon):
            obs = envs.obs
            if attack is not None and budget:
                left = (budget**2 - square).clamp(min=0.0).sqrt().float()
                at = (live & (left > 1e-6 * budget)).nonzero()[:, 0]
                if len(at):
                    shift = attack(victim, obs[at], left[at], t)
                    square[at] += shift.double().square().sum(1)
                    obs = obs.index_add(0, at, shift)
            obs = obs + victim.noise(*obs.shape)
            with torch.no_grad():
                action = policy.act(obs, None)
            after = envs.step(action)
            policy.seen(obs, action, after.reward)
            total += after.reward.double() * live
            live = live & ~(after.terminated | after.truncated)
            if not bool(live.any()):
                break
    finally:
        envs.close()
    return total, square.sqrt()
