"""What the recipes of every loop with an optimiser share: numbers, their checks, and the optimiser they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, get_args

from torch.nn import Parameter

from partita.core.errors import UserError
from partita.core.limits import check_above, check_count, check_least
from partita.core.policy import Policy
from partita.core.recipe import Recipe
from partita.core.task import Task
from partita.loops.learner import Learner, Schedule


@dataclass(frozen=True)
class Learned(Recipe):
    """Numbers of a loop that updates a policy by gradients.

    steps: of the loop. batch_size: what is learnt from at once. lr_schedule: constant, or linear to zero; warmup: steps
    of linear warm-up. max_grad_norm: gradients are clipped to it.
    """

    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    lr_schedule: Schedule = "constant"
    warmup: int = 0
    max_grad_norm: float | None = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.positive("steps", "batch_size")
        for name in ("lr", "max_grad_norm", "adam_eps"):
            value = getattr(self, name)
            if value is not None:
                check_above(name, value)
        for name in ("warmup", "weight_decay"):
            check_least(name, getattr(self, name))
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas: expected two numbers from 0 to below 1, got {self.betas}")
        if self.lr_schedule not in get_args(Schedule):
            raise UserError(f"lr_schedule: expected one of {', '.join(get_args(Schedule))}, got {self.lr_schedule!r}")

    def positive(self, *names: str) -> None:
        """Raise UserError naming the first of these numbers that is given and below 1."""
        for name in names:
            value = getattr(self, name)
            if value is not None:
                check_count(name, value)

    def learner(self, parameters: Mapping[str, Parameter], lr: float | None = None) -> Learner:
        """The optimiser of a settled recipe for some parameters, at a rate of their own if one is given."""
        rate = lr or self.lr
        assert rate is not None and self.steps is not None
        return Learner(
            parameters, rate, self.lr_schedule, self.warmup, self.steps, self.max_grad_norm, self.weight_decay,
            self.betas, self.adam_eps,
        )  # fmt: skip

    def small(self) -> Self:
        """The same in two small steps, to see that everything fits."""
        return self.but(steps=2, batch_size=min(self.batch_size or 4, 4))

    def complain(self, task: Task, policy: Policy) -> None:
        """Refuse parts that make no sense in the task's domain, or say themselves why they cannot work."""
        for part in self.parts():
            if task.domain not in part.domains:
                raise UserError(
                    f"{part.slot}: {part.part_name()} works in {' and '.join(part.domains)}, "
                    f"and task {task.part_name()} is {task.domain}"
                )
            if (why := part.refuses(self, task)) is not None:
                raise UserError(why)
            if part.copies and policy.sharded:
                raise UserError(
                    f"--shard: {part.slot} {part.part_name()} copies the layers of the policy; leave --shard out"
                )
        if policy.domain != task.domain:
            raise UserError(f"policy: it acts in {policy.domain}, and task {task.part_name()} is {task.domain}")


@dataclass(frozen=True)
class Batched(Learned):
    """Numbers of a loop that samples a batch of problems a step and may go over it several times.

    epochs, minibatches: passes over a batch, and updates in each pass. micro_batch: trajectories evaluated at once, a
    limit on memory that does not change the update.
    """

    epochs: int = 1
    minibatches: int = 1
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.positive("epochs", "minibatches", "micro_batch")

    def small(self) -> Self:
        return super().small().but(minibatches=min(self.minibatches, 2), epochs=min(self.epochs, 2))

    def complain(self, task: Task, policy: Policy) -> None:
        super().complain(task, policy)
        for part in self.parts():
            if part.whole and self.micro_batch is not None:
                raise UserError(
                    f"micro_batch: {part.slot} {part.part_name()} looks at a whole minibatch; leave --micro-batch out"
                )


def rate_for(task: Task, policy: Any) -> float | None:
    """The learning rate where none is given; None as long as the policy is not known.

    Control: 1e-3. Language: 1e-3 below 5 million trainable parameters, 1e-5 below 100 million, 1e-6 above.
    """
    if policy is None:
        return None
    count = sum(p.numel() for p in policy.trainable().values())
    return 1e-3 if task.domain == "control" or count < 5e6 else 1e-5 if count < 1e8 else 1e-6
