"""Distributional Soft Actor-Critic with Three Refinements (Duan et al., 2023), arXiv:2310.05858: DSAC-T, DSACv2.

A critic of SAC gives the mean and the deviation of a Gaussian of returns, which is drawn towards a target by maximum
likelihood: the more a return varies, the smaller the step of its mean. `dsac_v1` (Duan et al., 2021) does this with one
critic and one return Z' from the lagging critic's Gaussian, clipped to a fixed distance from Q where the deviation
learns. DSAC-T refines it three times:

    y_q = r + discount * (Q_i(s', a') - alpha log pi_lag(a'|s'))   the mean learns from the expected value (eq. 18)
    y_z = r + discount * (Z_i(s', a') - alpha log pi_lag(a'|s'))   the deviation from a return drawn
    i   = argmin_k Qlag_k(s', a'),   a' ~ pi_lag(s')               one of two critics for both (eq. 19, 20)
    b_k = xi E[sigma_k],   omega_k = E[sigma_k^2]                  limits and steps by the variance (eq. 23, 25)

    grad Q_k     = -(omega_k + eps_weight) (y_q - Q_k) / (sigma_k^2 + eps)
    grad sigma_k = -(omega_k + eps_weight) ((C(y_z) - Q_k)^2 - sigma_k^2) / (sigma_k^3 + eps)                (eq. 26)

with C(y) = clip(y, Q_k - b_k, Q_k + b_k), and expectations as moving averages over batches (eq. 27). The policy follows
the least mean (eq. 22); it and all that lags move at every other update. Equations are numbered second-hand. The
authors' code drew its weight from the square of the averaged deviation, and since July 2025 has another loss (a Huber
loss, and weights by state within 0.1 and 10); it clips noise at three deviations, starts with alpha = e and moves the
policy by the critics as they were before the update. Temperature and rates are here those of `sac`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from partita.core.errors import UserError
from partita.core.limits import check_least, check_share
from partita.core.paper import Claim, Paper
from partita.core.spaces import Box
from partita.core.transitions import Transitions
from partita.loops.replay import train
from partita.loops.run import Generators, Run
from partita.papers.online.sac import SAC
from partita.parts.actor import SoftActor
from partita.parts.critic import Critic, Notes, check_members, pessimistic
from partita.parts.rollout.control import episodes
from partita.parts.target import Polyak
from partita.parts.temperature import TunedTemperature
from partita.policies.agent import Agent
from partita.policies.feed_forward import FeedForward
from partita.tasks.control.classic import Pendulum

PAPER = Paper(
    key="dsac_t", title="Distributional Soft Actor-Critic with Three Refinements", arxiv="2310.05858",
    loop="replay", authors="Duan et al.", year=2023, changes=("critic", "actor", "target"),
)  # fmt: skip


def slopes(
    mean: Tensor, std: Tensor, expected: Tensor, drawn: Tensor, boundary: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradients of the critics' loss by their means and their deviations, (K, N) each (arXiv:2310.05858, eq. 26).

        by Q:      -w_k (y_q - Q) / (sigma^2 + eps)
        by sigma:  -w_k ((clip(y_z, Q - b_k, Q + b_k) - Q)^2 - sigma^2) / (sigma^3 + eps)

    mean, std: Q and sigma of K critics, (K, N). expected, drawn: y_q and y_z, (N,). boundary, weight: b and w, (K, 1).
    """
    off = torch.minimum(torch.maximum(drawn - mean, -boundary), boundary)
    by_mean = weight * (mean - expected) / (std.square() + eps)
    by_std = weight * (std.square() - off.square()) / (std.pow(3) + eps)
    return by_mean, by_std


@dataclass(frozen=True)
class ValueDistribution(Critic):
    """Gaussians of soft returns, refined (Duan et al., 2023, arXiv:2310.05858, eq. 19 to 27).

        loss = sum_k mean g_k Q_k(s, a) + h_k sigma_k(s, a),    g, h: the slopes of eq. 26, as constants

    members: 2 with twin distributions, 1 without. expected: the mean learns from y_q; without it from y_z, unclipped.
    boundary: None limits y_z to xi E[sigma] from Q and weighs all by E[sigma^2] + eps_weight; a number is the fixed
    limit of DSACv1, and the weight 1. tau: rate of these averages, which begin as those of the first batch. sigma =
    softplus of a critic's second number.
    """

    lags: ClassVar[tuple[str, ...]] = ("critic", "actor")
    outputs: ClassVar[int] = 2
    members: int = 2
    expected: bool = True
    boundary: float | None = None
    xi: float = 3.0
    tau: float = 0.005
    eps: float = 0.1
    eps_weight: float = 0.1
    _held: dict[str, Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_members(self.members)
        for name in ("boundary", "xi", "eps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"critic.{name}: expected a number above 0, got {value}")
        check_least("critic.eps_weight", self.eps_weight)
        check_share("critic.tau", self.tau, above=True)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not isinstance(task.action_space, Box):
            return f"critic value_distribution needs real-valued actions, and task {task.part_name()} has none; use sac"
        return None

    def targets(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Tensor]:
        """y_q and y_z, (N,) each, of the lagging critic with the least mean; without gradients."""
        with torch.no_grad():
            action, logp = agent.draw(batch.next_obs, lagged=True)
            mean, std = gaussian(agent.policy.raw(batch.next_obs, action, agent.lagged))
            least = mean.argmin(0, keepdim=True)
            z = torch.randn(mean.shape[1:], generator=agent.generator, device=agent.generator.device).to(mean.device)
            value, noise = mean.gather(0, least)[0], std.gather(0, least)[0] * z
            value = value if logp is None else value - agent.alpha * logp
            expected = torch.addcmul(batch.reward, batch.discount, value)
            return expected, torch.addcmul(expected, batch.discount, noise)

    def adjustment(self, std: Tensor) -> tuple[Tensor, Tensor]:
        """b and the weight of every critic, (K, 1), after taking the deviations (K, N) of a batch into the averages."""
        if self.boundary is not None:
            return torch.full_like(std[:, :1], self.boundary), torch.ones_like(std[:, :1])
        for name, value in (("std", std.mean(1, keepdim=True)), ("variance", std.square().mean(1, keepdim=True))):
            self._held[name] = value if name not in self._held else self._held[name].lerp(value, self.tau)
        return self.xi * self._held["std"], self._held["variance"] + self.eps_weight

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        y_q, y_z = self.targets(agent, batch)
        mean, std = gaussian(agent.policy.raw(batch.obs, batch.action))
        q, sigma = mean.detach(), std.detach()
        expected = y_q if self.expected else y_z
        by_mean, by_std = slopes(q, sigma, expected, y_z, *self.adjustment(sigma), self.eps)
        loss = batch.mean(by_mean * mean + by_std * std).sum()
        return loss, {"q": q.mean(), "spread": sigma.mean(), "error": (q - y_q).abs().mean(0)}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._held)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._held.clear()
        self._held.update(state)


def gaussian(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the returns, (K, N) each, from what the critics put out, (K, N, 2)."""
    return raw[..., 0], softplus(raw[..., 1])


DSAC_T = SAC.but(critic=ValueDistribution(), actor=SoftActor(delay=2), target=Polyak(tau=0.005, every=2))

RECIPES = {
    "dsac_t": DSAC_T,
    "dsac_v1": DSAC_T.but(critic=ValueDistribution(members=1, expected=False, boundary=20.0)),
}


def soft_returns(reward: Tensor, logp: Tensor, alpha: float, discount: float) -> Tensor:
    """What is earned from every step on, the entropy of later steps included; (B, T), as what comes before a cut.

    G_t = r_t + discount * (G_{t+1} - alpha log pi(a_{t+1}|s_{t+1}))
    """
    out, later = torch.empty_like(reward), torch.zeros_like(reward[:, 0])
    for t in reversed(range(reward.shape[1])):
        out[:, t] = reward[:, t] + discount * later
        later = out[:, t] - alpha * logp[:, t]
    return out


def bias(policy: Any, task: Any, alpha: float, discount: float, seed: int, count: int = 64, tail: int = 600) -> float:
    """Mean of Q less the soft return that followed, over the steps of `count` episodes of a task that never ends early.

    Q is the least of the critics. Episodes go on for `tail` steps after those that are judged.
    """
    streams = Generators(seed)
    longer = replace(task, max_steps=task.horizon + tail)
    batch = episodes(policy, longer, longer.problems(count, streams["problems"]), 1, streams["actions"])
    obs, action = (batch.inputs[name][:, : task.horizon].flatten(0, 1) for name in ("obs", "action"))
    found = soft_returns(batch.need("reward"), batch.need("logp"), alpha, discount)[:, : task.horizon]
    with torch.no_grad():
        return float((pessimistic(policy.q(obs, policy.scaled(action))) - found.flatten()).mean())


@dataclass(frozen=True)
class _Rewarded(Pendulum):
    """The pendulum with noise in its rewards, which are multiplied by `scale`."""

    scale: float = 1.0
    noise: float = 0.0

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        state, reward, over = super().step(state, action, generator)
        if self.noise:
            z = torch.randn(reward.shape, generator=generator, device=generator.device).to(reward.device)
            reward = reward + self.noise * z
        return state, reward * self.scale, over


def measure(
    arm: str, seed: int, control: str = "sac", of: str = "bias", scale: float = 1.0, noise: float = 0.0,
    tau: float = 0.02, alpha: float = 0.1, **changes: Any,
) -> dict[str, float]:  # fmt: skip
    """Train DSAC-T or `control` on the pendulum; the absolute bias of its Q, or the mean return, in rewards of scale 1.

    noise: the deviation of noise in the rewards of training. tau: of the lagging networks. alpha: the temperature at
    first, which is tuned. changes: numbers of the recipe.
    """
    recipe = DSAC_T if arm == "treatment" else {**RECIPES, "sac": SAC}[control]
    assert isinstance(recipe.target, Polyak)
    recipe = recipe.but(target=recipe.target.but(tau=tau), temperature=TunedTemperature(initial=alpha), **changes)
    task, run = _Rewarded(scale=scale, noise=noise), Run(seed)
    policy = recipe.equip(FeedForward(hidden=(64, 64)), task).build(task, False, run.generators["init"])
    train(recipe, policy, task, run)
    plain, last = Pendulum(), run.metrics[-1]
    greedy = episodes(
        policy, plain, plain.problems(128, Generators(seed)["evaluation"]), 1, Generators(seed)["x"], True
    )
    found = bias(policy, _Rewarded(scale=scale), last["alpha"], recipe.discount, seed) / scale
    gain = float(greedy.need("reward").sum(1).mean())
    return {"value": abs(found) if of == "bias" else gain, "bias": found, "return": gain, "alpha": last["alpha"]}


_RUN: dict[str, Any] = {
    "steps": 8, "updates": 500, "batch_size": 128, "envs": 4, "ratio": 0.25, "discount": 0.95,
}  # fmt: skip
_ARMS: dict[str, Any] = {
    "treatment": "dsac_t", "task": "pendulum", "experiment": measure, "search": {"lr": (1e-3, 3e-3)},
    "tuned_by": "return",
}  # fmt: skip
_BIAS: dict[str, Any] = {
    "metric": "absolute bias of Q", "better": "lower",
    "dial": ("deviation of noise in rewards", (("0", {"noise": 0.0}), ("5", {"noise": 5.0}))), **_ARMS,
}  # fmt: skip
_SCALED: dict[str, Any] = {
    "metric": "return",
    "dial": ("rewards multiplied by", (("0.1", {"scale": 0.1}), ("1", {"scale": 1.0}), ("10", {"scale": 10.0}))),
    **_ARMS,
}  # fmt: skip

CLAIMS = (
    Claim(
        statement="its Q is nearer to the returns that follow than that of SAC",
        control="sac", settings=_RUN, **_BIAS,
        analysis="13.4 against 14.7 where rewards are noisy, 3.7 against 3.1 where they are not; seeds differ by ten "
        "times as much. A pendulum leaves twin critics little to overestimate.",
    ),
    Claim(
        statement="and than that of DSACv1",
        control="dsac_v1", settings={**_RUN, "control": "dsac_v1"}, **_BIAS,
        analysis="A tie: 13.5 against 10.9 where rewards are noisy, 3.6 against 6.2 where they are not; seeds "
        "differ by more than methods do.",
    ),
    Claim(
        statement="where rewards are ten times as large it comes to a higher return than DSACv1",
        control="dsac_v1", settings={**_RUN, "control": "dsac_v1", "of": "return"}, **_SCALED,
        analysis="-186 against -194 at ten times, -160 against -169 at a tenth: a tie at either end. At scale 1 it "
        "is ahead on all eight seeds (-165 against -264), by 90 in the mean because two seeds of DSACv1 come late; "
        "one setting of scales out of three, so no evidence of a trend.",
    ),
)  # fmt: skip
