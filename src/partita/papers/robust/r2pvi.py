"""Robust Offline Reinforcement Learning with Linearly Structured f-Divergence Regularization (Tang, Liu and Xu, 2025),
arXiv:2411.18612: R2PVI.

Robust regularised pessimistic value iteration: from data of one process, a policy for others near it. Transitions are
linear in d features, and each of the d factors may be another one at a price, lambda times its divergence D from the
nominal one. By dual forms, what a factor is worth at the worst is an expectation under the nominal one, which is
estimated by ridge regression:

    Q_h(s, a) = <phi(s, a), theta_h + w_h>,    w_{h,i} = inf_mu E_mu V_{h+1} + lambda D(mu, mu_{h,i})
    TV:  w_i = E_i min(V, min V + lambda)
    KL:  w_i = -lambda ln E_i e^(-V / lambda)
    chi2:  w_i = max_alpha E_i [V]_alpha + (E_i [V]_alpha)^2 / (4 lambda) - E_i [V]_alpha^2 / (4 lambda)

less a bonus for what the data hardly hold, beta sum_i phi_i sqrt([Lambda^-1]_ii), Lambda = sum phi phi' + gamma I. The
smaller lambda, the more robust. Rewards are known. `pevi` (Jin, Yang and Wang, 2021) is not robust; `drpvi` (Liu and
Xu, 2024) limits the divergence to a radius, at the cost of an optimisation for each factor and decision.

The paper was not at hand: forms after accounts of it, its authors' code and the full text of DRPVI. The code differs:
the bonus is a root of a sum; values are cut above alone; min V is that of the sample; its chi2 takes the least alpha.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from partita.core.errors import UserError
from partita.core.limits import check_above, check_choice, check_share
from partita.core.paper import Claim, Figure, Identity, Paper
from partita.loops.exact import Exact, solve
from partita.parts.robust import RobustValueIteration
from partita.parts.solver import Solution, Solver
from partita.tasks.finite.linear import LinearMDP, Logged, SimulatedLinear, one_hot
from partita.tasks.finite.mdp import Array, FiniteMDP
from partita.tasks.finite.uncertainty import SETS, named

PAPER = Paper(
    key="r2pvi",
    title="Robust Offline Reinforcement Learning with Linearly Structured $f$-Divergence Regularization",
    arxiv="2411.18612", authors="Tang, Liu and Xu", year=2025, kind="theory", changes=("solver",), loop="exact",
)  # fmt: skip

Divergence = Literal["total_variation", "kl", "chi_squared"]


@dataclass(frozen=True)
class Pessimistic(Solver):
    """Value iteration backwards over logged data, less a bonus for what they hardly hold.

        Q_h = [ phi' w_h - bonus_h ]_[0, H - h + 1],    V_h = max_a Q_h

    beta: of the bonus. gamma: of the ridge. episodes: drawn by random actions, where the data are not given.
    Numbers: "value" as the data promise it, "return" of the policy in the process of the data, "shifted" in the one
    that it meets later, both exact, "optimisations" in one dimension that it took. One `Solution` a decision; the
    policy of decisions that are to come, the earlier ones, is action 0.
    """

    abstract: ClassVar[bool] = True
    reads: ClassVar[str] = "linear"
    example: ClassVar[str] = "simulated_linear"
    beta: float = 1.0
    gamma: float = 0.1
    episodes: int = 100

    def __post_init__(self) -> None:
        for name, least in (("beta", 0.0), ("gamma", 0.0), ("episodes", 1)):
            if not least <= getattr(self, name) < math.inf:
                raise UserError(f"solver.{name}: expected {least:g} or more, got {getattr(self, name)}")

    def cannot(self, problem: LinearMDP) -> str | None:
        reward = problem.features @ problem.weights.T
        return None if ((reward >= 0) & (reward <= 1)).all() else "its rewards are not from 0 to 1; scale them"

    def factor_values(self, factors: Array, values: Array, horizon: int) -> Array:
        """What each factor is worth, (d,), by its estimate, (d, S): a row of weights that may be below 0."""
        return np.asarray(factors @ values)

    def known(self, weights: Array, inverse: Array) -> Array:
        """The rewards' weights, (d,)."""
        return weights

    def spread(self, phi: Array, inverse: Array) -> Array:
        """The bonus before beta, of the shape of phi less its last axis."""
        return np.asarray(phi @ np.sqrt(np.diag(inverse)))

    def searched(self, d: int) -> int:
        """Optimisations in one dimension that a decision takes."""
        return 0

    def __call__(self, problem: LinearMDP, generator: np.random.Generator) -> Iterator[Solution]:
        return self.learn(problem, problem.sample(self.episodes, generator))

    def learn(self, problem: LinearMDP, data: Logged) -> Iterator[Solution]:
        """From given data."""
        phi, horizon, later = problem.features, problem.horizon, problem.later()
        values, policy, count = np.zeros(problem.size), np.zeros((horizon, problem.size), np.int64), 0
        for h in reversed(range(horizon)):
            inverse, factors = ridge(problem, data, h, self.gamma)
            worth = self.known(problem.weights[h], inverse) + self.factor_values(factors, values, horizon)
            q = np.clip(phi @ worth - self.beta * self.spread(phi, inverse), 0.0, horizon - h)
            values, policy[h] = q.max(1), q.argmax(1)
            count += self.searched(phi.shape[2])
            numbers = {
                "value": float(problem.start @ values), "return": float(problem.start @ problem.evaluate(policy)[0]),
                "shifted": float(problem.start @ later.evaluate(policy)[0]), "optimisations": float(count),
            }  # fmt: skip
            yield Solution(numbers, {"values": values, "policy": policy.copy()})


def ridge(problem: LinearMDP, data: Logged, h: int, gamma: float) -> tuple[Array, Array]:
    """Lambda^-1, (d, d), and the estimated factors of decision h, (d, S).

    mu_h = Lambda^-1 sum_k phi_k e_{s'_k}',    Lambda = sum_k phi_k phi_k' + gamma I
    """
    phi = problem.features[data.states[:, h], data.actions[:, h]]
    gram = phi.T @ phi + gamma * np.eye(phi.shape[1])
    into = np.zeros((problem.size, phi.shape[1]))
    np.add.at(into, data.following[:, h], phi)
    if np.linalg.cond(gram) > 1e14:
        raise UserError(f"solver.gamma: got {gamma}, and the data lack some features; give a number above 0")
    inverse = np.asarray(np.linalg.inv(gram), float)
    return inverse, np.asarray(inverse @ into.T)


@dataclass(frozen=True)
class R2PVI(Pessimistic):
    """Robust regularised pessimistic value iteration (Tang, Liu and Xu, 2025, arXiv:2411.18612).

        Q_h = [ <phi, theta_h + w_h> - beta sum_i phi_i sqrt([Lambda_h^-1]_ii) ]_[0, H - h + 1]
        w_{h,i} = inf_mu E_mu V_{h+1} + lam D(mu, mu_{h,i}),    by its dual and ridge estimates of expectations

    divergence: D. lam: its price; from H on, total variation is not robust at all. Of KL, estimates of E e^(-V / lam)
    are at least e^(-H / lam).
    """

    divergence: Divergence = "total_variation"
    lam: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("solver.divergence", self.divergence, get_args(Divergence))
        check_above("solver.lam", self.lam)

    def factor_values(self, factors: Array, values: Array, horizon: int) -> Array:
        found = named("solver.divergence", self.divergence).penalised(factors, values, self.lam)
        return np.minimum(found, horizon) if self.divergence == "kl" else found

    def searched(self, d: int) -> int:
        return d if self.divergence == "chi_squared" else 0


@dataclass(frozen=True)
class DRPVI(Pessimistic):
    """Distributionally robust pessimistic value iteration (Liu and Xu, 2024, arXiv:2403.09621), in total variation.

        Q_h = [ <phi, theta_h + nu_h> - beta sum_i phi_i sqrt([Lambda_h^-1]_ii) ]_[0, H - h + 1]
        nu_{h,i} = max_alpha E_i [V]_alpha - rho (alpha - min_s [V(s)]_alpha)            (eq. 4.4)

    rho: how far each factor may be from the nominal one. alpha is found exactly, among the sorted values.
    """

    rho: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("solver.rho", self.rho)

    def factor_values(self, factors: Array, values: Array, horizon: int) -> Array:
        return SETS["total_variation"].worst(factors, values, self.rho)

    def searched(self, d: int) -> int:
        return d


@dataclass(frozen=True)
class PEVI(Pessimistic):
    """Pessimistic value iteration (Jin, Yang and Wang, 2021, arXiv:2012.15085), which is not robust.

        Q_h = [ phi' Lambda_h^-1 sum_k phi_k (r_k + V_{h+1}(s'_k)) - beta sqrt(phi' Lambda_h^-1 phi) ]_[0, H - h + 1]

    rewards: "estimated" from the data, as there, or "known".
    """

    rewards: Literal["estimated", "known"] = "estimated"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("solver.rewards", self.rewards, ("estimated", "known"))

    def known(self, weights: Array, inverse: Array) -> Array:
        return weights if self.rewards == "known" else weights - self.gamma * (inverse @ weights)

    def spread(self, phi: Array, inverse: Array) -> Array:
        return np.sqrt(np.einsum("...i,ij,...j->...", phi, inverse, phi))


BASE = Exact(solver=R2PVI())

RECIPES = {
    "r2pvi": BASE,
    "r2pvi_kl": BASE.but(solver=R2PVI(divergence="kl")),
    "r2pvi_chi_squared": BASE.but(solver=R2PVI(divergence="chi_squared")),
    "drpvi": BASE.but(solver=DRPVI()),
    "pevi": BASE.but(solver=PEVI()),
}


def random_process(seed: int, size: int = 4, choices: int = 2, horizon: int = 4, twentieths: int = 20) -> FiniteMDP:
    """Rows of whole twentieths, rewards from 0 to 1, and an end."""
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.multinomial(twentieths, rng.dirichlet(np.ones(size))) for _ in range(size * choices)])
    return FiniteMDP(rows / twentieths, rng.random((size, choices)), np.full(size, 1 / size), 1.0, horizon)


def robust_values(mdp: FiniteMDP, divergence: Divergence, lam: float) -> Array:
    """The exact robust regularised values of all decisions of a finite process."""
    return np.asarray(solve(Exact(solver=RobustValueIteration(divergence, price=lam)), mdp).solution.tables["values"])


def due(mdp: FiniteMDP, copies: int = 20) -> Logged:
    """Data that hold every transition as often as is due, the same at every decision."""
    pair, after = np.nonzero(mdp.transitions)
    often = np.rint(mdp.transitions[pair, after] * copies).astype(int)
    table = np.stack((*np.divmod(pair, mdp.choices), after)).repeat(often, axis=1)
    return Logged(*np.repeat(table[:, :, None], mdp.horizon or 1, 2))


def tabular_gap(seed: int, lam: float = 0.3) -> float:
    """How far values are from the exact robust ones where features are one-hot and data are due: most of the three."""
    mdp, gaps = random_process(seed), []
    for divergence in get_args(Divergence):
        learner = R2PVI(beta=0.0, gamma=0.0, divergence=divergence, lam=lam)
        *_, last = learner.learn(one_hot(mdp), due(mdp))
        gaps.append(np.abs(last.tables["values"] - robust_values(mdp, divergence, lam)).max())
    return float(max(gaps))


def cost_slope(seed: int, lam: float = 0.3, beta: float = 1.0) -> float:
    """The slope, log over log, of what pessimism costs, V* - V_1, from 1,000 to 100,000 trajectories."""
    mdp = random_process(seed)
    linear, best = one_hot(mdp), mdp.start @ robust_values(mdp, "total_variation", lam)
    count = np.array([1000, 10_000, 100_000])
    gap = []
    for episodes in count:
        *_, last = R2PVI(beta=beta, lam=lam, episodes=int(episodes))(linear, np.random.default_rng(seed))
        gap.append(best - last.numbers["value"])
    return float(np.polyfit(np.log(count), np.log(gap), 1)[0])


def under_shift(
    arm: str, seed: int, control: str = "pevi", shift: float = 1.0, norm: float = 0.2, beta: float = 1.0,
    lam: float = 0.1, rho: float = 0.5, episodes: int = 100,
) -> dict[str, float]:  # fmt: skip
    """The exact return, under the shift, of what is learnt from data of the nominal process; beside it, the nominal."""
    data: dict[str, Any] = {"beta": beta, "episodes": episodes}
    controls = {"pevi": PEVI(**data), "drpvi": DRPVI(rho=rho, **data)}
    solver = R2PVI(lam=lam, **data) if arm == "treatment" else controls[control]
    found = solve(BASE.but(solver=solver), SimulatedLinear(norm=norm, shift=shift).linear, seed).solution.numbers
    return {"value": found["shifted"], "nominal": found["return"], "optimisations": found["optimisations"]}


_SHIFT: dict[str, Any] = {
    "treatment": "r2pvi", "task": "simulated_linear", "metric": "return under the shift", "experiment": under_shift,
    "dial": ("shift", tuple((f"q = {q:g}", {"shift": q}) for q in (0.0, 0.5, 1.0))),
}  # fmt: skip

CLAIMS = (
    Claim(
        statement="returns more than PEVI where what paid has come to fail",
        control="pevi", search={"beta": (0.1, 0.3, 1.0)}, **_SHIFT,
        analysis="1.12 against 0.73 under the full shift; without any, robustness costs 0.23. Both are tuned under the "
        "full shift. PEVI's bonus helps it there: 0.88 at three times the largest beta of the search, in a trial. See "
        "the third statement for where the robustness comes from.",
    ),
    Claim(
        statement="and not less than DRPVI (by 0.05), which solves an optimisation for each factor and decision",
        control="drpvi", threshold=-0.05, search={"beta": (0.1, 1.0)}, search_treatment={"lam": (0.1, 0.3, 0.6)},
        search_control={"rho": (0.1, 0.5, 0.9)}, settings={"control": "drpvi"}, **_SHIFT,
    ),
    Claim(
        statement="and more than PEVI without any bonus, from 10,000 trajectories",
        control="pevi", settings={"beta": 0.0, "episodes": 10_000}, **_SHIFT,
        analysis="In this process a bonus is what makes R2PVI robust: cut at min V + lambda, both factors that the "
        "first action chooses between are worth the same but for the leak, which speaks for the gamble; so the robust "
        "policy is the nominal one, and beside so small a difference a bonus decides, for what the data hold more of.",
    ),
    Identity(
        statement="with one-hot features, data as due and no bonus, values are the exact robust ones: TV, KL, chi2",
        measure=tabular_gap, expected=0.0, tolerance=1e-8, seeds=8,
    ),
    Identity(
        statement="what pessimism costs falls as the root of the number of trajectories",
        measure=cost_slope, expected=-0.5, tolerance=0.05, seeds=8,
    ),
)  # fmt: skip

SHIFTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def returns(seed: int) -> dict[str, list[float]]:
    """The exact return under every shift of SHIFTS of what each learns from the same 100 trajectories."""
    learners = {"R2PVI": R2PVI(), "PEVI": PEVI(), "DRPVI, radius 0.5": DRPVI(rho=0.5)}
    found: dict[str, list[float]] = {name: [] for name in learners}
    for shift in SHIFTS:
        problem = SimulatedLinear(shift=shift).linear
        for name, solver in learners.items():
            found[name].append(solve(BASE.but(solver=solver), problem, seed).solution.numbers["shifted"])
    return found


FIGURES = (
    Figure(
        title="Return where what paid has come to fail",
        x_name="shift q",
        y_name="return",
        x=SHIFTS,
        measure=returns,
        theory={"always gamble": lambda q: 1.6249 - q, "always go on": lambda q: 1.3248 - 0.2 * q},
    ),
)
