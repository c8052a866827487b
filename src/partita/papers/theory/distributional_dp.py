"""Optimizing Return Distributions with Distributional Dynamic Programming (Avila Pires et al., 2025), arXiv:2501.13028.

To maximise a functional of the return's law, as CVaR or the distance to a set-point, a policy must know what has been
earned: the stock c, which begins at c_0 and is part of the state. Dynamic programming then works on laws eta(s, c) of
the return that follows:

    c' = (c + r) / discount,    so that c_t + G_t = discount^-t (c_0 + G_0)
    (T_pi eta)(s, c) = law of r + discount G',    G' ~ eta(s', c')
    pi(s, c) = argmax_a E f(c + r + discount G')

which finds the best E f(c_0 + G_0) for every f that a scale leaves as it is, f(discount x) = discount f(x): of these on
the line, x, min(x, 0) and -|x| are the corners. `distributional_vi` applies the greedy operator, `distributional_pi`
values a policy and improves it, both on exact laws; `stock_vi` is the same for processes without end, on a grid of
stocks. CVaR is the best over first stocks (Rockafellar and Uryasev, 2000):

    CVaR_tau(G) = max_c0 { -c0 + E min(c0 + G, 0) / tau }

Where |r| <= R, n sweeps from G = 0 are within L discount^n R / (1 - discount) of the best value, f being L-Lipschitz.
`stockless_dp` is what the works before did: the functional anew in every state, whatever was earned. The deep agent
(`stock_agent`) is QR-DQN with the stock in its observation.

Of the paper the abstract alone could be read: operators are those of its setting, bounds are derived here, and the
agent is ours in all that the abstract does not say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from scipy import sparse

from partita.core.errors import UserError
from partita.core.limits import check_above, check_choice
from partita.core.paper import Claim, Figure, Identity, Paper
from partita.loops.exact import Exact
from partita.papers.theory.stock_agent import QR_DQN, STOCK_QR_DQN, compared
from partita.papers.theory.stock_tree import (
    DIGITS,
    SWEEPS,
    Plan,
    Tree,
    brute_force,
    drawn,
    entries,
    excess,
    lower_tail,
    missed,
    unfold,
)  # fmt: skip
from partita.parts.solver import Solution, Solver
from partita.tasks.control.stocked import Kinked
from partita.tasks.finite.mdp import Array, FiniteMDP
from partita.tasks.finite.risk import Windfall

PAPER = Paper(
    key="distributional_dp", title="Optimizing Return Distributions with Distributional Dynamic Programming",
    arxiv="2501.13028", authors="Avila Pires et al.", year=2025, changes=("solver", "critic", "actor"), loop="exact",
)  # fmt: skip


@dataclass(frozen=True)
class Risk(Solver):
    """What is maximised of the law of the return G.

        cvar:    (1 - share) CVaR_tau(G) + share E G = max_c0 { -c0 + E f(c0 + G) }
                 f(x) = ((1 - share) / tau + share) min(x, 0) + share max(x, 0)
        target:  -E |G - target| = E f(c0 + G),    f(x) = -|x|,    c0 = -target

    share 1 is the mean. The outer maximum over c0 is at the negative of a return that can be.
    """

    abstract: ClassVar[bool] = True
    example: ClassVar[str] = "betting_table"
    objective: Literal["cvar", "target"] = "cvar"
    tau: float = 0.25
    share: float = 0.0
    target: float = 0.0

    def __post_init__(self) -> None:
        check_choice("solver.objective", self.objective, ("cvar", "target"))
        if not 0 < self.tau <= 1:
            raise UserError(f"solver.tau: expected a number above 0, up to 1, got {self.tau}; 1 is the mean")
        if not 0 <= self.share <= 1:
            raise UserError(f"solver.share: expected a number from 0 to 1, got {self.share}; 1 is the mean")
        if not np.isfinite(self.target):
            raise UserError(f"solver.target: expected a finite number, got {self.target}; give a return")

    def cannot(self, problem: FiniteMDP) -> str | None:
        return None if problem.discount > 0 else "its discount is 0, by which stocks are divided; give --discount"

    @property
    def utility(self) -> Kinked:
        """f."""
        if self.objective == "target":
            return Kinked(1.0, -1.0)
        return Kinked((1 - self.share) / self.tau + self.share, self.share)

    def stocks(self, outcomes: Array) -> Array:
        """First stocks among which the best one is."""
        return np.array([-self.target]) if self.objective == "target" else -outcomes

    def offset(self, stock: Any) -> Any:
        """What is added to E f(c0 + G)."""
        return 0.0 * stock if self.objective == "target" else -stock

    def measured(self, outcomes: Array, law: Array) -> Array:
        """The objective of laws (..., J) over outcomes (..., J)."""
        if self.objective == "target":
            return -(law * np.abs(outcomes - self.target)).sum(-1)
        return (1 - self.share) * lower_tail(outcomes, law, self.tau) + self.share * (law * outcomes).sum(-1)

    def about(self, outcomes: Array, law: Array, **numbers: float) -> dict[str, float]:
        """What is worth knowing of a law (J,)."""
        told = {"mean": float(law @ outcomes), "lower_tail": float(lower_tail(outcomes, law, self.tau))}
        return {"value": float(self.measured(outcomes, law)), **told, **numbers}


@dataclass(frozen=True)
class Finite(Risk):
    """A solver of a number of decisions: those of the process, or, where it has no end, the first `horizon`."""

    abstract: ClassVar[bool] = True
    horizon: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon is not None and self.horizon < 1:
            raise UserError(f"solver.horizon: expected 1 or more decisions, got {self.horizon}; leave it out")

    def cannot(self, problem: FiniteMDP) -> str | None:
        if self.horizon or problem.horizon:
            return super().cannot(problem)
        return "it has no end; give --solver.horizon, or use stock_vi"

    def decisions(self, problem: FiniteMDP) -> int:
        """How many there are."""
        count = self.horizon or problem.horizon
        assert count is not None
        return count


@dataclass(frozen=True)
class DistributionalValueIteration(Finite):
    """The greedy operator on laws of returns, from G = 0, once for each decision (Avila Pires et al., 2025).

        eta_k+1(s, c) = law of r + discount eta_k(s', (c + r) / discount),    a = argmax E f(c + r + discount G')

    on exact laws, for one first stock a sweep. Numbers are of the best so far, which begins with "stock"; tables
    "outcomes" and "law" (J,) of its return, "plan" with rows (decision, state, stock, action) of where it comes to.
    Of a process without end, "error" bounds what is missing to its best value: L discount^H R / (1 - discount).
    """

    def found(self, tree: Tree, stock: float, before: Plan | None) -> tuple[Array, Plan]:
        """The law (S, J) of the best plan of a first stock, and the plan."""
        return tree.backup(self.utility, stock)

    def __call__(self, problem: FiniteMDP, generator: np.random.Generator) -> Iterator[Solution]:
        tree, best, plan = unfold(problem, self.decisions(problem)), -np.inf, None
        for stock in self.stocks(tree.outcomes):
            laws, plan = self.found(tree, float(stock), plan)
            law = problem.start @ laws
            if (value := float(self.measured(tree.outcomes, law))) > best:
                best, numbers = value, self.about(tree.outcomes, law, stock=float(stock))
                tables = {"outcomes": tree.outcomes, "law": law, "plan": tree.followed(plan, float(stock))}
            dual = self.offset(float(stock)) + float(law @ self.utility(stock + tree.outcomes))
            yield Solution({**numbers, "dual": dual, "error": self.error(problem)}, tables)

    def error(self, problem: FiniteMDP) -> float:
        """How far the best value without end can be from that of the decisions taken."""
        if problem.horizon is not None and self.horizon is None:
            return 0.0
        if problem.discount == 1:
            return np.inf
        most = float(np.abs(entries(problem).paid).max())
        return self.utility.lipschitz * problem.discount ** self.decisions(problem) * most / (1 - problem.discount)


@dataclass(frozen=True)
class DistributionalPolicyIteration(DistributionalValueIteration):
    """The laws of a policy, exactly, and the greedy policy of these, until it stays (Avila Pires et al., 2025).

        eta^pi = T_pi eta^pi,    pi(s, c) <- argmax_a E f(c + r + discount G'),    G' ~ eta^pi(s', c')

    for one first stock a sweep, from the policy of the one before. It ends after as many steps as there are decisions.
    """

    def found(self, tree: Tree, stock: float, before: Plan | None) -> tuple[Array, Plan]:
        plan = [exists.argmax(1) for exists in tree.exists] if before is None else before
        while True:
            laws, better = tree.backup(self.utility, stock, plan)
            if all(np.array_equal(a, b) for a, b in zip(plan, better, strict=True)):
                return laws, plan
            plan = better


@dataclass(frozen=True)
class StocklessDp(Finite):
    """The objective of what is still to come, anew in every state: what was earned is forgotten.

        a = argmax_a K(law of r + discount G'),    G' ~ eta_h(s')

    K is the objective itself, CVaR or the distance to the target. share 1 is ordinary value iteration. Table "policy"
    (H, S), from the first decision.
    """

    def __call__(self, problem: FiniteMDP, generator: np.random.Generator) -> Iterator[Solution]:
        every, size, choices = entries(problem), problem.size, problem.choices
        outcomes, law, policy = np.zeros(1), np.ones((size, 1)), []
        for _ in range(self.decisions(problem)):
            sums = every.paid[:, None] + problem.discount * outcomes
            _, one, index = np.unique(sums.round(DIGITS), return_index=True, return_inverse=True)
            outcomes = sums.ravel()[one]
            spread, rows = every.chance[:, None] * law[every.into], np.repeat(every.row, sums.shape[1])
            shape = size * choices, len(outcomes)
            ahead = sparse.csr_array((spread.ravel(), (rows, index.ravel())), shape=shape).toarray()
            ahead = ahead.reshape(size, choices, -1)
            worth = self.measured(outcomes, ahead)
            if problem.allowed is not None:
                worth = np.where(problem.allowed, worth, -np.inf)
            policy.append(worth.argmax(1))
            law = ahead[np.arange(size), policy[-1]]
            tables = {"outcomes": outcomes, "law": problem.start @ law, "policy": np.array(policy[::-1])}
            yield Solution(self.about(outcomes, problem.start @ law), tables)


@dataclass(frozen=True)
class StockValueIteration(Risk):
    """The same without end, on a grid of stocks: dynamic programming with the utility at infinity.

        V(s, c) <- max_a discount E V(s', (c + r) / discount),    V_0(s, c) = f(c),    V_n = E f(c + G_n)

    V is linear between the `grid` stocks, which reach to +-R / (1 - discount), and beyond, where the sign of c + G is
    certain. Stops when what is missing is below `tolerance`; number "error" adds what lines between stocks h apart can
    do wrong, L h / 2 (1 + discount / (1 - discount)). Tables "stocks" (N,), "values" and "policy" (S, N).
    """

    grid: int = 401
    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above("solver.tolerance", self.tolerance)
        if self.grid < 3:
            raise UserError(f"solver.grid: expected 3 stocks or more, got {self.grid}; the more the nearer")

    def cannot(self, problem: FiniteMDP) -> str | None:
        if problem.horizon is not None or problem.discount == 1:
            return "it ends, or is not discounted; use distributional_vi, or give --discount, without end"
        return super().cannot(problem)

    def __call__(self, problem: FiniteMDP, generator: np.random.Generator) -> Iterator[Solution]:
        every, discount, f, size = entries(problem), problem.discount, self.utility, problem.size
        reach = max(float(np.abs(every.paid).max()) / (1 - discount), abs(self.target)) or 1.0
        stocks = np.linspace(-reach, reach, self.grid)
        step = stocks[1] - stocks[0]
        later = (stocks + every.paid[:, None]) / discount
        inside = later.clip(-reach, reach)
        beyond = f(later) - f(inside)
        place = ((inside + reach) / step).clip(0, self.grid - 1)
        left = np.minimum(place.astype(int), self.grid - 2)
        part, into = place - left, every.into[:, None]
        held = (every.row, np.arange(len(every.row)))
        gather = sparse.csr_array((every.chance, held), shape=(problem.reward.size, len(every.row)))
        values, missing = np.tile(f(stocks), (size, 1)), f.lipschitz * reach
        exists = np.ones(problem.reward.shape, bool) if problem.allowed is None else problem.allowed
        while missing > self.tolerance:
            after = values[into, left] * (1 - part) + values[into, left + 1] * part + beyond
            q = discount * (gather @ after).reshape(size, problem.choices, -1)
            q[~exists] = -np.inf
            values, missing = q.max(1), missing * discount
            worth = self.offset(stocks) + problem.start @ values
            sought = self.objective == "target"
            wanted = -self.target if sought else stocks[worth.argmax()]
            value = float(np.interp(wanted, stocks, worth)) if sought else float(worth.max())
            error = missing + f.lipschitz * step / 2 * (discount / (1 - discount) + 1)
            tables = {"stocks": stocks, "values": values, "policy": q.argmax(1)}
            yield Solution({"value": value, "stock": float(wanted), "error": error}, tables)


RECIPES = {
    "distributional_vi": Exact(solver=DistributionalValueIteration()),
    "distributional_pi": Exact(solver=DistributionalPolicyIteration()),
    "stock_vi": Exact(solver=StockValueIteration()),
    "stockless_dp": Exact(solver=StocklessDp()),
    "qr_dqn": QR_DQN,
    "stock_qr_dqn": STOCK_QR_DQN,
}


def last(solver: Solver, problem: FiniteMDP) -> Solution:
    """What a solver comes to."""
    *_, found = solver(problem, np.random.default_rng(0))
    return found


def gap(seed: int, solver: Finite) -> float:
    """How far the solver's best value is from that of brute force, with and without a discount; the larger of both."""
    gaps = []
    for discount in (1.0, 0.8):
        mdp = drawn(seed, discount, 3)
        best = solver.measured(*brute_force(mdp, 3)).max()
        gaps.append(abs(last(solver, mdp).numbers["value"] - float(best)))
    return max(gaps)


def cvar_gap(seed: int) -> float:
    """`gap` of CVaR at tau 0.3."""
    return gap(seed, DistributionalValueIteration(tau=0.3))


def target_gap(seed: int) -> float:
    """`gap` of the distance to 0.5."""
    return gap(seed, DistributionalValueIteration(objective="target", target=0.5))


def windfall_margin(seed: int) -> float:
    """What the stock gains where half of the objective is CVaR: 3.75 - 3.5."""
    mdp = Windfall().process
    with_stock, without = (last(s(share=0.5), mdp) for s in (DistributionalValueIteration, StocklessDp))
    return with_stock.numbers["value"] - without.numbers["value"]


def balance_margin(seed: int) -> float:
    """What the stock gains where 1 in all is wanted, after a windfall of 0 or 1: 0 - (-1/2)."""
    mdp = Windfall(prize=1.0, sure=0.0, win=1.0, odds=1.0).process
    both = (last(s(objective="target", target=1.0), mdp) for s in (DistributionalValueIteration, StocklessDp))
    with_stock, without = both
    return with_stock.numbers["value"] - without.numbers["value"]


_LUCK: dict[str, Any] = {"env": "windfall", "sure": 2.0, "win": 8.0, "share": 0.5, "steps": 4}
_GAMBLE: dict[str, Any] = {
    "treatment": "stock_qr_dqn", "task": "windfall", "metric": "half CVaR, half mean", "experiment": compared,
    "search": {"lr": (1e-3, 3e-3)}, "dial": ("prize of luck", (("0", {"prize": 0.0}), ("10", {"prize": 10.0}))),
}  # fmt: skip

CLAIMS = (
    Claim(
        statement="after a windfall unseen, the agent does better by CVaR and mean with its stock than without",
        control="stockless", settings={**_LUCK, "control": "stockless"}, **_GAMBLE,
        analysis="First tried, on one seed, on `betting_table` (spread 2), where the agent with its stock came to 4.25 "
        "and both controls to 4.5; the exact optimum there is 4.5, which no stock is needed for, so that it cannot "
        "show anything. The exact optima of this process were computed before it was chosen.",
    ),
    Claim(
        statement="and than risk-neutral QR-DQN",
        control="qr_dqn", settings={**_LUCK, "control": "neutral"}, **_GAMBLE,
    ),
    Claim(
        statement="with its stock the agent ends nearer to a set-point than without it",
        treatment="stock_qr_dqn", control="stockless", task="body", metric="-|deviation|", experiment=compared,
        settings={"env": "body", "goal": "target", "control": "stockless"}, search={"lr": (1e-3, 3e-3)},
        dial=("chance of exertion", (("0", {"chance": 0.0}), ("0.25", {"chance": 0.25}))),
    ),
    Identity(
        statement="the best CVaR is that of brute force over all policies with memory",
        measure=cvar_gap, expected=0.0, tolerance=1e-9, seeds=8,
    ),
    Identity(
        statement="so is the least distance to a set-point",
        measure=target_gap, expected=0.0, tolerance=1e-9, seeds=8,
    ),
    Identity(
        statement="n sweeps are never further from the best value than L discount^n times what the rest can earn",
        measure=excess, expected=0.0, tolerance=1e-9, seeds=8,
    ),
    Identity(
        statement="after a windfall unseen, the best of half CVaR, half mean is a quarter above what needs no stock",
        measure=windfall_margin, expected=0.25, tolerance=1e-12,
    ),
    Identity(
        statement="where 1 in all is wanted after a windfall of 0 or 1, forgetting it costs a half",
        measure=balance_margin, expected=0.5, tolerance=1e-12,
    ),
)  # fmt: skip

FIGURES = (
    Figure(
        title="What n sweeps miss of the distance to a set-point",
        x_name="sweeps",
        y_name="error of the value",
        x=SWEEPS,
        measure=missed,
        theory={"L discount^n R, what the rest can earn": lambda n: (0.7**n - 0.7**6) / 0.3},
    ),
)
