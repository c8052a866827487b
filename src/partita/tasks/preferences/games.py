"""Preferences small enough to solve: a softmax bandit with a reward, and a game with a matrix of preferences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from partita.core.errors import UserError
from partita.core.limits import check_share
from partita.estimators import games


@dataclass(frozen=True, eq=False)
class SoftmaxBandit:
    """Responses with a reward, a reference policy, and the price of leaving it.

        J(pi) = E_pi[r] - beta KL(pi || ref),    pi* = ref exp(r / beta) / Z

    reward: (A,); log_ref: (A,), normalised here (None: uniform); beta > 0.
    """

    reward: Tensor
    log_ref: Tensor | None = None
    beta: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("beta", self.beta, False)
        _check_ref(self.log_ref, len(self.reward))

    @staticmethod
    def random(actions: int, seed: int, beta: float = 1.0) -> SoftmaxBandit:
        """Standard normal rewards, and a reference with standard normal logits."""
        r, ref = torch.randn(2, actions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return SoftmaxBandit(r, ref, beta)

    @cached_property
    def ref(self) -> Tensor:
        """log ref, (A,)."""
        return _log_ref(self.log_ref, len(self.reward))

    @cached_property
    def optimal(self) -> Tensor:
        """log pi*, (A,)."""
        return games.kl_optimal(self.reward, self.ref, self.beta)

    @cached_property
    def best(self) -> float:
        """J(pi*) = beta log sum_y ref(y) exp(r(y) / beta)."""
        return float(games.kl_value(self.reward, self.ref, self.beta))

    @cached_property
    def preference(self) -> Tensor:
        """Bradley-Terry: P_ij = s(r_i - r_j), (A, A)."""
        r = self.reward.double()
        return (r[:, None] - r[None]).sigmoid()

    def value(self, logp: Tensor) -> Tensor:
        """J(pi), (...), of log-policies (..., A)."""
        return logp.double().exp() @ self.reward.double() - self.beta * games.kl(logp, self.ref.expand_as(logp))

    def regret(self, logp: Tensor) -> Tensor:
        """J(pi*) - J(pi) = beta KL(pi || pi*), (...)."""
        return self.best - self.value(logp)


@dataclass(frozen=True, eq=False)
class MatrixGame:
    """A symmetric game of preferences, regularised towards a reference policy with strength tau.

        payoff(pi, pi') = P(pi beats pi') - tau KL(pi || ref) + tau KL(pi' || ref)

    preference: (A, A), P + P^T = 1; log_ref: (A,), normalised here (None: uniform); tau 0: the plain game.
    """

    preference: Tensor
    log_ref: Tensor | None = None
    tau: float = 0.0

    def __post_init__(self) -> None:
        _check_positive("tau", self.tau, True)
        try:
            games.check_game(self.preference)
        except ValueError as error:
            raise UserError(str(error)) from error
        _check_ref(self.log_ref, len(self.preference))

    @staticmethod
    def rock_paper_scissors(strength: float = 1.0, tau: float = 0.0, log_ref: Tensor | None = None) -> MatrixGame:
        """Each of three responses beats the one before it with probability (1 + strength) / 2."""
        check_share("strength", strength)
        turn = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64)
        return MatrixGame((1 + strength * turn) / 2, log_ref, tau)

    @staticmethod
    def random(actions: int, seed: int, intransitive: float = 1.0, tau: float = 0.0) -> MatrixGame:
        """s((1 - c) (r_i - r_j) + c S_ij): r and the skew-symmetric S standard normal, c = `intransitive`."""
        check_share("intransitive", intransitive)
        generator = torch.Generator().manual_seed(seed)
        r = torch.randn(actions, generator=generator, dtype=torch.float64)
        s = torch.randn(actions, actions, generator=generator, dtype=torch.float64).triu(1)
        return MatrixGame(((1 - intransitive) * (r[:, None] - r) + intransitive * (s - s.T)).sigmoid(), None, tau)

    @cached_property
    def ref(self) -> Tensor:
        """log ref, (A,)."""
        return _log_ref(self.log_ref, len(self.preference))

    @cached_property
    def equilibrium(self) -> Tensor:
        """log of the Nash equilibrium, (A,): the one of the regularised game, or one of the plain game at tau 0."""
        if self.tau:
            return games.regularised_nash(self.preference, self.ref, self.tau)
        return games.nash(self.preference).log()

    def gap(self, logp: Tensor) -> Tensor:
        """The duality gap, (...), of log-policies (..., A): 0 at the equilibrium only."""
        return games.regularised_exploitability(self.preference, logp, self.ref.expand_as(logp), self.tau)

    def win_rate(self, logp: Tensor, other: Tensor) -> Tensor:
        """P(pi beats pi'), (...), of log-policies (..., A)."""
        return games.win_rate(self.preference, logp.double().exp(), other.double().exp())


def _check_positive(name: str, value: float, zero: bool) -> None:
    if not (0 <= value < math.inf and (zero or value > 0)):
        raise UserError(f"{name}: expected a number {'of 0 or more' if zero else 'above 0'}, got {value}")


def _check_ref(log_ref: Tensor | None, actions: int) -> None:
    if log_ref is not None and tuple(log_ref.shape) != (actions,):
        raise UserError(f"log_ref: expected (A,) = ({actions},), got {tuple(log_ref.shape)}")
    if log_ref is not None and not bool(log_ref.isfinite().all()):
        raise UserError("log_ref: expected finite numbers; give every response some probability")


def _log_ref(log_ref: Tensor | None, actions: int) -> Tensor:
    return torch.log_softmax(torch.zeros(actions) if log_ref is None else log_ref, -1, dtype=torch.float64)
