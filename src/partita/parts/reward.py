"""The slot `reward`: what is an outcome worth?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.part import Part
from partita.estimators.masked import put_last


class Reward(Part):
    """Turns what the task gave (`batch.reward`, `batch.outcome`, `batch.records`) into the reward, (B, T)."""

    slot: ClassVar[str] = "reward"

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Outcome(Reward):
    """The task's own reward: of each step in control, at the last token of a response (or turn) in language."""

    scale: float = 1.0

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if getattr(task, "judged", True):
            return None
        return f"reward outcome: nobody judges new responses in task {task.part_name()}; train by dpo, for instance"

    def __call__(self, batch: Batch) -> Tensor:
        return batch.need("reward") * self.scale


@dataclass(frozen=True)
class SoftOverlong(Reward):
    """Soft overlong punishment (DAPO, Yu et al., 2025, arXiv:2503.14476, eq. 13), added to the task's reward.

        R(y) = 0                               |y| <= L - C
               ((L - C) - |y|) / C             L - C < |y| <= L
               -1                              |y| > L

    limit: L, the expected maximum length in tokens; cache: C, the width of the soft interval. The punishment
    is given at the last token, times `penalty`.
    """

    domains = ("language",)
    limit: int = 48
    cache: int = 16
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.cache <= self.limit:
            raise UserError(f"reward.cache: expected 0 < cache <= limit = {self.limit}, got {self.cache}")

    def __call__(self, batch: Batch) -> Tensor:
        reward = batch.need("reward")
        over = (batch.lengths - (self.limit - self.cache)).to(reward.dtype) / self.cache
        return reward - self.penalty * put_last(over.clamp(0, 1), batch.mask)


@dataclass(frozen=True)
class ScaledByReturn(Reward):
    """Rewards divided by the running standard deviation of the discounted return, clipped (control).

        R_t = r_t + discount * R_tm1 (1 - done_tm1),    reward = clip(r_t / sqrt(var(R) + 1e-8), -clip, clip)

    The normalisation of VecNormalize-type wrappers (Engstrom et al., 2020, arXiv:2005.12729, section 3). Rows of
    successive batches must be the same environments (rollout `segments`).
    """

    domains = ("control",)
    discount: float = 0.99
    clip: float = 10.0
    _state: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.discount <= 1:
            raise UserError(f"reward.discount: expected a number between 0 and 1, got {self.discount}")
        if not self.clip > 0:
            raise UserError(f"reward.clip: expected a number above 0, got {self.clip}")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if getattr(recipe.rollout, "steps", None) is None:
            return "reward scaled_by_return follows environments from batch to batch; use --rollout segments"
        return None

    def __call__(self, batch: Batch) -> Tensor:
        reward = batch.need("reward")
        done = batch.need("terminated") | batch.need("truncated")
        state = self._state
        if "running" not in state:
            state.update(running=torch.zeros_like(reward[:, 0]), mean=0.0, var=1.0, count=1e-4)
        running, seen = state["running"], []
        for t in range(reward.shape[1]):
            running = running * self.discount + reward[:, t]
            seen.append(running)
            running = torch.where(done[:, t], torch.zeros_like(running), running)
        values = torch.stack(seen)
        count = state["count"] + values.numel()
        share = values.numel() / count
        shift = float(values.mean()) - state["mean"]
        var = (1 - share) * state["var"] + share * float(values.var(correction=0)) + share * (1 - share) * shift**2
        state.update(running=running, mean=state["mean"] + share * shift, var=var, count=count)
        return (reward / (var + 1e-8) ** 0.5).clamp(-self.clip, self.clip)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state.clear()
        self._state.update(state)
