"""The slot `credit`: which step earned it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_least
from partita.core.part import Part
from partita.estimators import groups, returns

Effect = Literal["invariant", "equivariant", "neither"]


class Promises(NamedTuple):
    """What advantages do when all rewards of a batch change alike, or its trajectories change places.

        shift          A(R + c),      c a number, added to the reward of each trajectory's last step
        group_shift    A(R + c_g),    c_g a number for each group
        scale          A(k R),        k > 0
        order          A(R_pi),       pi a permutation of the trajectories

    "invariant": nothing. "equivariant": the same, that is A + c at every step on which the policy acted, A + c_g, k A,
    A_pi. "neither": something else, on some batches. What is no reward stays as it is: values of a critic or a tracker,
    what a stateful part remembers; the return of a greedy trajectory is one. `eps`, which keeps a deviation from zero,
    is left out of account.
    """

    shift: Effect = "neither"
    group_shift: Effect = "neither"
    scale: Effect = "neither"
    order: Effect = "equivariant"

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {effect}" for name, effect in self._asdict().items())


class Credit(Part):
    """Turns rewards into advantages, (B, T), zero outside `batch.mask`.

    `promises` says what a shift and a scale of rewards do to them, and a permutation of trajectories.
    """

    slot: ClassVar[str] = "credit"
    promises: ClassVar[Promises] = Promises()
    unfinished: ClassVar[bool] = False  # whether it knows trajectories that neither ended nor were truncated

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def learn(self, policy: Any, batch: Batch, generator: torch.Generator) -> None:
        """Called before the credit of a batch that was just sampled: a part with a critic of its own trains it here."""

    def metrics(self) -> dict[str, float]:
        """What to watch of a critic of its own."""
        return {}

    def returns(self, batch: Batch) -> Tensor:
        """What the critic is to learn, (B, T): by default the returns that the advantages imply, A_t + V_t."""
        return batch.need("advantage") + batch.need("value")


class GroupCredit(Credit):
    """Base of credit that compares trajectories of the same problem."""

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if recipe.group_size < 2:
            return f"credit {self.part_name()} compares trajectories of a group; use --group-size 2 or more"
        return None


def cuts(batch: Batch) -> Tensor:
    """True where nothing flows back to earlier steps: episode ends, and the last step of every row, (B, T)."""
    cut = torch.zeros_like(batch.mask)
    if batch.terminated is not None:
        cut = cut | batch.terminated
    if batch.truncated is not None:
        cut = cut | batch.truncated
    cut = cut.clone()
    cut[:, -1] = True
    return cut


def trajectory_return(batch: Batch) -> Tensor:
    """Undiscounted sum of rewards of each trajectory, (B,)."""
    return batch.need("reward").sum(1)


def spread(values: Tensor, batch: Batch) -> Tensor:
    """A number per trajectory given to each of its steps, (B, T); zero outside the mask."""
    return values[:, None] * batch.mask


@dataclass(frozen=True)
class GAE(Credit):
    """Generalised advantage estimation (Schulman et al., 2016, arXiv:1506.02438, eq. 16).

        A_t = sum_l (discount * gae_lambda)^l * delta_{t+l},   delta_t = r_t + discount * V_{t+1} - V_t

    observations: tokens that the world wrote are skipped, so that the recursion joins the decisions on either
    side (`skip`, as in verl), or are steps of value zero (`zero`, as in OpenRLHF). discount None: 0.99 in control, 1
    in language (and where no task has settled it).
    """

    needs = ("value",)
    discount: float | None = None
    gae_lambda: float = 0.95
    observations: Literal["skip", "zero"] = "skip"

    def __post_init__(self) -> None:
        check_unit("credit.discount", discount_of(self))
        check_unit("credit.gae_lambda", self.gae_lambda)
        if self.observations not in ("skip", "zero"):
            raise UserError(f"credit.observations: expected skip or zero, got {self.observations!r}")

    def settle(self, task: Any) -> GAE:
        return settle_discount(self, task)

    def __call__(self, batch: Batch) -> Tensor:
        reward, value = batch.need("reward"), batch.need("value")
        bootstrap = batch.bootstrap if batch.bootstrap is not None else torch.zeros_like(reward)
        mask = batch.mask
        if self.observations == "zero":
            mask, value = torch.ones_like(mask), value * mask
        out = returns.gae(reward, value, cuts(batch), bootstrap, discount_of(self), self.gae_lambda, mask)
        return out * batch.mask


@dataclass(frozen=True)
class MonteCarlo(Credit):
    """Reward-to-go, minus the critic's value where there is one.

        A_t = sum_{k >= t} discount^{k-t} * r_k  (- V_t)

    critic: subtract V_t. discount None: 0.99 in control, 1 in language (and where no task has settled it).
    """

    discount: float | None = None
    critic: bool = False

    def __post_init__(self) -> None:
        check_unit("credit.discount", discount_of(self))

    def settle(self, task: Any) -> MonteCarlo:
        return settle_discount(self, task)

    @property
    def promises(self) -> Promises:  # type: ignore[override]
        whole: Effect = "equivariant" if discount_of(self) == 1 else "neither"
        return Promises(whole, whole, "neither" if self.critic else "equivariant")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("value",) if self.critic else ()

    def __call__(self, batch: Batch) -> Tensor:
        reward = batch.need("reward")
        bootstrap = batch.bootstrap if batch.bootstrap is not None else torch.zeros_like(reward)
        out = returns.discounted_return(reward, cuts(batch), bootstrap, discount_of(self), batch.mask)
        return out - batch.need("value") * batch.mask if self.critic else out


@dataclass(frozen=True)
class GroupRelative(GroupCredit):
    """Group-relative advantage (GRPO, Shao et al., 2024, arXiv:2402.03300, section 4.1.2).

        A_i = (R_i - mean(R)) / (std(R) + eps)

    over the G trajectories of a problem, given to every step of trajectory i. std=False leaves the division out
    (Dr. GRPO, arXiv:2503.20783). `unbiased` divides the variance by G - 1 (TRL, verl) rather than G.
    eps: 1e-4 in TRL, 1e-6 in verl, 1e-9 in OpenRLHF.
    """

    eps: float = 1e-6
    std: bool = True
    unbiased: bool = True

    def __post_init__(self) -> None:
        check_least("credit.eps", self.eps)

    @property
    def promises(self) -> Promises:  # type: ignore[override]
        return Promises("invariant", "invariant", "invariant" if self.std else "equivariant")

    def __call__(self, batch: Batch) -> Tensor:
        total, group = trajectory_return(batch), batch.need("group")
        advantage = total - groups.group_mean(total, group)
        if self.std:
            advantage = advantage / (groups.group_std(total, group, self.unbiased) + self.eps)
        return spread(advantage, batch)


@dataclass(frozen=True)
class LeaveOneOut(GroupCredit):
    """REINFORCE leave-one-out (Ahmadian et al., 2024, arXiv:2402.14740, section 3.3; Kool et al., 2019).

        A_i = R_i - mean_{j != i} R_j

    given to every step of trajectory i.
    """

    promises = Promises("invariant", "invariant", "equivariant")

    def __call__(self, batch: Batch) -> Tensor:
        total = trajectory_return(batch)
        return spread(total - groups.leave_one_out(total, batch.need("group")), batch)


@dataclass(frozen=True)
class GreedyBaseline(Credit):
    """Return minus the return of the greedy trajectory of the same problem (ReMax, Li et al., 2024, arXiv:2310.10505).

        A_i = R_i - R(greedy)

    given to every step of trajectory i.
    """

    needs = ("greedy",)
    promises = Promises("invariant", "invariant", "equivariant")

    def __call__(self, batch: Batch) -> Tensor:
        return spread(trajectory_return(batch) - batch.need("baseline"), batch)


def discount_of(part: Any) -> float:
    """The discount of a part, 1 where nothing has settled it."""
    return 1.0 if part.discount is None else part.discount


def settle_discount(part: Any, task: Any) -> Any:
    """The part with the discount that goes with the task's domain, unless it has one."""
    return part if part.discount is not None else part.but(discount=0.99 if task.domain == "control" else 1.0)


def check_unit(name: str, value: float) -> None:
    """Refuse a number outside [0, 1]."""
    if not 0 <= value <= 1:
        raise UserError(f"{name}: expected a number between 0 and 1, got {value}")


@dataclass(frozen=True)
class Constant(Credit):
    """The same advantage for every step: the log-likelihood of whatever was done.

        A_t = value

    With demonstrations and the objective `reinforce` this is supervised fine-tuning.
    """

    promises = Promises("invariant", "invariant", "invariant")
    value: float = 1.0

    def __call__(self, batch: Batch) -> Tensor:
        return self.value * batch.mask.to(batch.need("logp").dtype)
