"""On the Theory of Policy Gradient Methods: Optimality, Approximation, and Distribution Shift (Agarwal et al., 2021),
arXiv:1908.00261: policy gradients without any sampling.

A softmax for every state of a process that is known climbs its value along the gradient or the natural gradient:

    theta(s, a) += eta d(s) pi(a|s) A(s, a) / (1 - discount)      `exact_policy_gradient`
    theta(s, a) += eta A(s, a) / (1 - discount)                   `exact_natural_policy_gradient`

Written after accounts of the paper, which was not at hand.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from partita.core.paper import Identity, Paper
from partita.loops.exact import Exact
from partita.parts.exact_gradient import ExactNaturalPolicyGradient, ExactPolicyGradient
from partita.tasks.finite.garnet import Garnet
from partita.tasks.finite.mdp import FiniteMDP

PAPER = Paper(
    key="exact_gradient",
    title="On the Theory of Policy Gradient Methods: Optimality, Approximation, and Distribution Shift",
    arxiv="1908.00261", kind="baseline", authors="Agarwal et al.", year=2021, changes=("solver",), loop="exact",
)  # fmt: skip

RECIPES = {
    "exact_policy_gradient": Exact(solver=ExactPolicyGradient(), sweeps=10_000),
    "exact_natural_policy_gradient": Exact(solver=ExactNaturalPolicyGradient(), sweeps=10_000),
}


def garnet(seed: int) -> FiniteMDP:
    """A random process whose rewards are in [0, 1]."""
    mdp = Garnet(states=20, actions=4, branches=3, seed=seed, discount=0.9).process
    return mdp.but(reward=(mdp.reward - mdp.reward.min()) / np.ptp(mdp.reward), gains=None)


def exceeded(seed: int, steps: int = 200) -> float:
    """How often, over three eta and all T up to `steps`, the natural gradient is further off than its bound."""
    mdp, count = garnet(seed), 0
    best = mdp.induced(1000)[0][-1]
    for eta in (0.01, 0.1, 1.0):
        climb = ExactNaturalPolicyGradient(eta=eta, tolerance=1e-12)(mdp, np.random.default_rng(seed))
        for step, found in enumerate(itertools.islice(climb, steps + 1)):
            gap = float((best - found.tables["values"]).max())
            count += step > 0 and gap > math.log(mdp.choices) / (eta * step) + 1 / ((1 - mdp.discount) ** 2 * step)
    return float(count)


def fallen(seed: int, sweeps: int = 200) -> float:
    """How far, at most, a value of the first state falls from one policy to the next, with either gradient."""
    mdp, worst = garnet(seed), 0.0
    for solver in (ExactPolicyGradient(), ExactNaturalPolicyGradient()):
        climb = itertools.islice(solver(mdp, np.random.default_rng(seed)), sweeps)
        worst = max(worst, float(-np.diff([found.numbers["value"] for found in climb]).min()))
    return worst


CLAIMS = (
    Identity(
        statement="after T steps of the natural gradient no value is further from the best than "
        "ln A / (eta T) + 1 / ((1 - discount)^2 T)",
        measure=exceeded, expected=0.0, tolerance=0.0, seeds=8,
    ),
    Identity(
        statement="at the steps that theory allows the value never falls", measure=fallen, expected=0.0,
        tolerance=1e-10, seeds=8,
    ),
)  # fmt: skip
