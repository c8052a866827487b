"""A Reinforcement Learning Method for Environments with Stochastic Variables: Post-Decision Proximal Policy
Optimization with Dual Critic Networks (Felizardo et al., 2025), arXiv:2504.05150.

A step is two: a decision leads from s_t to the post-decision state s^x_t, in which nothing is random yet, and is paid
r^x_t; then chance leads to s_{t+1}. Changes PPO in one slot, `credit`: beside the critic of states there is one of
post-decision states, with an optimiser of its own, and the larger of two advantages counts:

    A_t = max(A^pre_t, A^x_t),   A^pre_t = G(r - r^x)_t - V(s_t),   A^x_t = G(r^x)_t - V^x(s^x_t)

Each critic learns the return that stands before it. As in the last version of the official code (Monte Carlo returns,
the division of the reward); an earlier version, `pdppo_whole`, has the whole return in both, so that

    A_t = G(r)_t - min(V(s_t), V^x(s^x_t))

Of the paper itself only the abstract and a summary were at hand, which gives the maximum of two advantages and the
separate optimisers; no equation is cited by number. What differs here: the critic of states learns with the policy, at
its rate; minibatches, epochs and whitened advantages are those of `ppo`, and a batch is used once (the official code
keeps five); at the cut of an episode the values go on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import NonFinite, UserError
from partita.core.limits import check_above, check_count
from partita.core.paper import Claim, Identity, Paper
from partita.core.part import Domain
from partita.estimators import returns
from partita.papers.baselines.ppo import PPO
from partita.papers.measuring import acting
from partita.parts.credit import GAE, cuts, discount_of
from partita.parts.reward import Outcome
from partita.parts.rollout import Segments
from partita.policies.adam import Adam
from partita.policies.mlp import Mlp
from partita.tasks.control.lot_sizing import LotSizing

PAPER = Paper(
    key="pdppo",
    title="A Reinforcement Learning Method for Environments with Stochastic Variables: Post-Decision Proximal Policy "
    "Optimization with Dual Critic Networks",
    arxiv="2504.05150", authors="Felizardo et al.", year=2025, changes=("credit",),
)  # fmt: skip


@dataclass(frozen=True)
class DualCritic(GAE):
    """The larger of two advantages: one from a state's value, one from that of the post-decision state (PDPPO).

        A_t = max(A^pre_t, A^x_t)
        A^pre_t = sum_l (discount * gae_lambda)^l [p_{t+l} + discount V(s_{t+l+1}) - V(s_{t+l})]
        A^x_t   = sum_l (discount * gae_lambda)^l [q_{t+l} + discount V^x(s^x_{t+l+1}) - V^x(s^x_{t+l})]

    Felizardo et al. (2025), arXiv:2504.05150. split: p = r - r^x and q = r^x, the reward of the decision alone; without
    it p = q = r. use: both, or one advantage alone; `state` without split is `gae`. gae_lambda 1 is the paper's. Where
    a row ends before its episode does, V^x(s^x_t) stands for the V^x that comes next. Tasks give s^x and r^x by `post`.

    V is the policy's critic and learns p (regulariser `value_loss`). V^x is a network of the same size that this part
    holds: after a batch has had its advantages it learns A^x_t + V^x(s^x_t) by squared error, in `critic_epochs` passes
    of `critic_minibatches` steps of Adam at `critic_lr`.
    """

    domains: ClassVar[tuple[Domain, ...]] = ("control",)
    gae_lambda: float = 1.0
    split: bool = True
    use: Literal["both", "state", "post"] = "both"
    critic_lr: float = 1e-3
    critic_epochs: int = 4
    critic_minibatches: int = 4
    critic_grad_norm: float = 0.5
    _live: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use not in ("both", "state", "post"):
            raise UserError(f"credit.use: expected both, state or post, got {self.use!r}")
        for name in ("critic_epochs", "critic_minibatches"):
            check_count(f"credit.{name}", getattr(self, name))
        for name in ("critic_lr", "critic_grad_norm"):
            check_above(f"credit.{name}", getattr(self, name))

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("value", "post") if self.split or self.use != "state" else ("value",)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if "post" not in self.needs:
            return None
        if not hasattr(task, "post"):
            return (
                f"credit dual_critic: task {task.part_name()} has no post-decision states; use --task lot_sizing, "
                "or --credit gae"
            )
        if not isinstance(recipe.rollout, Segments | None):
            return "credit dual_critic: post-decision states are known of segments alone; use --rollout segments"
        if self.split and recipe.reward != (Outcome(),):
            return "credit dual_critic: divides the task's own reward; leave --reward out, or --credit.split"
        return None

    def __call__(self, batch: Batch) -> Tensor:
        if self.use == "state":
            return self.state_advantage(batch)
        after = self.post_advantage(batch, self.post_value(batch))
        return after if self.use == "post" else torch.maximum(self.state_advantage(batch), after)

    def state_advantage(self, batch: Batch) -> Tensor:
        """A^pre, (B, T)."""
        if self.split:
            batch = batch.but(reward=batch.need("reward") - batch.inputs["post_reward"])
        return super().__call__(batch)

    def post_advantage(self, batch: Batch, value: Tensor) -> Tensor:
        """A^x given V^x (B, T) of the post-decision states, (B, T)."""
        reward = batch.inputs["post_reward"] if self.split else batch.need("reward")
        cut = cuts(batch)
        ended = torch.zeros_like(cut) if batch.terminated is None else batch.terminated
        going_on = value * (cut & ~ended)
        return returns.gae(reward, value, cut, going_on, discount_of(self), self.gae_lambda, batch.mask)

    def returns(self, batch: Batch) -> Tensor:
        """What V learns: the return of its part of the reward."""
        return self.state_advantage(batch) + batch.need("value")

    def post_value(self, batch: Batch) -> Tensor:
        """V^x(s^x) as it was when the batch was sampled, (B, T); zeros before anything was learnt."""
        if "acting" not in self._live:
            return torch.zeros_like(batch.need("reward"))
        with torch.no_grad():
            return self._live["acting"](batch.inputs["post"])[..., 0]

    def learn(self, policy: Any, batch: Batch, generator: torch.Generator) -> None:
        """Keep V^x as it is for the advantages of this batch, and teach it the batch's returns."""
        if self.use == "state":
            return
        live = self._live
        self._begin(policy, batch.inputs["post"].shape[-1], generator)
        live["acting"].load_state_dict(live["online"].state_dict())
        value = self.post_value(batch)
        advantage = self.post_advantage(batch, value)
        post, goal = batch.inputs["post"][batch.mask], (advantage + value)[batch.mask]
        if not bool(goal.isfinite().all()):  # the loop is about to stop and say so
            return
        loss = goal.new_zeros(())
        for _ in range(self.critic_epochs):
            rows = torch.randperm(len(goal), generator=generator).to(goal.device)
            for some in rows.chunk(self.critic_minibatches):
                error = (live["online"](post[some])[:, 0] - goal[some]).square().mean()
                error.backward()
                if not bool(live["adam"].apply().isfinite()):
                    raise NonFinite("credit: the gradient of the post-decision critic is not finite; stopped")
                loss = error.detach()
        unexplained = (goal - value[batch.mask]).var() / goal.var().clamp(min=1e-12)
        live["metrics"] = {"post_loss": float(loss), "post_explained_variance": float(1 - unexplained)}
        if self.use == "both":
            larger = advantage > self.state_advantage(batch)
            live["metrics"]["post_larger"] = float(larger[batch.mask].float().mean())

    def _begin(self, policy: Any, width: int, generator: torch.Generator) -> None:
        """Make V^x at the first call, or from a checkpoint."""
        live = self._live
        if "online" in live:
            return
        saved = live.pop("saved", None)
        unused = torch.Generator() if saved else generator  # a resumed run has drawn its first weights already
        sizes = [width, *policy.settings.hidden, 1]
        online = Mlp(sizes, 1.0, policy.settings.activation, unused).to(policy.device)
        adam = Adam(dict(online.named_parameters()), self.critic_lr, self.critic_grad_norm, eps=1e-5)
        if saved:
            online.load_state_dict(saved["online"])
            adam.load_state_dict(saved["adam"])
        live.update(online=online, adam=adam, acting=deepcopy(online).requires_grad_(False))

    def metrics(self) -> dict[str, float]:
        """Of V^x: its last loss, the variance of returns that it explained, and how often its advantage was larger."""
        return dict(self._live.get("metrics", {}))

    def state_dict(self) -> dict[str, Any]:
        live = self._live
        if "saved" in live:
            return {"saved": live["saved"]}
        return {"saved": {n: live[n].state_dict() for n in ("online", "adam")}} if "online" in live else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The network is built at the next `learn`, which knows the policy."""
        self._live.clear()
        if state:
            self._live["saved"] = state["saved"]


PDPPO = PPO.but(credit=DualCritic())

RECIPES = {"pdppo": PDPPO, "pdppo_whole": PDPPO.but(credit=DualCritic(split=False))}


def from_the_optimum(folder: Path) -> float:
    """How much less than the best policy the one of the run in `folder` is worth, exactly (a small `lot_sizing`)."""
    task, policy = acting(folder)
    with torch.no_grad():
        return task.optimal_return() - task.expected_return(lambda obs: policy.act(obs, None))


def apart_from_bellman(seed: int) -> float:
    """Largest difference between best values by post-decision states and by every demand of every action."""
    task = LotSizing(
        items=2, machines=1, trials=2, chance=0.5, noise=1.0, max_inventory=4, production=(2, 3), setup_loss=(1,),
        instance=seed, max_steps=4,
    )  # fmt: skip
    states, plans = task.states.repeat_interleave(len(task.plans), 0), task.plans.repeat(len(task.states), 1)
    post, decided = task.post(states, plans)
    value = torch.zeros(len(task.states), dtype=torch.float64)
    for _ in range(task.max_steps):
        worth = decided.clone()
        for demand in torch.cartesian_prod(*[torch.arange(3)] * 2):
            chance = math.prod(task.demand[int(d)] for d in demand)
            following, reward = task.arrive(post, demand)
            first, second, setup = following.long().unbind(1)
            worth += chance * (reward + value[(first * 5 + second) * 3 + setup])
        value = worth.view(len(task.states), -1).amax(1)
    return float((value - task.backwards()[0]).abs().max())


_NOISE = ("noise of demand", (("none", {"task.noise": 0.0}), ("binomial", {"task.noise": 1.0})))
_SEGMENTS = {"part": "segments", "steps": 50}
_RUN: dict[str, Any] = {"rollout": _SEGMENTS, "batch_size": 32, "credit.discount": 0.9, "eval_size": 256}
_LARGE = {**_RUN, "steps": 50, "eval_sampled": True, "task.items": 15, "task.machines": 5}
_RATES = (3e-4, 1e-3, 3e-3)

CLAIMS = (
    Claim(
        statement="with Monte Carlo returns in both, as in the paper, it comes to a higher return than PPO in "
        "stochastic lot-sizing",
        treatment="pdppo", control="ppo", task="lot_sizing", metric="return", dial=_NOISE,
        settings={**_LARGE, "credit.gae_lambda": 1.0}, search={"lr": _RATES},
        analysis="-66 against -34, behind on all eight seeds, and by as much without noise, so that noise is not the "
        "reason. Probably: the second critic sees what the decision led to and leaves it no credit, and the larger of "
        "two advantages hides bad steps (neither was tested apart). Actions are sampled, as in the official test; in "
        "trials greedy ones went either way. Both took the highest rate.",
    ),
    Claim(
        statement="and so it does where the lambda of both is tuned as well",
        treatment="pdppo", control="ppo", task="lot_sizing", metric="return", dial=_NOISE,
        settings=_LARGE, search={"lr": (1e-3, 3e-3), "credit.gae_lambda": (0.95, 1.0)},
        analysis="-60 against -34, behind on all eight seeds, with noise and without. Rates and lambda were "
        "searched for both.",
    ),
    Claim(
        statement="on an instance that is solved exactly it ends nearer to the best policy than PPO",
        treatment="pdppo", control="ppo", task="lot_sizing", metric="return short of the optimum", better="lower",
        measure=from_the_optimum, tuned_by="return", dial=_NOISE,
        settings={
            **_RUN, "steps": 40, "task.items": 2, "task.machines": 1, "task.max_inventory": 30, "task.trials": 10,
            "task.production": (18,), "task.setup_loss": (2,), "task.setup_cost": (4.0,), "task.holding_cost": (0.05,),
            "task.lost_cost": (1.0,), "credit.gae_lambda": 1.0,
        },
        search={"lr": _RATES},
        analysis="3.7 short of the optimum against 0.56, on all eight seeds, with noise of demand and (4.3 against "
        "0.53) without. PPO is close to the best policy there; what post-decision values know exactly elsewhere "
        "(last statement) does not make this learner better.",
    ),
    Identity(
        statement="the best values found through post-decision states, where the expectation stands outside the "
        "maximum, are those of Bellman's equation over every demand",
        measure=apart_from_bellman, expected=0.0, tolerance=1e-12, seeds=8,
    ),
)  # fmt: skip
