"""The deep agent of distributional dynamic programming: QR-DQN that sees its stock and acts by a utility of it.

    a = argmax_a mean_i f(c + theta_i(s, c, a)),    y_j = r + discount theta_lag_j(s', c', a')

theta_1 .. theta_N are quantiles of the return that follows, learnt by quantile regression (Dabney et al., 2018,
arXiv:1710.10044); c, c' are stocks in the observations of the task `stocked`, whose utility f is. Where f is x, or the
task has no stock, it is QR-DQN. The first stock is chosen after learning, as the best by what the quantiles say.
Networks, rates and exploration are those of `dqn`: the authors' could not be read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from partita.core.errors import UserError
from partita.core.limits import check_count, check_least
from partita.core.spaces import Discrete
from partita.core.transitions import Transitions
from partita.loops.replay import train
from partita.loops.run import Run
from partita.papers.baselines.dqn import DQN
from partita.papers.theory.stock_tree import Tree, lower_tail, unfold
from partita.parts.actor import GreedyActor
from partita.parts.critic import Critic, Notes, check_members
from partita.parts.explore import EpsilonGreedy
from partita.policies.agent import Agent
from partita.policies.feed_forward import FeedForward, FeedForwardPolicy, Networks
from partita.tasks.control.stocked import Kinked, Stocked
from partita.tasks.finite.task import Tabular


class QuantilePolicy(FeedForwardPolicy):
    """Acts by a utility of stock and quantiles. scale: the stock's in the observation, None: there is none."""

    def __init__(self, *about: Any, utility: Kinked, scale: float | None) -> None:
        super().__init__(*about)
        self.utility, self.scale = utility, scale

    def q(
        self, obs: Tensor, action: Tensor | None = None, networks: Networks | None = None, first: int | None = None
    ) -> Tensor:
        """mean_i f(c + theta_i(s, c, a)) of every critic, (K, N); of every action, (K, N, n), where none is given."""
        quantiles = self.raw(obs, action, networks, first)
        if self.scale is None:
            return quantiles.mean(-1)
        stock = obs[:, -2] * self.scale
        return self.utility(quantiles + stock.view(1, -1, *[1] * (quantiles.dim() - 2))).mean(-1)

    def save(self, folder: Path) -> None:
        """Write `policy.json` and `policy.safetensors`."""
        super().save(folder)
        about = json.loads((folder / "policy.json").read_text())
        (folder / "policy.json").write_text(json.dumps({**about, "kind": "quantile_networks"}, indent=1))


@dataclass(frozen=True)
class QuantileNetworks(FeedForward):
    """Critics that put out quantiles of returns, of which a policy of a stocked task takes the utility.

        pi(s, c) = argmax_a mean_i f(c + theta_i(s, c, a))

    f and the place of c are the task's; without a stock f(c + x) is x. Fields as of feed_forward.
    """

    def build(self, task: Any, value: bool, generator: torch.Generator) -> QuantilePolicy:
        if len(task.observation_shape) != 1 or not isinstance(task.action_space, Discrete):
            raise UserError(f"task {task.part_name()}: quantile_networks reads vectors and takes one choice of "
                            "several; choose another --task")  # fmt: skip
        about: dict[str, Any] = {"utility": Kinked(), "scale": None}
        if isinstance(task, Stocked):
            about = {"utility": task.utility, "scale": task.scale}
        return QuantilePolicy(self, task.observation_shape, task.action_space, generator, **about)


@dataclass(frozen=True)
class QuantileGreedy(GreedyActor):
    """No network of its own.

        pi(s, c) = argmax_a mean_k mean_i f(c + theta_ki(s, c, a))

    f is the utility of the task, theta_k the quantiles of critic k.
    """

    teaches: ClassVar[type[Any]] = QuantileNetworks


@dataclass(frozen=True)
class QuantileRegression(Critic):
    """Quantiles of the return that follows the greedy action (Dabney et al., 2018, arXiv:1710.10044, eq. 10).

        y_j  = r + discount * theta_lag_j(s', a'),    a' = argmax_a mean_i f(c' + theta_i(s', a))
        loss = sum_i mean_j |tau_i - 1{y_j < theta_i}| huber_kappa(y_j - theta_i) / kappa,    tau_i = (i - 1/2) / N

    quantiles: N. kappa 0: the absolute difference in place of Huber's. double: a' by the quantiles that learn, else by
    those that lag. c and c' only decide a': quantiles are of what follows.
    """

    members: int = 1
    quantiles: int = 32
    kappa: float = 1.0
    double: bool = True

    def __post_init__(self) -> None:
        check_members(self.members)
        check_count("critic.quantiles", self.quantiles)
        check_least("critic.kappa", self.kappa)

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Numbers that a critic puts out for an action."""
        return self.quantiles

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not isinstance(task.action_space, Discrete):
            return f"critic quantile_regression needs discrete actions; those of task {task.part_name()} are real"
        if recipe.actor.teaches is not QuantileNetworks:
            return "critic quantile_regression needs a policy that reads quantiles; use --actor quantile_greedy"
        if isinstance(task, Stocked) and task.discount != recipe.discount:
            return f"the stock is kept with discount {task.discount:g}; give --discount {task.discount:g} as well"
        return None

    def target(self, agent: Agent, batch: Transitions) -> Tensor:
        """y, (K, N, quantiles), of the action that is best in the mean of the critics."""
        best = agent.q(batch.next_obs, lagged=not self.double).mean(0).argmax(-1)
        later = agent.policy.raw(batch.next_obs, best, agent.lagged)
        return batch.reward[:, None] + batch.discount[:, None] * later

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        with torch.no_grad():
            target = self.target(agent, batch)
        theta = agent.policy.raw(batch.obs, batch.action)
        losses = regression(theta, target, self.kappa)
        q = theta.detach().mean(-1)
        notes = {"q": q.mean(), "error": (q - target.mean(-1)).abs().mean(0)}
        return batch.mean(losses).sum(), notes


def regression(theta: Tensor, target: Tensor, kappa: float) -> Tensor:
    """The loss of quantiles (..., N) towards draws (..., M) of what they are quantiles of, (...).

    sum_i mean_j |tau_i - 1{y_j < theta_i}| huber_kappa(y_j - theta_i) / kappa
    """
    count = theta.shape[-1]
    tau = (torch.arange(count, dtype=theta.dtype, device=theta.device) + 0.5) / count
    low, high = torch.broadcast_tensors(theta[..., :, None], target[..., None, :])
    weight = (tau[:, None] - (high < low).to(theta.dtype)).abs()
    size = huber_loss(low, high, reduction="none", delta=kappa) / kappa if kappa else (high - low).abs()
    return (weight * size).mean(-1).sum(-1)


QR_DQN = DQN.but(critic=QuantileRegression(), actor=QuantileGreedy())
STOCK_QR_DQN = QR_DQN.but(discount=1.0)


def plan_of(policy: Any, task: Stocked, tree: Tree, stock: float) -> list[np.ndarray]:
    """What a policy does at every node of the tree of a task's process, from a first stock on."""
    found = []
    for t, (state, earned) in enumerate(zip(tree.state[:-1], tree.earned[:-1], strict=True)):
        held = torch.from_numpy((stock + earned) / task.discount**t)
        whole = task.joined(torch.from_numpy(state), held, torch.full_like(held, t), torch.full_like(held, stock))
        with torch.no_grad():
            action = policy.act(task.observe(whole), None).numpy()
        exists = tree.exists[t]
        found.append(np.where(exists[np.arange(len(state)), action], action, exists.argmax(1)))
    return found


def chosen_stock(policy: Any, task: Stocked, candidates: np.ndarray) -> float:
    """The first stock of which the policy promises most, -c0 + E max_a mean_i f(c0 + theta_i); E over first states."""
    process = task.environment.process  # type: ignore[attr-defined]
    stocks = torch.from_numpy(np.repeat(candidates, process.size))
    state = torch.arange(process.size).repeat(len(candidates))
    obs = task.observe(task.joined(state, stocks, torch.zeros_like(stocks), stocks))
    with torch.no_grad():
        worth = policy.head(obs).amax(-1).double().numpy().reshape(len(candidates), -1) @ process.start
    return float(candidates[(worth - candidates).argmax()])


def compared(
    arm: str, seed: int, control: str = "stockless", env: str = "betting_table", goal: str = "cvar", tau: float = 0.25,
    share: float = 0.0, target: float = 0.0, steps: int = 8, updates: int = 500, lr: float = 1e-3,
    kappa: float = 0.1, quantiles: int = 16, hidden: int = 64, **settings: Any,
) -> dict[str, float]:  # fmt: skip
    """Train the agent on a small process; the objective of what it then does, exactly, from the tree of the process.

    The arm `control` is "stockless", which sees c0 in place of c, or "neutral", whose utility is x: QR-DQN. goal:
    "cvar", (1 - share) CVaR_tau + share of the mean; or "target", -E|G - target|. settings: fields of the environment.
    """
    f = Kinked(1.0, -1.0) if goal == "target" else Kinked((1 - share) / tau + share, share)
    plain = Stocked(env=env, env_settings=settings)
    assert isinstance(plain.environment, Tabular)
    tree = unfold(plain.environment.process, plain.horizon)
    low, high = (-target, -target) if goal == "target" else (-tree.outcomes[-1], -tree.outcomes[0])
    task = plain.but(below=f.below, above=f.above, low=float(low), high=float(high), scale=float(np.ptp(tree.outcomes)))
    if arm == "control":
        task = task.but(shown=False) if control == "stockless" else task.but(below=1.0, above=1.0)
    recipe = STOCK_QR_DQN.but(
        critic=QuantileRegression(quantiles=quantiles, kappa=kappa), steps=steps, updates=updates, lr=lr, batch_size=64,
        envs=8, ratio=0.5, explore=EpsilonGreedy(steps=updates * steps, last=0.1),
    )  # fmt: skip
    run = Run(seed)
    policy = recipe.equip(QuantileNetworks(hidden=(hidden, hidden)), task).build(task, False, run.generators["init"])
    train(recipe, policy, task, run)
    stock = -target if goal == "target" else chosen_stock(policy, task, -tree.outcomes)
    laws, _ = tree.backup(f, stock, plan_of(policy, task, tree, stock))
    law = tree.mdp.start @ laws
    mean, tail = float(law @ tree.outcomes), float(lower_tail(tree.outcomes, law, tau))
    value = -float(law @ np.abs(tree.outcomes - target)) if goal == "target" else (1 - share) * tail + share * mean
    return {"value": value, "mean": mean, "lower_tail": tail, "stock": stock}
