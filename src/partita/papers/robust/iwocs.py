"""Solving robust MDPs as a sequence of static RL problems (Zouitine, Geist, Rachelson, 2024), arXiv:2410.06212: IWOCS.

One of a family of processes T is the true one, for whole episodes (static), where robust value iteration lets every
state and action meet its own worst member at every visit (dynamic). IWOCS solves one member after the other, each the
worst for the policy that does best in all solved so far:

    Q_i(s, a) = min_{j <= i} Q*_{T_j}(s, a),    pi_i(s) = argmax_a Q_i(s, a)
    T_{i+1} = argmin_T V^{pi_i}_T(s_0),         stop where V^{pi_i}_{T_{i+1}}(s_0) = Q_i(s_0, pi_i(s_0)) within epsilon

No deterministic policy has a worst value above max_a Q_i(s_0, a), so that the gap of the test bounds what pi_i lacks.
If the worst member has been solved before and a gap is left, nothing changes any more: it has stalled, uncertified.

Rivals on the same families: `iwocs_rvi`, robust value iteration on the (s,a)-rectangular hull, `iwocs_mean` and
`iwocs_nominal`, the best in the mean process and in the expected one. `iwocs_best` keeps the best pi_i, not the last.
T_0 is the expected member; the paper names none. Its toy problem is `windy_walk`, whose map is inferred from the text.

Deep (`worst_return`), each T_i is learnt by the library's SAC and the worst member searched by rollouts on a grid. More
simply than in the paper: no CMA-ES; no heads that switch a Q-function off where its model mispredicts, so no default
policy either; Q-functions are SAC's soft ones; and learning stops where the worst member repeats, not by the gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partita.core.limits import check_above, check_choice, check_least
from partita.core.paper import Claim, Figure, Identity, Paper
from partita.loops.exact import Exact, solve
from partita.loops.replay import train
from partita.loops.run import Generators, Run
from partita.papers.online.sac import SAC
from partita.parts.planning import PolicyIteration, ValueIteration, iterated
from partita.parts.solver import Solution, Solver
from partita.parts.temperature import TunedTemperature
from partita.policies.feed_forward import FeedForward
from partita.tasks.control.classic import Pendulum
from partita.tasks.control.random_pendulum import RandomPendulum
from partita.tasks.finite.families import FiniteFamily
from partita.tasks.finite.mdp import Array, FiniteMDP
from partita.tasks.finite.windy_walk import WindyWalk

PAPER = Paper(
    key="iwocs", title="Solving robust MDPs as a sequence of static RL problems", arxiv="2410.06212",
    authors="Zouitine, Geist, Rachelson", year=2024, changes=("solver",), loop="exact",
)  # fmt: skip

Inner = Literal["policy_iteration", "value_iteration"]
Model = Literal["mean", "nominal"]
Keep = Literal["last", "best"]


class Robust(Solver):
    """Base of solvers of families of processes without end."""

    reads: ClassVar[str] = "family"
    example: ClassVar[str] = "windy_walk"

    def cannot(self, problem: FiniteFamily) -> str | None:
        if problem.first.horizon is None:
            return None
        return f"its processes end after {problem.first.horizon} decisions; use --task family, which has a discount"


def optimum(mdp: FiniteMDP, inner: Inner = "policy_iteration", tolerance: float = 1e-9) -> Array:
    """The best values of a process, (S,), exact, or within a tolerance by value iteration."""
    solver: Solver = PolicyIteration() if inner == "policy_iteration" else ValueIteration(tolerance)
    return solve(Exact(solver=solver), mdp).solution.tables["values"]


def judged(family: FiniteFamily, policy: NDArray[Any], **numbers: float) -> tuple[int, Solution]:
    """The worst member for a policy, and the solution that consists of the policy, whose "value" is that in there."""
    worst, value = family.worst(policy)
    point = {f"worst_{n}": float(x) for n, x in zip(family.names, family.parameters[worst], strict=True)}
    return worst, Solution({"value": value, **numbers, **point}, {"policy": policy})


@dataclass(frozen=True)
class Iwocs(Robust):
    """Members solved one by one, each the worst for the policy so far (Zouitine et al., 2024, algorithm 1).

        Q_i(s, a) = min_{j <= i} Q*_{T_j}(s, a),    pi_i(s) = argmax_a Q_i(s, a),    T_{i+1} = argmin_T V^{pi_i}_T(s_0)

    tolerance: epsilon. iterations: M, at most so many members after the first are solved. inner: how they are solved;
    value iteration to a quarter of the tolerance. keep: the "last" pi_i is the answer, as in the paper, or the "best"
    in its own worst member. Numbers: "value" of the answer in its worst member; "bound" Q_i(s_0, pi_i(s_0)), above
    which no policy without chance is; "gap" between them; "certified" where it is within epsilon; "stalled" where
    T_{i+1} has been solved before. Table "q" is Q_i (S, A). Where the first state is random the bound is that of a
    state before it, min_j start' V*_{T_j}.
    """

    tolerance: float = 1e-6
    iterations: int = 100
    inner: Inner = "policy_iteration"
    keep: Keep = "last"

    def __post_init__(self) -> None:
        check_above("solver.tolerance", self.tolerance)
        check_least("solver.iterations", self.iterations)
        check_choice("solver.inner", self.inner, get_args(Inner))
        check_choice("solver.keep", self.keep, get_args(Keep))

    def __call__(self, problem: FiniteFamily, generator: np.random.Generator) -> Iterator[Solution]:
        start, now = problem.first.start, problem.nominal
        solved: list[int] = []
        q, bound, kept = np.full(problem.first.reward.shape, np.inf), np.inf, Solution({"value": -np.inf})
        while len(solved) <= self.iterations:
            best = optimum(problem.members[now], self.inner, self.tolerance / 4)
            q = np.minimum(q, problem.members[now].q(best))
            bound = float(q[start.argmax()].max()) if start.max() == 1 else min(bound, float(start @ best))
            solved.append(now)
            now, found = judged(problem, q.argmax(1))
            if self.keep == "last" or found.numbers["value"] > kept.numbers["value"]:
                kept = found
            gap = bound - kept.numbers["value"]
            certified = abs(gap) <= self.tolerance
            stalled = not certified and now in solved
            about = {"bound": bound, "gap": gap, "certified": float(certified), "stalled": float(stalled)}
            yield Solution({**kept.numbers, **about, "solved": float(len(solved))}, {**kept.tables, "q": q})
            if certified or stalled:
                return


@dataclass(frozen=True)
class RectangularValueIteration(Robust):
    """Robust value iteration on the (s,a)-rectangular hull of a family (Iyengar, 2005).

        v(s) <- max_a min_k r_k(s, a) + discount sum_s' P_k(s'|s, a) v(s')

    Stops when every value is known within `tolerance`. Numbers: "hull" v(s_0), which is at most what the best policy
    has in its worst member; with the last sweep "value", what the greedy policy has in its own.
    """

    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        check_above("solver.tolerance", self.tolerance)

    def __call__(self, problem: FiniteFamily, generator: np.random.Generator) -> Iterator[Solution]:
        start = problem.first.start
        for values, q, _, error in iterated(problem.first, lambda v: problem.q(v).min(0), self.tolerance):
            numbers, policy = {"hull": float(start @ values), "error": error}, q.argmax(1)
            if error > self.tolerance:
                yield Solution(numbers)
        found = judged(problem, policy, **numbers)[1]
        yield Solution(found.numbers, {**found.tables, "values": values})


@dataclass(frozen=True)
class SingleProcess(Robust):
    """The best policy of one process: the mean of the members, or the nominal one, without regard to the others.

        pi(s) = argmax_a Q*(s, a)   of   1/K sum_k P_k, 1/K sum_k r_k

    The mean is what domain randomisation amounts to if the member is drawn anew at every step.
    """

    model: Model = "mean"

    def __post_init__(self) -> None:
        check_choice("solver.model", self.model, get_args(Model))

    def __call__(self, problem: FiniteFamily, generator: np.random.Generator) -> Iterator[Solution]:
        mdp = problem.mean if self.model == "mean" else problem.members[problem.nominal]
        yield judged(problem, mdp.q(optimum(mdp)).argmax(1))[1]


RECIPES = {
    "iwocs": Exact(solver=Iwocs()),
    "iwocs_best": Exact(solver=Iwocs(keep="best")),
    "iwocs_rvi": Exact(solver=RectangularValueIteration()),
    "iwocs_mean": Exact(solver=SingleProcess()),
    "iwocs_nominal": Exact(solver=SingleProcess(model="nominal")),
}


def random_family(
    seed: Any, states: int = 6, actions: int = 3, groups: int = 1, points: int = 64, discount: float = 0.9,
    branches: int = 2,
) -> FiniteFamily:  # fmt: skip
    """Processes between two random ones, as far from the first as a parameter of each of `groups` of states says.

        P_u(.|s, a) = (1 - u_g(s)) P_0(.|s, a) + u_g(s) P_1(.|s, a),    u_g in a grid of [0, 1]

    Each row of P_0 and P_1 leads to `branches` states; rewards are uniform in [0, 1] and known. points: of the whole
    grid, at most. One group shares a parameter among all states; as many groups as states leave them independent.
    """
    rng, rows = np.random.default_rng(seed), states * actions
    ends = np.zeros((2, rows, states))
    reached = rng.random((2, rows, states)).argsort(-1)[..., :branches]
    np.put_along_axis(ends, reached, rng.dirichlet(np.ones(branches), (2, rows)), -1)
    reward = rng.random((states, actions))
    axis = np.linspace(0, 1, round(points ** (1 / groups)))
    grid = np.stack(np.meshgrid(*[axis] * groups, indexing="ij"), -1).reshape(-1, groups)
    share = np.repeat(grid[:, np.arange(states) % groups], actions, 1)[..., None]
    tables = (1 - share) * ends[0] + share * ends[1]
    first = np.eye(states)[0]
    return FiniteFamily(
        tuple(FiniteMDP(t, reward, first, discount) for t in tables), grid, tuple(f"u{g}" for g in range(groups))
    )


def least(policies: Sequence[Any], obs: Tensor) -> Tensor:
    """Actions (N, A) of the policy whose own action has the least value by its own critics, state by state.

    j(s) = argmin_j min_k Q_{j,k}(s, pi_j(s))
    """
    heads = [p.head(obs) for p in policies]
    q = torch.stack([p.q(obs, p.shape.mode(h)).amin(0) for p, h in zip(policies, heads, strict=True)])
    actions = torch.stack([p.choose(h, None) for p, h in zip(policies, heads, strict=True)])
    return actions[q.argmin(0), torch.arange(len(obs))]


@torch.no_grad()
def returns(policies: Sequence[Any], task: RandomPendulum, points: int, episodes: int, g: torch.Generator) -> Tensor:
    """Mean returns of `least` at every point of the grid, (points^2,), from the same first states."""
    grid = task.grid(points)
    first = Pendulum.reset(task, episodes, g)
    state = torch.cat((first.repeat(len(grid), 1), grid.repeat_interleave(episodes, 0)), 1)
    total = torch.zeros(len(state))
    for _ in range(task.horizon):
        state, reward, _ = task.step(state, least(policies, task.observe(state)), g)
        total += reward
    return total.view(len(grid), episodes).mean(1)


def learnt(task: Any, seed: int, updates: int, lr: float) -> Any:
    """What the library's SAC learns on a task."""
    recipe, run = (
        SAC.but(temperature=TunedTemperature(lr=lr), lr=lr, batch_size=128, steps=1, updates=updates),
        Run(seed),
    )
    policy = recipe.equip(FeedForward(hidden=(64, 64)), task).build(task, False, run.generators["init"])
    train(recipe, policy, task, run)
    return policy


def worst_return(
    arm: str, seed: int, width: float = 0.5, members: int = 3, updates: int = 1500, lr: float = 3e-3, points: int = 5,
    episodes: int = 32,
) -> dict[str, float]:  # fmt: skip
    """The return on the worst pendulum of a box of masses and lengths, 1 +- width, after as many updates in both arms.

    `treatment`: deep IWOCS, a pendulum learnt after the other, from the middle of the box; it stops at one that it has
    learnt. `control`: SAC with domain randomisation, for `members` times the updates.
    """
    task, streams = RandomPendulum(masses=(1 - width, 1 + width), lengths=(1 - width, 1 + width)), Generators(seed)
    if arm == "control":
        policies = [learnt(task, seed, members * updates, lr)]
    else:
        grid, policies, solved = task.grid(points), [], []
        now = len(grid) // 2
        while len(policies) < members and now not in solved:
            mass, length = grid[now].tolist()
            policies.append(learnt(Pendulum(mass=mass, length=length), seed, updates, lr))
            solved.append(now)
            now = int(returns(policies, task, points, episodes, streams["search"]).argmin())
    found = returns(policies, task, points, episodes, streams["evaluation"])
    return {"value": float(found.min()), "mean": float(found.mean()), "learnt": float(len(policies))}


def missing(seed: int, points: int = 481) -> float:
    """What the policy for the windy walk's 25 alphas lacks at the worst of more, to the best that any can have there.

    No policy is worth more in its worst member than min_alpha V*_alpha(s_0); whoever has that has the max-min.
    """
    policy = solve(RECIPES["iwocs"], WindyWalk().family, seed).solution.tables["policy"]
    dense = WindyWalk(points=points).family
    best = optimum(dense.union).reshape(len(dense), -1) @ dense.first.start
    return float(best.min()) - dense.worst(policy)[1]


def solves(seed: int) -> float:
    """How many members of the windy walk are solved, certified within 1e-6; infinite if it is not certified."""
    numbers = solve(RECIPES["iwocs"], WindyWalk().family, seed).solution.numbers
    return numbers["solved"] if numbers["certified"] else np.inf


def along(seed: int) -> dict[str, Array]:
    """What the first and the last policy are worth at every alpha of the windy walk."""
    family = WindyWalk().family
    found = [s.tables["policy"] for s in Iwocs()(family, np.random.default_rng(seed))]
    return {
        f"the {n} policy": family.values(p) @ family.first.start for n, p in (("first", found[0]), ("last", found[-1]))
    }


def violations(seed: int, families: int = 8) -> float:
    """How often, over random families of 4 states, what is proved of Q_i is not so, or a gap is not a bound.

    Q_{i+1} <= Q_i; Q_i >= Q of robust value iteration on the hull; max_a Q_i(s_0, a) >= the max-min over all 16
    deterministic policies, which is no further above the value than the gap; and the hull's value is at most that.
    """
    count, actions = 0, np.arange(2)
    for number in range(families):
        family = random_family((seed, number), 4, 2, groups=(1, 2, 4)[number % 3], points=16)
        policies = np.stack(np.meshgrid(*[actions] * 4), -1).reshape(-1, 4)
        optimal = max(family.worst(policy)[1] for policy in policies)
        rvi = solve(RECIPES["iwocs_rvi"], family).solution
        hull, last = family.q(rvi.tables["values"]).min(0), np.full((4, 2), np.inf)
        count += rvi.numbers["hull"] > optimal + 1e-7
        for solution in Iwocs()(family, np.random.default_rng(0)):
            q, numbers = solution.tables["q"], solution.numbers
            count += bool((q > last).any()) + bool((q < hull - 1e-7).any()) + (numbers["bound"] < optimal - 1e-9)
            count += optimal - numbers["value"] > numbers["gap"] + 1e-9
            last = q
    return float(count)


def shared(
    arm: str, seed: int, solver: Literal["iwocs", "iwocs_best"] = "iwocs", groups: int = 1, families: int = 40
) -> dict[str, float]:  # fmt: skip
    """Mean value in the worst member over random families of 6 states and 3 actions: `solver` against `iwocs_rvi`."""
    recipe = RECIPES[solver if arm == "treatment" else "iwocs_rvi"]
    found = [solve(recipe, random_family((seed, n), groups=groups)).solution.numbers for n in range(families)]
    return {name: float(np.mean([f.get(name, 0.0) for f in found])) for name in ("value", "stalled")}


_SHARED: dict[str, Any] = {
    "control": "iwocs_rvi", "task": "random families", "metric": "worst-case value", "experiment": shared,
    "dial": ("states that share a parameter", (("1", {"groups": 6}), ("2", {"groups": 3}), ("6", {"groups": 1}))),
}  # fmt: skip

CLAIMS = (
    Claim(
        statement="more in the worst member than robust value iteration where states share the parameter",
        treatment="iwocs", **_SHARED,
        analysis="Behind by 0.10 of about 7.2 where all states share it, by 0.25 where none do, and there robust value "
        "iteration is exact: in half of the families and more the worst member has been solved before, and nothing "
        "changes any more. Sharing narrows the gap, as the paper would have it, and does not close it.",
    ),
    Claim(
        statement="and with the best of its policies kept in place of the last",
        treatment="iwocs_best", settings={"solver": "iwocs_best"}, **_SHARED,
        analysis="Half of what is missing is the last policy's: 0.05 where all states share the parameter.",
    ),
    Claim(
        statement="deep: a higher return on the worst pendulum of a box than SAC with domain randomisation, after as "
        "many updates",
        treatment="iwocs", control="sac", task="random_pendulum", metric="worst-case return", experiment=worst_return,
        dial=("masses and lengths", (("1 +- 0.05", {"width": 0.05}), ("1 +- 0.5", {"width": 0.5}))),
        search={"lr": (1e-3, 3e-3)},
    ),
    Identity(
        statement="on the windy walk it has the max-min value of a grid twenty times as dense",
        measure=missing, expected=0.0, tolerance=1e-6,
    ),
    Identity(
        statement="on the windy walk it stops after two solved processes", measure=solves, expected=2.0, tolerance=0.0,
    ),
    Identity(
        statement="Q_i falls, never below that of the robust optimum, and no deterministic policy of a random family "
        "is better than the value by more than the gap",
        measure=violations, expected=0.0, tolerance=0.0, seeds=8,
    ),
)  # fmt: skip

FIGURES = (
    Figure(
        title="The windy walk: policies at every wind",
        x_name="alpha",
        y_name="value of the start",
        seeds=1,
        x=tuple(WindyWalk().family.parameters[:, 0].tolist()),
        measure=along,
        theory={"the best at that alpha": lambda alpha: float(optimum(WindyWalk(alpha=alpha).process)[0])},
    ),
)
