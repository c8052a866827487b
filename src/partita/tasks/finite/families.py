"""Families of finite processes: one for every point of a grid over a box of parameters, which nobody knows."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from partita.core.errors import UserError, nearest
from partita.core.registry import part_class
from partita.tasks.control._checks import check_between, refuse
from partita.tasks.control.gym import Setting
from partita.tasks.finite.mdp import Array, FiniteMDP
from partita.tasks.finite.task import Tabular

SHARED = ("start", "discount", "horizon", "allowed")  # what all members of a family have in common


@dataclass(frozen=True, eq=False)
class FiniteFamily:
    """K processes over the same S states and A actions, one of which is the true one, for whole episodes.

        worst(pi) = min_k start' v_k^pi

    members: the processes; transitions and rewards may differ. parameters: (K, d), where in the box each is. names: of
    the d parameters. nominal: the member that is expected.
    """

    members: tuple[FiniteMDP, ...]
    parameters: Array
    names: tuple[str, ...]
    nominal: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", np.asarray(self.parameters, float))
        if not self.members:
            raise UserError("members: expected one process or more, got none")
        wanted = (len(self.members), len(self.names))
        if self.parameters.shape != wanted:
            raise UserError(f"parameters: expected shape {wanted}, got {self.parameters.shape}")
        if not 0 <= self.nominal < len(self.members):
            raise UserError(f"nominal: expected one of {len(self.members)} members, got {self.nominal}")
        for k, member in enumerate(self.members):
            if member.reward.shape != self.first.reward.shape:
                raise UserError(f"members[{k}]: expected {self.first.size} states and {self.first.choices} actions as "
                                f"member 0 has, got {member.size} and {member.choices}")  # fmt: skip
            for name in SHARED:
                if not np.array_equal(getattr(member, name), getattr(self.first, name)):
                    raise UserError(f"members[{k}]: its {name} differs from that of member 0; only transitions and "
                                    "rewards may")  # fmt: skip

    def __len__(self) -> int:
        return len(self.members)

    @property
    def first(self) -> FiniteMDP:
        """Member 0, for all that members share."""
        return self.members[0]

    @functools.cached_property
    def union(self) -> FiniteMDP:
        """All members side by side as one sparse process of K * S states, in which none leads to another."""
        count, allowed = len(self), self.first.allowed
        return FiniteMDP(
            sparse.block_diag([sparse.csr_array(m.transitions) for m in self.members], format="csr"),
            np.concatenate([m.reward for m in self.members]), np.tile(self.first.start, count) / count,
            self.first.discount, allowed=None if allowed is None else np.tile(allowed, (count, 1)),
        )  # fmt: skip

    @property
    def mean(self) -> FiniteMDP:
        """The process whose transitions and rewards are the means of the members'."""
        transitions = sum(m.transitions for m in self.members[1:]) + self.first.transitions
        reward = np.mean([m.reward for m in self.members], 0)
        return self.first.but(transitions=transitions / len(self), reward=reward, gains=None)

    def q(self, values: Array) -> Array:
        """Q of one step in each member and then `values`, (S,) or (K, S): (K, S, A)."""
        everywhere = np.broadcast_to(values, (len(self), self.first.size)).ravel()
        return self.union.q(everywhere).reshape(len(self), *self.first.reward.shape)

    def values(self, policy: NDArray[Any]) -> Array:
        """The values of a policy, (S,) actions or (S, A) probabilities, in each member without end, (K, S)."""
        return self.union.evaluate(np.concatenate([policy] * len(self))).reshape(len(self), self.first.size)

    def worst(self, policy: NDArray[Any]) -> tuple[int, float]:
        """The member in which a policy is worth the least from the start (of several the first), and how much."""
        found = self.values(policy) @ self.first.start
        return int(found.argmin()), float(found.min())


def sampled(
    task: Any, ranges: Mapping[str, tuple[float, float]], points: int, discount: float | None = None
) -> FiniteFamily:
    """The processes of a task at a grid over the ranges of some of its fields, `points` of each, ends included.

    Nominal is the point nearest to the task's own fields, in units of the box. discount: of all, then without end.
    """
    if not ranges:
        raise UserError("task.vary: expected a field or more, got none")
    own = {f.name: getattr(task, f.name) for f in fields(task) if f.type == "float"}
    for name, (low, high) in ranges.items():
        if name not in own:
            raise UserError(f"task.vary: {task.part_name()} has no real field {name!r}; {nearest(name, own)}")
        if not -np.inf < low < high < np.inf:
            raise UserError(f"task.low, task.high: {name}: expected a lower and a higher number, got {low} and {high}")
    if points < 2:
        raise UserError(f"task.points: expected 2 or more, got {points}")
    box = np.array(list(ranges.values()))
    axes = [np.linspace(low, high, points) for low, high in ranges.values()]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(ranges))
    members = [task.but(**dict(zip(ranges, row.tolist(), strict=True))).process for row in grid]
    if discount is not None:
        members = [member.but(discount=discount, horizon=None) for member in members]
    away = (grid - [own[name] for name in ranges]) / (box[:, 1] - box[:, 0])
    return FiniteFamily(tuple(members), grid, tuple(ranges), int((away**2).sum(1).argmin()))


@dataclass(frozen=True)
class Family(Tabular):
    """A finite task of which some numbers are only known to lie in ranges.

    env: the task, by name. env_settings: its fields, at their expected values, at which it is played. vary: the fields
    that are not known, low, high: their ranges. points: of each range, in the grid of processes that `family` is.
    discount: of these, which have no end.
    """

    env: str = "gridworld"
    env_settings: dict[str, Setting] = field(default_factory=dict)
    vary: tuple[str, ...] = ("slip",)
    low: tuple[float, ...] = (0.0,)
    high: tuple[float, ...] = (0.5,)
    points: int = 11
    discount: float = 0.95

    def __post_init__(self) -> None:
        check_between(self, "discount", 0.0, 1.0)
        if not hasattr(part_class("task", self.env), "process"):
            raise refuse(self, "env", self.env, "name a task that is a finite process, such as gridworld")
        for name in ("low", "high"):
            if len(getattr(self, name)) != len(self.vary):
                raise refuse(self, name, getattr(self, name), f"give a number for each of {', '.join(self.vary)}")

    @functools.cached_property
    def expected(self) -> Any:
        """The task at its expected numbers."""
        try:
            return part_class("task", self.env)(**self.env_settings)
        except TypeError as error:
            raise refuse(self, "env_settings", self.env_settings, f"{self.env} has other fields ({error})") from None

    @functools.cached_property
    def family(self) -> FiniteFamily:
        """The processes on the grid."""
        ranges = dict(zip(self.vary, zip(self.low, self.high, strict=True), strict=True))
        return sampled(self.expected, ranges, self.points, self.discount)

    @property
    def horizon(self) -> int:
        return self.expected.horizon

    def finite(self) -> FiniteMDP:
        return self.expected.process.but(discount=self.discount, horizon=None)
