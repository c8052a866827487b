"""Harnessing Mixed Offline Reinforcement Learning Datasets via Trajectory Weighting (Hong et al., 2023),
arXiv:2306.13085.

Changes any offline recipe in one slot: `replay`. Whatever is learnt is learnt from another sample of the same data, in
which episodes that went well are more frequent:

    p(transition of episode i) = exp(u_i / alpha) / sum_j T_j exp(u_j / alpha),    u = (x - min x) / (max x - min x)
    x_i = G_i                 RW: the return of the episode
    x_i = G_i - V(s_i0)       AW: its advantage, V a linear regression of returns on initial states

Where transitions are deterministic, the policy that would have left the weighted data earns their weighted return,
which is above the mean one. Luck with the initial state is no merit, and AW leaves it out. The weights enter no loss.

As in the last version of the authors' code (there G is what d4rl leaves of an episode, without its last reward), with
its alpha: 0.2 for CQL, 0.1 for IQL and TD3+BC. The paper itself was not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from partita.core.limits import check_above
from partita.core.paper import Claim, Identity, Paper
from partita.core.store import Store
from partita.papers.baselines.cql import CQL
from partita.papers.baselines.iql import IQL
from partita.papers.baselines.td3_bc import TD3_BC
from partita.parts.replay import LoggedReplay, episode_returns, uniform

PAPER = Paper(
    key="trajectory_weighting",
    title="Harnessing Mixed Offline Reinforcement Learning Datasets via Trajectory Weighting",
    arxiv="2306.13085", authors="Hong et al.", year=2023, changes=("replay",), loop="replay",
)  # fmt: skip

ROUNDING = 1e-6  # of the largest return: what differs by less is the same


@dataclass(frozen=True)
class ReturnWeighted(LoggedReplay):
    """Transitions of episodes with higher returns, more often (RW: Hong et al., 2023, arXiv:2306.13085).

        p(transition of episode i) = exp(u_i / alpha) / sum_j T_j exp(u_j / alpha)
        u_i = (G_i - min G) / (max G - min G)

    G: undiscounted. Drawn with replacement; transitions of an episode are all alike. alpha -> infinity is
    `uniform_replay`, to the bit, and so is it where all episodes are worth the same.
    """

    alpha: float = 0.1
    _held: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_above("replay.alpha", self.alpha)

    def worth(self, returns: Tensor, starts: Tensor) -> Tensor:
        """What episodes are weighted by, (E,), of their returns (E,) and initial states (E, D)."""
        return returns

    def weight(self, returns: Tensor, starts: Tensor) -> Tensor:
        """The weight of a transition of each episode, (E,), 1 for the best: exp((u - 1) / alpha)."""
        worth = self.worth(returns, starts)
        low, high = worth.aminmax()
        if high - low <= ROUNDING * returns.abs().max():
            return torch.ones_like(worth)
        return ((worth - high) / (high - low) / self.alpha).exp()

    def start(self, store: Store, discount: float) -> None:
        found, rows = episode_returns(store)
        returns, episode = found.cpu().double(), rows.cpu()
        first = torch.searchsorted(episode, torch.arange(len(returns)))
        starts = store.take(first.to(rows.device), 1.0).obs.cpu().double()
        weight = self.weight(returns, starts)
        scaled = (returns - returns.min()) / (returns.max() - returns.min()).clamp(min=1e-12)
        self._held.update(
            edges=None if bool((weight == 1).all()) else weight[episode].cumsum(0),
            metrics={
                "weighted_return": float((weight * returns).sum() / weight.sum()),
                "positive_sided_variance": float((scaled - scaled.mean()).clamp(min=0).square().mean()),
            },
        )

    def __call__(self, store: Store, count: int, generator: torch.Generator) -> tuple[Tensor, None]:
        edges = self._held["edges"]
        if edges is None:
            return uniform(count, store.fixed, generator).to(store.rows.device), None
        place = torch.rand(count, generator=generator, dtype=torch.float64) * edges[-1]
        rows = torch.searchsorted(edges, place, right=True).clamp(max=len(edges) - 1)
        return rows.to(store.rows.device), None

    def metrics(self) -> dict[str, float]:
        """Of the episodes: their weighted mean return, and mean max(0, G - mean G)^2 of returns scaled to [0, 1]."""
        return dict(self._held["metrics"])


@dataclass(frozen=True)
class AdvantageWeighted(ReturnWeighted):
    """Transitions of episodes that went better than their initial states promised, more often (AW).

        p(transition of episode i) = exp(u_i / alpha) / sum_j T_j exp(u_j / alpha)
        u_i = (A_i - min A) / (max A - min A),    A_i = G_i - V(s_i0)

    V: the least-squares fit of undiscounted returns G by a linear function of initial states, on the same episodes
    (Hong et al., 2023, arXiv:2306.13085). Where all episodes begin in one state it is `return_weighted`; with no more
    episodes than numbers in a state V fits them all, and the draw is uniform.
    """

    def worth(self, returns: Tensor, starts: Tensor) -> Tensor:
        inputs = torch.cat((starts, torch.ones_like(returns)[:, None]), 1)
        fit = torch.linalg.lstsq(inputs, returns[:, None], driver="gelsd").solution
        return returns - (inputs @ fit)[:, 0]


RECIPES = {
    "cql_aw": CQL.but(replay=AdvantageWeighted(alpha=0.2)),
    "iql_aw": IQL.but(replay=AdvantageWeighted()),
    "td3_bc_aw": TD3_BC.but(replay=AdvantageWeighted()),
    "cql_rw": CQL.but(replay=ReturnWeighted(alpha=0.2)),
    "iql_rw": IQL.but(replay=ReturnWeighted()),
    "td3_bc_rw": TD3_BC.but(replay=ReturnWeighted()),
}


def behaviour_return(seed: int, part: ReturnWeighted) -> tuple[float, float, float]:
    """What the policy earns that would have left weighted data, exactly; the weighted and the plain mean of returns.

    64 episodes of a random policy in a random deterministic world of 6 states and 3 actions, the last state the end,
    8 steps at most. The policy knows the time; it begins where the weighted episodes do.
    """
    g, states, actions, horizon = torch.Generator().manual_seed(seed), 6, 3, 8
    following = torch.randint(states, (states, actions), generator=g)
    reward = torch.randint(-8, 9, (states, actions), generator=g).double() / 8
    chance = torch.randn(states, actions, generator=g, dtype=torch.float64).softmax(1)
    starts = torch.randint(states - 1, (64,), generator=g)
    steps: list[tuple[int, int, int, int]] = []
    for episode, begun in enumerate(starts.tolist()):
        state = begun
        for t in range(horizon):
            action = int(torch.multinomial(chance[state], 1, generator=g))
            steps.append((episode, t, state, action))
            state = int(following[state, action])
            if state == states - 1:
                break
    who, when, where, what = torch.tensor(steps).unbind(1)
    returns = torch.zeros(64, dtype=torch.float64).index_add_(0, who, reward[where, what])
    weight = part.weight(returns, torch.eye(states, dtype=torch.float64)[starts])
    visits = torch.zeros(horizon, states, actions, dtype=torch.float64)
    visits.index_put_((when, where, what), weight[who], accumulate=True)
    policy = visits / visits.sum(2, keepdim=True).clamp(min=1e-300)
    value = torch.zeros(states, dtype=torch.float64)
    for t in reversed(range(horizon)):
        value = (policy[t] * (reward + value[following] * (following < states - 1))).sum(1)
    begins = visits[0].sum(1) / visits[0].sum()
    return float(begins @ value), float(weight @ returns / weight.sum()), float(returns.mean())


def apart_from_weighted_returns(seed: int) -> float:
    """How far the exact return of the policy behind weighted data is from the weighted mean of returns, at worst."""
    found = [behaviour_return(seed, part) for part in (ReturnWeighted(), AdvantageWeighted())]
    return max(abs(exact - weighted) for exact, weighted, _ in found)


def above_the_data(seed: int) -> float:
    """1 if the policy behind data weighted by returns earns more than that behind the data as they are, else 0."""
    exact, _, mean = behaviour_return(seed, ReturnWeighted())
    return float(exact > mean)


_DATA: dict[str, Any] = {
    "task.env": "mountain_car_continuous", "task.size": 40_000, "policy.hidden": (64, 64), "policy.normalise": True,
    "batch_size": 64, "steps": 2, "updates": 1000, "lr": 1e-3, "eval_size": 64,
}  # fmt: skip
_SHARE = (
    "steps by the expert, the rest at random",
    (
        ("all", {"task.behaviour": "expert"}),
        ("a twentieth", {"task.behaviour": "random:0.95,expert:0.05"}),
    ),
)
_CLAIM: dict[str, Any] = {
    "task": "offline", "metric": "return", "threshold": 50.0, "settings": _DATA, "dial": _SHARE,
}  # fmt: skip

CLAIMS = (
    Claim(
        statement="with weighted episodes TD3+BC earns far more of a twentieth of good data (by 50 of the 100 at the "
        "goal)",
        treatment="td3_bc_aw", control="td3_bc", search={"actor.scale": (1.0, 2.5, 10.0)}, **_CLAIM,
        analysis="81 against 0, but the interval of the difference, 46 to 116, reaches below the 50 that was asked: "
        "seven seeds come to 93 to 97 and one to -23. Where all data are the expert's neither learns (12 and "
        "18), at settings tuned for a twentieth. In a trial on the pendulum, whose random data say enough, weighting "
        "hurt IQL. All seeds share one data set.",
    ),
    Claim(
        statement="and so does IQL",
        treatment="iql_aw", control="iql", search={"actor.beta": (1.0, 3.0, 10.0)}, **_CLAIM,
        analysis="98.9 against 0 of a twentieth of good data, on all eight seeds; 99.0 and 98.9 where all are good.",
    ),
    Claim(
        statement="and so does CQL",
        treatment="cql_aw", control="cql",
        search={"regularisers.conservative.weight": (1.0, 5.0), "actor_lr": (1e-4, 1e-3)},
        **{**_CLAIM, "settings": {**_DATA, "regularisers.conservative.samples": 4}},
        analysis="98.8 against 0.0 with a twentieth by the expert, 98.8 against 97.3 with expert data alone; "
        "uniform draws never find the goal in the mixture.",
    ),
    Identity(
        statement="where transitions are deterministic, the policy behind weighted data earns their weighted return",
        measure=apart_from_weighted_returns, expected=0.0, tolerance=1e-12, seeds=8,
    ),
    Identity(
        statement="and by returns that is more than the policy behind the data as they are",
        measure=above_the_data, expected=1.0, tolerance=0.0, seeds=8,
    ),
)  # fmt: skip
