"""The slot `behaviour`: whose trajectories are learnt from?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_count, check_least
from partita.core.part import Part
from partita.core.policy import Policy


class Behaviour(Part):
    """Which policy samples, and which trajectories enter an update beside the fresh ones.

    `batch.logp` is always that of the policy that sampled, so that importance ratios are exact; `batch.age` counts the
    updates that the policy has had since.
    """

    slot: ClassVar[str] = "behaviour"

    def start(self, policy: Policy) -> None:
        """Take the policy as it is before the first step."""

    def acting(self, policy: Policy, step: int) -> AbstractContextManager[Any]:
        """Within it, `policy` has the weights that sample for the `step`-th update (counted from 1)."""
        return nullcontext()

    def collect(self, roll: Callable[[], Batch], policy: Policy, step: int, generator: torch.Generator) -> Batch:
        """The fresh batch of the `step`-th update: what `roll` samples with the weights that `policy` has then."""
        with self.acting(policy, step):
            return roll()

    def age(self, step: int) -> int:
        """Updates since the weights that sample for the `step`-th update were current."""
        return 0

    def mix(self, batch: Batch, step: int, generator: torch.Generator) -> Batch:
        """What to learn from, given the fresh batch."""
        return batch

    @property
    def relabels(self) -> bool:
        """Whether all that is learnt from is taken for the policy's own: the loop then makes the log-probabilities,
        values and advantages of what `mix` gave anew, with the policy as it is before the update."""
        return False

    def watch(self, policy: Policy, batch: Batch) -> dict[str, float]:
        """What to watch of the batch that is learnt from, before the update."""
        return {}

    def update(self, policy: Policy, step: int) -> None:
        """Follow the policy after the `step`-th update."""


@dataclass(frozen=True)
class Current(Behaviour):
    """The policy as it is now, and nothing else."""


@dataclass(frozen=True)
class Stale(Behaviour):
    """An older policy, as when sampling and learning run apart (asynchronous or fully offline training).

        step k samples with the weights after update v_k = refresh * floor(max(k - 1 - lag, 0) / refresh)

    lag: updates by which the sampler is behind. refresh: updates between two renewals of the sampler's weights (a
    number of at least the run's steps: the policy as it was before training samples everything). Keeps
    1 + ceil(lag / refresh) copies of the trainable weights.
    """

    lag: int = 0
    refresh: int = 8
    _kept: dict[str, dict[str, Tensor]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_least("behaviour.lag", self.lag)
        check_count("behaviour.refresh", self.refresh)

    def version(self, step: int) -> int:
        """The number of updates that the weights which sample for step `step` have had."""
        return self.refresh * (max(step - 1 - self.lag, 0) // self.refresh)

    def age(self, step: int) -> int:
        return step - 1 - self.version(step)

    def start(self, policy: Policy) -> None:
        self._kept.clear()
        self._keep(policy, 0)

    def _keep(self, policy: Policy, version: int) -> None:
        self._kept[str(version)] = {n: w.detach().clone() for n, w in policy.state_dict().items()}

    def acting(self, policy: Policy, step: int) -> AbstractContextManager[Any]:
        if self.age(step) == 0:
            return nullcontext()
        weights = self._kept[str(self.version(step))]
        weights.update(policy.placed(weights))
        return policy.using(weights)

    def update(self, policy: Policy, step: int) -> None:
        if step % self.refresh == 0:
            self._keep(policy, step)
        for version in [v for v in self._kept if int(v) < self.version(step + 1)]:
            del self._kept[version]

    def state_dict(self) -> dict[str, Any]:
        return {version: dict(weights) for version, weights in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._kept.clear()
        self._kept.update({version: dict(weights) for version, weights in state.items()})


@dataclass(frozen=True)
class Replayed(Behaviour):
    """Fresh trajectories and, beside them, groups drawn from the last few batches.

        batch = fresh + replayed,    |replayed| = share / (1 - share) * |fresh|

    share: of the update's trajectories that are replayed. keep: batches kept. Groups are drawn whole and without
    replacement; advantages are those given when they were fresh. Until something is kept, updates are smaller.
    """

    share: float = 0.5
    keep: int = 4
    _past: list[Batch] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UserError(f"behaviour.share: expected a number from 0 to below 1, got {self.share}")
        check_count("behaviour.keep", self.keep)

    def mix(self, batch: Batch, step: int, generator: torch.Generator) -> Batch:
        fresh = batch.but(age=torch.zeros(len(batch), dtype=torch.int64, device=batch.mask.device))
        groups = [(i, g) for i, past in enumerate(self._past) for g in past.need("group").unique().tolist()]
        rows: list[Batch] = [fresh]
        wanted = round(self.share / (1 - self.share) * len(fresh))
        above = int(fresh.need("group").max()) + 1 if len(fresh) else 0
        for k in torch.randperm(len(groups), generator=generator).tolist():
            if sum(map(len, rows[1:])) >= wanted:
                break
            place, group = groups[k]
            drawn = self._past[place].to(fresh.mask.device)
            drawn = drawn[drawn.need("group") == group]
            rows.append(drawn.but(group=torch.full_like(drawn.need("group"), above + len(rows) - 1)))
        for i, past in enumerate(self._past):
            self._past[i] = past.but(age=past.need("age") + 1)
        if len(fresh):
            self._past.append(fresh.but(age=fresh.need("age") + 1))
        del self._past[: -self.keep]
        return Batch.cat(rows)

    def state_dict(self) -> dict[str, Any]:
        return {"past": [past.state_dict() for past in self._past]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._past[:] = [Batch.from_state(past) for past in state["past"]]
