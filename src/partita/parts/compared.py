"""Rewards from comparisons of trajectories: who is asked, what is remembered, and a reward fitted to the answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot, pad

from partita.core.batch import Batch
from partita.core.errors import NonFinite, UserError
from partita.core.limits import check_above, check_count, check_least
from partita.core.policy import Policy
from partita.core.spaces import Discrete, MultiDiscrete
from partita.estimators.games import chance
from partita.parts.reward import Reward
from partita.policies.adam import Adam
from partita.policies.mlp import Mlp


@dataclass(frozen=True)
class Compared(Reward):
    """Base of rewards that come from comparisons of trajectories with each other and with the last `queue` ones.

    Who prefers is the task: `prefer` in language, among the responses to a prompt; in control `seen` and `compare`, if
    it has them, of whole trajectories. Otherwise it is the return, with logistic noise of temperature `noise`.
    labels: "drawn" asks once for each pair, "soft" gives the probability. flips: share of answers turned round.
    """

    abstract = True
    queue: int | None = None
    labels: Literal["drawn", "soft"] = "drawn"
    noise: float = 0.0
    flips: float = 0.0
    _live: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        name = f"reward.{self.part_name()}"
        if self.queue is not None and self.queue < 0:
            raise UserError(f"{name}.queue: expected 0 trajectories or more, got {self.queue}")
        if self.labels not in ("drawn", "soft"):
            raise UserError(f"{name}.labels: expected drawn or soft, got {self.labels!r}")
        check_least(f"{name}.noise", self.noise)
        if not 0 <= self.flips <= 1:
            raise UserError(f"{name}.flips: expected a share from 0 to 1, got {self.flips}")

    def settle(self, task: Any) -> Any:
        if self.queue is not None:
            return self
        return self.but(queue=256 if task.domain == "control" else 0)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        name = f"reward.{self.part_name()}"
        if task.domain == "language":
            if hasattr(task, "open") or not (hasattr(task, "prefer") and getattr(task, "judged", True)):
                return f"{name}: nobody compares new responses in task {task.part_name()}; use --task lab, for instance"
            if recipe.group_size < 2:
                return f"{name}: compares the responses to a prompt; use --group-size 2 or more"
            if self.queue:
                return f"{name}.queue: responses are compared with others to their prompt; leave it out"
        elif getattr(recipe.rollout, "steps", None) is not None:
            return f"{name}: compares whole trajectories, and segments have parts of them; use --rollout sample"
        elif (recipe.batch_size or 2) * recipe.group_size < 2 and not self.queue:
            return f"{name}: a single trajectory has nobody to be compared with; use --batch-size 2 or more"
        if self.noise and (task.domain == "language" or hasattr(task, "compare")):
            return f"{name}.noise: task {task.part_name()} prefers by itself; use --task.noise where it has that"
        return None

    def start(self, policy: Policy, task: Any, generator: torch.Generator) -> None:
        self._live.update(task=task, generator=generator, queries=0)

    def answers(self, preference: Tensor) -> Tensor:
        """Answers of a rater who prefers with these probabilities, (A, M): 0 or 1, or their means."""
        if self.labels == "soft":
            return preference + self.flips * (1 - 2 * preference)
        draw = torch.rand((2, *preference.shape), generator=self._live["generator"], dtype=torch.float64)
        draw = draw.to(preference.device)
        return ((draw[0] < preference) ^ (draw[1] < self.flips)).double()

    def wins(self, chances: Tensor, before: int = 0) -> Tensor:
        """Answers among A trajectories, of which each pair is asked for once, and to `before` others in front: (A, M).

        chances: (A, before + A). A trajectory ties with itself. The queries are counted.
        """
        count = len(chances)
        given = self.answers(chances)
        upper = given[:, before:].triu(1)
        among = upper + (1 - upper.T).tril(-1) + 0.5 * torch.eye(count, dtype=given.dtype, device=given.device)
        self._live["queries"] += count * before + count * (count - 1) // 2
        return torch.cat((given[:, :before], among), 1)

    def seen(self, batch: Batch) -> Tensor:
        """What the rater sees of each trajectory, (B, F): its return, where the task does not say."""
        task = self._live["task"]
        return task.seen(batch) if hasattr(task, "compare") else batch.need("outcome")[:, None]

    def met(self, batch: Batch) -> Tensor:
        """Answers of the batch against the queue and itself, (B, Q + B), oldest first; then the queue moves on."""
        task, mine = self._live["task"], self.seen(batch)
        others = torch.cat((self._live.get("queue", mine[:0]).to(mine.device), mine))
        if hasattr(task, "compare"):
            chances = task.compare(mine, others)
        else:
            chances = chance(mine.double() - others.double().T, self.noise)
        self._live["queue"] = others[max(0, len(others) - (self.queue or 0)) :]
        return self.wins(chances, len(others) - len(mine))

    def metrics(self) -> dict[str, float]:
        """Comparisons that were asked for since the first step."""
        return {"queries": float(self._live["queries"])}

    def state_dict(self) -> dict[str, Any]:
        return {name: self._live[name] for name in ("queries", "queue") if name in self._live}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._live.update(state)


@dataclass(frozen=True)
class FittedReward(Compared):
    """A reward of single steps that explains the comparisons so far (iterated reward modelling).

        min_r  - mean_ij [a_ij log s(R_i - R_j) + (1 - a_ij) log s(R_j - R_i)],    R_i = sum_t r(s_t, a_t)

    (Christiano et al., 2017, arXiv:1706.03741, section 2.2), a_ij the answer for the pair. Fitted before every batch is
    rewarded, on all comparisons among it and the last `queue` trajectories (None: 256), by `updates` steps of Adam on
    `pairs` of them each, from where the last fit ended. r is a multilayer perceptron of observation and action, and
    stands in place of the task's reward; scaled: R is brought to mean 0 and deviation 1 over those trajectories, an
    equal part at each step. The other fields as in `Compared`.
    """

    domains = ("control",)
    hidden: tuple[int, ...] = (64, 64)
    updates: int = 20
    pairs: int = 64
    fit_lr: float = 1e-3
    scaled: bool = True

    KEPT: ClassVar[tuple[str, ...]] = ("steps", "acted", "answers")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("updates", "pairs"):
            check_count(f"reward.fitted_reward.{name}", getattr(self, name))
        check_above("reward.fitted_reward.fit_lr", self.fit_lr)
        if not self.hidden or min(self.hidden) < 1:
            raise UserError(f"reward.fitted_reward.hidden: expected at least one positive width, got {self.hidden}")

    def start(self, policy: Policy, task: Any, generator: torch.Generator) -> None:
        super().start(policy, task, generator)
        space = task.action_space
        if isinstance(space, MultiDiscrete):
            action = len(space.choices)
        else:
            action = space.n if isinstance(space, Discrete) else space.size
        width = math.prod(task.observation_shape) + action
        net = Mlp([width, *self.hidden, 1], 1.0, "tanh", generator).to(policy.device)
        self._live.update(net=net, adam=Adam(dict(net.named_parameters()), self.fit_lr, 1.0))

    def steps(self, batch: Batch) -> Tensor:
        """Observation and action of each step, as the network reads them, (B, H, F): zeros after the end."""
        task = self._live["task"]
        obs, action = batch.inputs["obs"].flatten(2), batch.inputs["action"]
        if isinstance(task.action_space, Discrete):
            action = one_hot(action, task.action_space.n)
        read = torch.cat((obs.float(), action.float()), 2) * batch.mask[..., None]
        return pad(read, (0, 0, 0, task.horizon - read.shape[1]))

    def __call__(self, batch: Batch) -> Tensor:
        live = self._live
        now = self.steps(batch)
        acted = pad(batch.mask, (0, now.shape[1] - batch.mask.shape[1]))
        won = self.met(batch)
        before = won.shape[1] - len(batch)
        table = won.new_empty((won.shape[1], won.shape[1]))
        if before:
            table[:before, :before] = live["answers"]
            now, acted = torch.cat((live["steps"], now)), torch.cat((live["acted"], acted))
        table[before:], table[:before, before:] = won, 1 - won[:, :before].T
        live["loss"] = self._fit(now, acted, table)
        with torch.no_grad():
            each = live["net"](now)[..., 0] * acted
        if self.scaled:
            each = standardised(each, acted)
        cut = max(0, len(now) - (self.queue or 0))
        live.update(steps=now[cut:], acted=acted[cut:], answers=table[cut:, cut:])
        return each[before:, : batch.mask.shape[1]]

    def _fit(self, steps: Tensor, acted: Tensor, answers: Tensor) -> float:
        """Some steps on random pairs of all trajectories; the mean loss."""
        first, second = torch.triu_indices(len(steps), len(steps), 1)
        if not len(first):
            return math.log(2)
        total = 0.0
        for _ in range(self.updates):
            drawn = torch.randint(len(first), (self.pairs,), generator=self._live["generator"])
            i, j = first[drawn], second[drawn]
            better, worse = ((self._live["net"](steps[k])[..., 0] * acted[k]).sum(1) for k in (i, j))
            margin, answer = better - worse, answers[i, j].to(better.dtype)
            loss = -(answer * logsigmoid(margin) + (1 - answer) * logsigmoid(-margin)).mean()
            loss.backward()
            if not bool(self._live["adam"].apply().isfinite()):
                raise NonFinite("reward: the gradient of fitted_reward is not finite; lower its fit_lr; stopped")
            total += float(loss.detach())
        return total / self.updates

    def metrics(self) -> dict[str, float]:
        return {**super().metrics(), "fit_loss": self._live.get("loss", math.log(2))}

    def state_dict(self) -> dict[str, Any]:
        live = self._live
        held = {name: live[name] for name in (*self.KEPT, "loss") if name in live}
        return {**super().state_dict(), **held, "net": live["net"].state_dict(), "adam": live["adam"].state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        state = dict(state)
        self._live["net"].load_state_dict(state.pop("net"))
        self._live["adam"].load_state_dict(state.pop("adam"))
        super().load_state_dict(state)


def standardised(reward: Tensor, acted: Tensor) -> Tensor:
    """Rewards (B, T) whose sums over trajectories have mean 0 and deviation 1, shifted by as much in all steps of one.

    r_t <- (r_t - mean(R) / |y|) / std(R),    R = sum_t r_t
    """
    total = reward.sum(1)
    deviation = total.std() if len(total) > 1 else total.new_ones(())
    shifted = reward - (total.mean() / acted.sum(1).clamp(min=1))[:, None] * acted
    return shifted / deviation.clamp(min=1e-6)
