"""The slot `reward`: what is an outcome worth?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_above, check_least
from partita.core.part import Part
from partita.core.policy import Policy
from partita.estimators.masked import put_last
from partita.estimators.ratios import KLEstimator, kl_estimate


class Reward(Part):
    """Turns the reward so far (`batch.reward`), and what else the task gave, into the reward, (B, T).

    The slot takes several parts, a chain: the first gets what the task paid, each other what the one before it gave.
    """

    slot: ClassVar[str] = "reward"
    loop: ClassVar[str] = "on_policy"

    def start(self, policy: Policy, task: Any, generator: torch.Generator) -> None:
        """Get ready, before the first step; randomness comes from `generator`, which checkpoints hold."""

    def metrics(self) -> dict[str, float]:
        """What a practitioner watches of it, as of the last batch."""
        return {}

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Outcome(Reward):
    """The task's own reward, scaled: of each step in control, at the last token of a response (or turn) in language."""

    scale: float = 1.0

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if getattr(task, "judged", True):
            return None
        return f"reward outcome: nobody judges new responses in task {task.part_name()}; train by dpo, for instance"

    def __call__(self, batch: Batch) -> Tensor:
        return batch.need("reward") * self.scale


@dataclass(frozen=True)
class SoftOverlong(Reward):
    """Soft overlong punishment (DAPO, Yu et al., 2025, arXiv:2503.14476, eq. 13), added to the reward.

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
            raise UserError(f"reward.soft_overlong.cache: expected 0 < cache <= limit = {self.limit}, got {self.cache}")

    def __call__(self, batch: Batch) -> Tensor:
        reward = batch.need("reward")
        over = (batch.lengths - (self.limit - self.cache)).to(reward.dtype) / self.cache
        return reward - self.penalty * put_last(over.clamp(0, 1), batch.mask)


@dataclass(frozen=True)
class OutcomePart(Reward):
    """One part of what the verifier says of a response, in place of its score.

        r_T = scale * parts[name]

    at the last token. name: of the part (`Outcome.parts`), such as "proxy" where a proxy judges in the laboratory.
    """

    domains = ("language",)
    name: str = ""
    scale: float = 1.0

    def refuses(self, recipe: Any, task: Any) -> str | None:
        known = getattr(task, "parts", None)
        if self.name and (known is None or self.name in known):
            return None
        listed = f"task {task.part_name()} gives {', '.join(known)}" if known else "such as format"
        return f"reward.outcome_part.name: expected a part of what the verifier says ({listed}), got {self.name!r}"

    def __call__(self, batch: Batch) -> Tensor:
        found = [record.get("parts", {}) for record in batch.records or ()]
        if not all(self.name in parts for parts in found):
            known = ", ".join(sorted({name for parts in found for name in parts})) or "none"
            raise UserError(
                f"reward.outcome_part.name: the verifier gives no part {self.name!r} (it gives {known}); name one"
            )
        values = torch.tensor([parts[self.name] for parts in found], device=batch.mask.device)
        return put_last(self.scale * values, batch.mask)


@dataclass(frozen=True)
class KLPenalty(Reward):
    """A price on leaving the reference policy, as part of the reward (Stiennon et al., 2020, arXiv:2009.01325).

        r_t <- r_t - weight * k(log pi_old(a_t|s_t), log ref(a_t|s_t)),   k1, k2 or k3

    k1 is log pi_old - log ref, whose sum over a response is the paper's penalty. pi_old is the policy that acted.
    """

    needs = ("ref_logp",)
    weight: float = 0.05
    estimator: KLEstimator = "k1"

    def __post_init__(self) -> None:
        if self.estimator not in ("k1", "k2", "k3"):
            raise UserError(f"reward.kl_penalty.estimator: expected k1, k2 or k3, got {self.estimator!r}")
        check_least("reward.kl_penalty.weight", self.weight)

    def __call__(self, batch: Batch) -> Tensor:
        price = kl_estimate(batch.need("logp"), batch.need("ref_logp"), self.estimator)
        return batch.need("reward") - self.weight * price * batch.mask


@dataclass(frozen=True)
class RewardModel(Reward):
    """What a trained reward model thinks of a response, in place of the task's reward, at the last token.

        r(x, y) = V(x, y), the value head's output at the last token of y

    model: folder of a run of `reward_model` (or of the policy in it). Any tokenizer will do: it reads text.
    """

    domains = ("language",)
    model: str = ""
    scale: float = 1.0
    _held: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not self.model:
            return (
                "reward.reward_model.model: name the folder of a reward model; train one by partita train reward_model"
            )
        if hasattr(task, "open"):
            return f"reward reward_model judges single answers, and {task.part_name()} is played in turns"
        return None

    def start(self, policy: Policy, task: Any, generator: torch.Generator) -> None:
        from partita.policies.scorer import Scorer

        self._held["scorer"] = Scorer.load(self.model, "reward.reward_model.model", policy.device, task.stop)

    def __call__(self, batch: Batch) -> Tensor:
        return put_last(self.scale * self._held["scorer"](batch), batch.mask)


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
            raise UserError(f"reward.scaled_by_return.discount: expected a number between 0 and 1, got {self.discount}")
        check_above("reward.scaled_by_return.clip", self.clip)

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
