"""Solvers that climb the gradient of a process that is known: a softmax for every state, in log space."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import logsumexp

from partita.core.errors import UserError
from partita.core.limits import check_above
from partita.parts.planning import Planner, about
from partita.parts.solver import Solution
from partita.tasks.finite.mdp import Array, FiniteMDP


def gradient(mdp: FiniteMDP, policy: Array, advantage: Array) -> Array:
    """The gradient of the value of the first state in the logits of a softmax policy, (S, A).

        dV / dtheta(s, a) = d(s) pi(a|s) A(s, a) / (1 - discount),    d the discounted occupancy, which adds up to 1

    policy: (S, A) probabilities. advantage: (S, A). Agarwal et al. (2021), arXiv:1908.00261.
    """
    return mdp.occupancy(policy)[:, None] * policy * advantage / (1 - mdp.discount)


@dataclass(frozen=True)
class SoftmaxAscent(Planner):
    """Base of solvers that change the logits of a softmax policy, from the uniform one on.

    Stops when no value is further than `tolerance` from the best: v* - v <= max A / (1 - discount).
    """

    abstract: ClassVar[bool] = True
    eta: float | None = None
    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        check_above("solver.tolerance", self.tolerance)
        if self.eta is not None and not 0 < self.eta < math.inf:
            raise UserError(f"solver.eta: expected a number above 0, got {self.eta}")

    def cannot(self, problem: FiniteMDP) -> str | None:
        if problem.discount == 1:
            return "its discount is 1; give --discount, or use value_iteration"
        return super().cannot(problem)

    def rise(self, mdp: FiniteMDP, policy: Array, advantage: Array, span: float) -> Array:
        """What is added to the logits, (S, A); span: the largest less the smallest reward."""
        raise NotImplementedError

    def __call__(self, problem: FiniteMDP, generator: np.random.Generator) -> Iterator[Solution]:
        exists = np.ones(problem.reward.shape, bool) if problem.allowed is None else problem.allowed
        span = float(np.ptp(problem.reward[exists])) or 1.0
        logits, error = np.where(exists, 0.0, -np.inf), math.inf
        while error > self.tolerance:
            logits = logits - logsumexp(logits, axis=1, keepdims=True)
            policy = np.exp(logits)
            values = problem.evaluate(policy)
            advantage = np.where(exists, problem.q(values) - values[:, None], 0.0)
            error = max(0.0, float(advantage[exists].max())) / (1 - problem.discount)
            yield about(problem, values, policy, error=error)
            logits = logits + self.rise(problem, policy, advantage, span)


@dataclass(frozen=True)
class ExactPolicyGradient(SoftmaxAscent):
    """Gradient ascent on the value of the first state (Agarwal et al., 2021, arXiv:1908.00261).

        theta(s, a) += eta d(s) pi(a|s) A(s, a) / (1 - discount)

    eta None: (1 - discount)^3 / (8 span of rewards), with which the value never falls. States that are never come to
    are never changed.
    """

    def rise(self, mdp: FiniteMDP, policy: Array, advantage: Array, span: float) -> Array:
        eta = (1 - mdp.discount) ** 3 / (8 * span) if self.eta is None else self.eta
        return eta * gradient(mdp, policy, advantage)


@dataclass(frozen=True)
class ExactNaturalPolicyGradient(SoftmaxAscent):
    """Natural gradient ascent: no state's share of time and no action's probability slows it (Agarwal et al., 2021).

        pi(a|s) <- pi(a|s) exp(eta A(s, a) / (1 - discount)) / Z(s)

    arXiv:1908.00261. From the uniform policy, with rewards in [0, 1], after T steps v* - v is at most
    ln A / (eta T) + 1 / ((1 - discount)^2 T), whatever the start. eta None: 1 / span of rewards. A large eta is policy
    iteration.
    """

    def rise(self, mdp: FiniteMDP, policy: Array, advantage: Array, span: float) -> Array:
        return (1 / span if self.eta is None else self.eta) * advantage / (1 - mdp.discount)
