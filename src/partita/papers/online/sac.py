"""Soft Actor-Critic Algorithms and Applications (Haarnoja et al., 2018), arXiv:1812.05905.

The replay loop's baseline for control. Return and entropy are maximised together, off-policy: critics of the soft
Bellman equation, a policy that follows them, and a temperature that keeps the policy's entropy at a target.

    y       = r + discount * (min_k Qlag_k(s', a') - alpha log pi(a'|s')),    a' ~ pi(s')          (eq. 5, 6)
    J_pi    = E[alpha log pi(a|s) - min_k Q_k(s, a)],    a ~ pi(s), reparameterised                (eq. 9)
    J_alpha = E[-alpha (log pi(a|s) + target)],    target = -(numbers of an action)               (eq. 18)

Two critics, of which the lesser counts. On discrete actions the expectations over a are exact (Christodoulou, 2019,
arXiv:1910.07207). Equations are numbered second-hand; public implementations take the temperature's gradient in
log alpha, as this does. An update is critics, policy, temperature, lagging critics, in this order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partita.core import registry
from partita.core.errors import UserError
from partita.core.paper import Claim, Identity, Paper
from partita.core.transitions import Transitions
from partita.loops.replay import OffPolicy, train
from partita.loops.run import Generators, Run
from partita.parts.actor import SoftActor
from partita.parts.critic import SoftQ
from partita.parts.explore import Drawn
from partita.parts.rollout.control import episodes as rollout
from partita.parts.target import Polyak
from partita.parts.temperature import FixedTemperature, TunedTemperature
from partita.policies.feed_forward import FeedForward
from partita.tasks.control.classic import Pendulum

PAPER = Paper(
    key="sac", title="Soft Actor-Critic Algorithms and Applications", arxiv="1812.05905", loop="replay",
    authors="Haarnoja et al.", year=2018, changes=("critic", "actor", "temperature"),
)  # fmt: skip

SAC = OffPolicy(
    critic=SoftQ(members=2), actor=SoftActor(), temperature=TunedTemperature(), target=Polyak(tau=0.005),
    explore=Drawn(),
)  # fmt: skip

RECIPES = {"sac": SAC, "sac_fixed": SAC.but(temperature=FixedTemperature(value=0.2))}


class Table:
    """A policy and a value for every state and action of a small problem, as parts of the loop see an agent.

    values: (S, A). logits: of the policy, (S, A), zeros at first. Observations are numbers of states.
    """

    discrete = True

    def __init__(self, values: Tensor, alpha: float) -> None:
        self.values, self.alpha, self.logits = values, alpha, torch.zeros_like(values)

    def table(self, obs: Tensor) -> Tensor:
        """log pi(a|s) of every action, (N, A)."""
        return self.logits[obs].log_softmax(-1)

    def q(self, obs: Tensor, action: Tensor | None = None, lagged: bool = False) -> Tensor:
        """Q(s, a) of every action, (1, N, A)."""
        return self.values[obs][None]


def off_the_soft_optimum(seed: int, states: int = 4, actions: int = 3, discount: float = 0.8) -> float:
    """How far soft policy iteration by the parts of SAC is from the best soft values, at most, in a random problem.

        Q*(s, a) = r + discount * alpha log sum_b exp(Q*(s', b) / alpha)

    Critics learn until they change no more; then the policy is exp(Q / alpha) / Z, where the slope of the actor's loss,
    which must be 0, counts as well; 12 times.
    """
    g, count = torch.Generator().manual_seed(seed), states * actions
    reward = torch.randn(count, generator=g, dtype=torch.float64)
    following = torch.randint(states, (count,), generator=g)
    rows = torch.arange(count)
    batch = Transitions(rows // actions, rows % actions, reward, following, torch.full_like(reward, discount))
    agent: Any = Table(torch.zeros(states, actions, dtype=torch.float64), 0.5)
    off = 0.0
    for _ in range(12):
        with torch.no_grad():
            for _ in range(60):
                agent.values = SoftQ().target(agent, batch).view(states, actions)
        agent.logits = (agent.values / agent.alpha).requires_grad_()
        (slope,) = torch.autograd.grad(SoftActor()(agent, batch)[0], agent.logits)
        off = max(off, float(slope.abs().max()))
    best = torch.zeros_like(agent.values)
    for _ in range(150):
        best = (reward + discount * agent.alpha * (best / agent.alpha).logsumexp(-1)[following]).view_as(best)
    return max(off, float((agent.values - best).abs().max()))


def off_the_constraint(seed: int, actions: int = 6, share: float = 0.6) -> float:
    """What is missing to the highest mean reward of all policies that have the entropy asked for, or too much.

    Over random rewards of so many actions, with the best policy for every temperature that tuning comes through. The
    highest is found by sequential quadratic programming.
    """
    import numpy as np
    from scipy.optimize import minimize

    reward = torch.randn(actions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    temperature = TunedTemperature(target=share * math.log(actions), lr=0.01)
    for _ in range(3000):
        logp = (reward / temperature.alpha()).log_softmax(-1)
        temperature.learn(-(logp.exp() * logp).sum())
    gain, target, worth = float(logp.exp() @ reward), share * math.log(actions), reward.numpy()
    bounds: Any = [(1e-9, 1.0)] * actions
    limits: Any = [
        {"type": "eq", "fun": lambda p: p.sum() - 1},
        {"type": "ineq", "fun": lambda p: -(p * np.log(p)).sum() - target},
    ]
    found = minimize(
        lambda p: -float(p @ worth), np.full(actions, 1 / actions), bounds=bounds, constraints=limits,
        options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    return -float(found.fun) - gain


@dataclass(frozen=True)
class _Scaled(Pendulum):
    """The pendulum with its rewards multiplied by `scale`."""

    scale: float = 1.0

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        state, reward, over = super().step(state, action, generator)
        return state, reward * self.scale, over


def measure(
    arm: str, seed: int, control: str = "sac_fixed", scales: tuple[float, ...] = (1.0,), alpha: float = 0.2,
    lr: float = 1e-3, episodes: int = 512, **changes: Any,
) -> dict[str, float]:  # fmt: skip
    """Mean return on the pendulum, over as many trainings as there are scales that rewards are multiplied by.

    alpha: the temperature, at first (`treatment`, which tunes it at the rate `lr` of the networks) or for good
    (`sac_fixed`; other controls have none). episodes: of the evaluation. changes: numbers of the recipe.
    """
    if not scales:
        raise UserError("scales: expected at least one number, got none")
    recipe = SAC if arm == "treatment" else registry.recipe(control)
    if arm == "treatment":
        recipe = recipe.but(temperature=TunedTemperature(initial=alpha, lr=lr))
    elif control == "sac_fixed":
        recipe = recipe.but(temperature=FixedTemperature(value=alpha))
    recipe, out = recipe.but(lr=lr, **changes), {}
    for scale in scales:
        task, plain, run = _Scaled(scale=scale), Pendulum(), Run(seed)
        policy = recipe.equip(FeedForward(hidden=(64, 64)), task).build(task, False, run.generators["init"])
        train(recipe, policy, task, run)
        streams = Generators(seed)
        greedy = rollout(policy, plain, plain.problems(episodes, streams["evaluation"]), 1, streams["acting"], True)
        out[f"scale_{scale:g}"] = float(greedy.need("reward").sum(1).mean())
    return {"value": sum(out.values()) / len(out), **out}


_RUN: dict[str, Any] = {"steps": 8, "updates": 500, "batch_size": 128, "start": 500}
_FIXED: dict[str, Any] = {
    "treatment": "sac", "control": "sac_fixed", "task": "pendulum", "metric": "return", "experiment": measure,
}  # fmt: skip


def published(seed: int) -> float:
    """Mean return on the pendulum of 1024 episodes after 8,000 steps."""
    numbers = {**_RUN, "updates": 1000, "episodes": 1024}
    return measure("treatment", seed, lr=3e-3, **numbers)["value"]


CLAIMS = (
    Identity(
        statement="comes, on every seed, to the return that is published for the pendulum, within 15 (-157.0 over 750 "
        "episodes after 20,000 steps in the benchmark of RL Baselines3 Zoo; here after 8,000)",
        measure=published, expected=-157.0, tolerance=15.0, seeds=8,
    ),
    Claim(
        statement="keeps its return where rewards are a hundred times smaller, with a temperature that is tuned rather "
        "than fixed for rewards as they were",
        settings=_RUN, search={"lr": (1e-3, 3e-3)},
        dial=(
            "rewards multiplied by",
            (("1", {"scales": (1.0,)}), ("0.1", {"scales": (0.1,)}), ("0.01", {"scales": (0.01,)})),
        ),
        **_FIXED,
        analysis="-165 against -1136 at a hundredth, on all eight seeds; -199 against -208 at the scale that 0.2 was "
        "meant for, and -198 against -204 at a tenth. Of the two rates SAC took 1e-3, the other 3e-3.",
    ),
    Claim(
        statement="one setting serves rewards of both scales better than any one fixed temperature",
        settings={**_RUN, "lr": 3e-3}, search={"alpha": (0.002, 0.02, 0.2)},
        dial=("rewards multiplied by", (("1", {"scales": (1.0,)}), ("1 and 0.01", {"scales": (1.0, 0.01)}))),
        **_FIXED,
        analysis="-197 against -166, on both scales together: the other way round if anything. Fixed temperatures "
        "were searched down to 0.002, and the smallest serves both scales: on this pendulum hardly any entropy is "
        "needed. SAC lost one seed (-330; -495 at the larger scale) and is level on the others.",
    ),
    Claim(
        statement="comes at least as far as TD3 in as many steps (within 20)",
        threshold=-20.0, settings={**_RUN, "control": "td3"}, search={"lr": (1e-3, 3e-3)},
        **{**_FIXED, "control": "td3"},
        analysis="-193 against -609 after 4,000 steps, on all eight seeds but in different measure: TD3 begins "
        "late on this task. Two rates were searched for each.",
    ),
    Identity(
        statement="soft policy iteration by the target of its critics and the loss of its actor ends at the best soft "
        "values of a finite problem",
        measure=off_the_soft_optimum, expected=0.0, tolerance=1e-9, seeds=8,
    ),
    Identity(
        statement="the temperature comes to where the policy earns the most of all that have the entropy asked for",
        measure=off_the_constraint, expected=0.0, tolerance=1e-5, seeds=8,
    ),
)  # fmt: skip
