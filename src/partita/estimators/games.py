"""Softmax bandits and symmetric preference games, exactly: float64 and over a finite set of responses.

A game is P (A, A): P_ij is the probability that response i is preferred to j, so that P + P^T = 1. Policies are
(..., A), log-policies likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from partita.core.checks import check_rank, check_shape

TOLERANCE = 1e-12
Opponent = Literal["itself", "mixture", "half_step"]


def chance(difference: Tensor, noise: float) -> Tensor:
    """P(y beats y') = s(difference / noise), s the logistic function; at noise 0 the better wins, and equals toss."""
    return (difference / noise).sigmoid() if noise else (1 + difference.sign()) / 2


def kl_optimal(reward: Tensor, log_ref: Tensor, beta: float) -> Tensor:
    """log of the policy that maximises E_pi[r] - beta KL(pi || ref), (..., A).

        pi*(y) = ref(y) exp(r(y) / beta) / Z

    (Rafailov et al., 2023, arXiv:2305.18290, eq. 4.) reward, log_ref: (..., A). Raises ValueError unless beta > 0.
    """
    return torch.log_softmax(_tilted(reward, log_ref, beta), -1)


def kl_value(reward: Tensor, log_ref: Tensor, beta: float) -> Tensor:
    """max_pi E_pi[r] - beta KL(pi || ref) = beta log sum_y ref(y) exp(r(y) / beta), (...)."""
    return beta * torch.logsumexp(_tilted(reward, log_ref, beta), -1)


def kl(logp: Tensor, log_ref: Tensor) -> Tensor:
    """KL(pi || ref) over the last axis, (...); a response that pi never gives costs nothing."""
    check_shape("log_ref", log_ref, logp, "(..., A)")
    p = logp.double().exp()
    return torch.where(p > 0, p * (logp.double() - log_ref.double()), 0.0).sum(-1)


def win_rate(preference: Tensor, policy: Tensor, other: Tensor) -> Tensor:
    """P(pi beats pi') = sum_ij pi_i P_ij pi'_j, (...). preference: (A, A); policy, other: (..., A)."""
    check_game(preference)
    check_shape("other", other, policy, "(..., A)")
    return torch.einsum("...i,ij,...j->...", policy.double(), preference.double(), other.double())


def exploitability(preference: Tensor, policy: Tensor) -> Tensor:
    """The duality gap of a policy against itself, (...): 0 at a Nash equilibrium, at most 1.

        gap = max_i (P pi)_i - min_j (pi P)_j = 2 max_i (P pi)_i - 1

    preference: (A, A); policy: (..., A).
    """
    check_game(preference)
    return 2 * (policy.double() @ preference.double().T).amax(-1) - 1


def regularised_exploitability(preference: Tensor, logp: Tensor, log_ref: Tensor, tau: float) -> Tensor:
    """The duality gap of the game with payoff P(pi beats pi') - tau KL(pi || ref) + tau KL(pi' || ref), (...).

        gap = 2 (tau log sum_y ref(y) exp((P pi)_y / tau) + tau KL(pi || ref)) - 1

    At tau 0 it is `exploitability`. preference: (A, A); logp, log_ref: (..., A).
    """
    if tau == 0:
        return exploitability(preference, logp.double().exp())
    check_game(preference)
    wins = logp.double().exp() @ preference.double().T
    return 2 * (kl_value(wins, log_ref, tau) + tau * kl(logp, log_ref)) - 1


def regularised_nash(preference: Tensor, log_ref: Tensor, tau: float) -> Tensor:
    """log of the Nash equilibrium of the regularised game, (A,), to a residual of 1e-12 in log-probabilities.

        pi*(y) = ref(y) exp((P pi*)_y / tau) / Z

    (Munos et al., 2023, arXiv:2312.00886, section 3.) It is unique. Solved by Newton's method on the residual G of the
    logarithm of this equation, with steps halved until |G| falls, from large to small tau:

        (I - K) d = -G,    K = A (diag(pi) - pi pi^T) / tau,    A = P - 1/2

    up to a constant, which normalising takes away. A is skew-symmetric, so that the eigenvalues of K are imaginary and
    I - K is never singular. preference: (A, A); log_ref: (A,), finite. Raises ValueError
    unless tau > 0, and RuntimeError where rounding keeps the residual above 1e-12 (tau far below 1e-3).
    """
    check_game(preference)
    check_shape("log_ref", log_ref, (len(preference),), "(A,)")
    _check_above("tau", tau)
    skew, ref = preference.double() - 0.5, torch.log_softmax(log_ref.double(), -1)
    z, level = ref, max(1.0, tau)
    while level > tau:
        z = _newton(skew, ref, z, level, 1e-6)
        level = max(level / 2, tau)
    z = _newton(skew, ref, z, tau, TOLERANCE)
    worst = float(_residual(skew, ref, z, tau).abs().max())
    if not worst <= TOLERANCE:
        raise RuntimeError(f"tau: at {tau} the equilibrium is known to {worst:.1e} only, not to {TOLERANCE:.0e}")
    return z


def geometric(log_first: Tensor, log_second: Tensor, weight: float) -> Tensor:
    """log of the geometric mixture of two policies, first^weight second^(1 - weight) / Z, (..., A)."""
    check_shape("log_second", log_second, log_first, "(..., A)")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight: expected a number from 0 to 1, got {weight}")
    return torch.log_softmax(weight * log_first.double() + (1 - weight) * log_second.double(), -1)


def proximal(reward: Tensor, log_ref: Tensor, log_now: Tensor, tau: float, eta: float) -> Tensor:
    """log of the policy that maximises E_pi[r] - tau KL(pi || ref) - (eta - tau) KL(pi || now), (..., A).

        pi(y) = ref(y)^(tau / eta) now(y)^(1 - tau / eta) exp(r(y) / eta) / Z

    A step of mirror descent of length 1 / eta from `now`, on E_pi[r] - tau KL(pi || ref). reward, log_ref, log_now:
    (..., A). Raises ValueError unless 0 <= tau <= eta and eta > 0.
    """
    _check_above("eta", eta)
    if not 0 <= tau <= eta:
        raise ValueError(f"tau: expected a number from 0 to eta = {eta}, got {tau}")
    return kl_optimal(reward, geometric(log_ref, log_now, tau / eta), eta)


def self_play(
    preference: Tensor, log_ref: Tensor, tau: float, eta: float | Sequence[float], queries: int,
    opponent: Opponent = "itself",
) -> Tensor:  # fmt: skip
    """The policies of exact self-play in the regularised game, from the reference on: log-policies (queries + 1, A).

        pi <- proximal(P q, ref, pi, tau, eta)

    q is pi itself (mirror descent), the mixture ref^(tau / eta) pi^(1 - tau / eta) / Z (Nash-MD, Munos et al., 2023,
    arXiv:2312.00886), or half a step ahead, proximal(P pi, ref, pi, tau, eta) (mirror prox). A query tells
    the win rates P q of all responses against one policy; row n is the policy after n of them, so that with half steps
    two rows at a time are equal. preference: (A, A); log_ref: (A,); eta: one number, or one for each step.
    """
    check_game(preference)
    check_shape("log_ref", log_ref, (len(preference),), "(A,)")
    if opponent not in get_args(Opponent):
        raise ValueError(f"opponent: expected one of {', '.join(get_args(Opponent))}, got {opponent!r}")
    game, ref = preference.double(), torch.log_softmax(log_ref.double(), -1)
    cost = 2 if opponent == "half_step" else 1
    now, out = ref, [ref]
    for step in range(queries // cost):
        length = eta if isinstance(eta, int | float) else eta[step]
        other = now
        if opponent == "mixture":
            other = geometric(ref, now, tau / length)
        elif opponent == "half_step":
            other = proximal(game @ now.exp(), ref, now, tau, length)
        following = proximal(game @ other.exp(), ref, now, tau, length)
        out += [now] * (cost - 1) + [following]
        now = following
    return torch.stack(out + [now] * (queries % cost))


def bradley_terry(preference: Tensor, policy: Tensor) -> Tensor:
    """The rewards that explain comparisons among responses of a policy best, of mean 0 under it, (A,).

        min_r  -sum_ij pi_i pi_j P_ij log s(r_i - r_j),    so that  sum_j pi_j s(r_i - r_j) = (P pi)_i  for all i

    What maximum likelihood comes to on ever more comparisons of pi with itself; where pi is 0 the second form still
    determines r. By Newton's method on that, steps halved until its residual shrinks. preference: (A, A); policy: (A,).
    Raises ValueError where a preference is 0 or 1.
    """
    check_game(preference)
    check_shape("policy", policy, (len(preference),), "(A,)")
    game, pi = preference.double(), policy.double() / policy.sum()
    if not bool(((game > 0) & (game < 1)).all()):
        raise ValueError("preference: expected no sure preference: no finite rewards explain it")
    wins, r = game @ pi, torch.zeros(len(pi), dtype=torch.float64)

    def missing(r: Tensor) -> Tensor:
        return wins - (r[:, None] - r).sigmoid() @ pi

    for _ in range(100):
        g = missing(r)
        if float(g.abs().max()) < 1e-14:
            break
        chance = (r[:, None] - r).sigmoid()
        slope = chance * (1 - chance) * pi
        d = torch.linalg.solve(slope.sum(1).diag() - slope + pi, g)
        size = 1.0
        while size > 1e-6 and float(missing(r + size * d).abs().max()) >= float(g.abs().max()):
            size /= 2
        r = r + size * d
    return r - pi @ r


def nash(preference: Tensor) -> Tensor:
    """A Nash equilibrium of the game without regularisation, (A,), by a linear programme.

        max_(pi, v) v   with   pi^T P >= v,   pi a distribution

    Its `exploitability` is at most about 1e-9. Where there are several, one of them.
    """
    from scipy.optimize import linprog

    check_game(preference)
    count = len(preference)
    table = torch.cat((-preference.double().T, torch.ones(count, 1, dtype=torch.float64)), 1)
    found = linprog(
        [0.0] * count + [-1.0], A_ub=table.cpu().numpy(), b_ub=[0.0] * count, A_eq=[[1.0] * count + [0.0]], b_eq=[1.0],
        bounds=[(0, 1)] * count + [(None, None)], method="highs",
    )  # fmt: skip
    if not found.success:
        raise RuntimeError(f"preference: the linear programme was not solved: {found.message}")
    policy = torch.tensor(found.x[:count], dtype=torch.float64).clamp(min=0)
    return policy / policy.sum()


def check_game(preference: Tensor) -> None:
    """Raise ValueError unless P is (A, A) of probabilities with P + P^T = 1."""
    check_rank("preference", preference, 2, "(A, A)")
    check_shape("preference", preference, (len(preference), len(preference)), "(A, A)")
    p = preference.double()
    if not bool(((p >= 0) & (p <= 1)).all()) or float((p + p.T - 1).abs().max()) > 1e-9:
        raise ValueError("preference: expected probabilities with P + P^T = 1 and 1/2 on the diagonal")


def _check_above(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: expected a number above 0, got {value}")


def _tilted(reward: Tensor, log_ref: Tensor, beta: float) -> Tensor:
    check_shape("log_ref", log_ref, reward, "(..., A)")
    _check_above("beta", beta)
    return torch.log_softmax(log_ref.double(), -1) + reward.double() / beta


def _residual(skew: Tensor, ref: Tensor, z: Tensor, tau: float) -> Tensor:
    """G = log pi - log(ref exp(A pi / tau) / Z), (A,)."""
    return z - torch.log_softmax(ref + skew @ z.exp() / tau, -1)


def _newton(skew: Tensor, ref: Tensor, z: Tensor, tau: float, tolerance: float) -> Tensor:
    """Log-policy with a residual up to `tolerance`, or as near as rounding allows."""
    eye = torch.eye(len(ref), dtype=torch.float64)
    for _ in range(100):
        g = _residual(skew, ref, z, tau)
        if float(g.abs().max()) <= tolerance / 4:
            break
        p = z.exp()
        k = skew @ (p.diag() - p[:, None] * p) / tau
        d = torch.linalg.solve(eye - k, -g)
        size = 1.0
        while size > 1e-8:
            trial = torch.log_softmax(z + size * d, -1)
            if float(_residual(skew, ref, trial, tau).norm()) < float(g.norm()):
                break
            size /= 2
        else:
            break
        z = trial
    return z
