"""Decision Transformer: Reinforcement Learning via Sequence Modeling (Chen, Lu et al., 2021), arXiv:2106.01345.

Changes behaviour cloning in two slots: `replay`, which gives windows of episodes for single steps, and `actor`, which
teaches a causal transformer. It reads returns to go, observations and actions, and says each action from what precedes
it; nothing values anything, and nothing is bootstrapped:

    loss = mean |pi(R_<=t, s_<=t, a_<t) - a_t|^2,    R_t = sum_{t' >= t} r_t'

or -log pi(a_t) for discrete actions. To act, a return is asked for, from which what is earned is taken off step by
step: --policy.target, the best of the data unless it is given.

After the authors' code, the paper not being at hand. Its windows are padded on the left and masked; here on the right,
where nothing that counts can see the padding. Weights of attention are not dropped, tokens and what layers add are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.limits import check_count
from partita.core.paper import Paper
from partita.core.store import Store
from partita.core.transitions import Transitions
from partita.papers.baselines.bc import BC
from partita.parts.actor import Actor, check_delay
from partita.parts.critic import Notes
from partita.parts.replay import LoggedReplay, uniform
from partita.policies.agent import Agent
from partita.policies.sequence import Transformer, TransformerPolicy

PAPER = Paper(
    key="decision_transformer", title="Decision Transformer: Reinforcement Learning via Sequence Modeling",
    arxiv="2106.01345", kind="baseline", authors="Chen, Lu et al.", year=2021, changes=("replay", "actor"),
    loop="replay",
)  # fmt: skip


@dataclass(frozen=True)
class Windows(LoggedReplay):
    """Windows of logged episodes, `batch_size` of them, one behind the other.

        rows  i, i + 1, .., i + length - 1,    P(i) = 1 / N

    An episode that ends before its window does is padded with rows of weight 0; the others weigh the same, 1 on
    average. Batches have `extra["to_go"]` (N,), the rewards of the episode from the step on, and `extra["time"]` (N,),
    the steps before it.
    """

    length: int = 20
    _held: dict[str, Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_count("replay.length", self.length)

    def start(self, store: Store, discount: float) -> None:
        episode = store.extra["episode"]
        length = episode.bincount()
        end = length.cumsum(0)
        earned = store.rows[:, -2].double().cumsum(0)
        store.extra["time"] = torch.arange(len(episode), device=episode.device) - (end - length)[episode]
        store.extra["to_go"] = (earned[end - 1][episode] - earned + store.rows[:, -2]).float()
        self._held["end"] = end[episode]

    def __call__(self, store: Store, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        first = uniform(count, len(store), generator).to(store.rows.device)[:, None]
        rows, end = first + torch.arange(self.length, device=first.device), self._held["end"][first]
        inside = (rows < end).flatten().to(store.rows.dtype)
        return torch.minimum(rows, end - 1).flatten(), inside / inside.mean()


@dataclass(frozen=True)
class SequenceClone(Actor):
    """The logged actions, each from the steps of its window that precede it.

        loss = -mean log pi(a_t | R_<=t, s_<=t, a_<t)
               mean |pi(R_<=t, s_<=t, a_<t) - a_t|^2      for a deterministic policy

    over all steps of the windows, the mean being over entries of an action too.
    """

    teaches: ClassVar[type[Any]] = Transformer
    heads: ClassVar[tuple[str, ...]] = ("deterministic", "categorical")
    delay: int = 1

    def __post_init__(self) -> None:
        check_delay(self.delay)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not isinstance(recipe.replay, Windows):
            return "actor sequence_clone reads whole windows of episodes; use --replay windows"
        if recipe.critic is not None or recipe.value is not None or recipe.regularisers:
            return "actor sequence_clone teaches a policy that has no critics; leave critic, value and regularisers out"
        return None

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        policy = agent.policy
        assert isinstance(policy, TransformerPolicy) and policy.shape is not None
        columns = (batch.obs, batch.action, batch.extra["to_go"], batch.extra["time"])
        obs, action, to_go, time = (column.unflatten(0, (-1, policy.context)) for column in columns)
        head = policy.read(obs, action, to_go, time, agent.generator).flatten(0, 1)
        logp = policy.shape.logp(head, batch.action)
        if logp is None:
            return batch.mean((policy.shape.mode(head) - batch.action).square().mean(-1)), {}
        return -batch.mean(logp), {"entropy": -batch.mean(logp.detach())}


RECIPES = {
    "decision_transformer": BC.but(
        replay=Windows(), actor=SequenceClone(), normalise=True, steps=100, batch_size=64, lr=1e-4, warmup=10,
        weight_decay=1e-4, max_grad_norm=0.25,
    )
}  # fmt: skip
