"""The on-policy loop: control and language are the same loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.part import Unit
from partita.core.policy import Policy
from partita.core.recipe import Recipe
from partita.core.task import Task
from partita.estimators.groups import degenerate
from partita.estimators.masked import whiten
from partita.loops.learner import Learner, Schedule
from partita.loops.run import Generators, Run
from partita.loops.update import update
from partita.parts.aggregate import Aggregate, TokenMean
from partita.parts.behaviour import Behaviour, Current
from partita.parts.credit import Credit, MonteCarlo
from partita.parts.curriculum import Curriculum, Uniform
from partita.parts.focus import AllSteps, Focus
from partita.parts.objective import Objective, Reinforce
from partita.parts.reference import Frozen, Reference
from partita.parts.regularisers import Regulariser
from partita.parts.reward import Outcome, Reward
from partita.parts.rollout import Rollout, Sample, Segments
from partita.parts.select import All, Select


@dataclass(frozen=True)
class OnPolicy(Recipe):
    """A recipe of the on-policy loop: a part for each slot, and the numbers of the loop.

    Numbers left at None are settled by the task's domain (`settle`) and written to the run's configuration.

    batch_size: problems (or environments) a step; group_size: trajectories of each.
    epochs, minibatches: passes over a batch, and updates in each pass. micro_batch: trajectories evaluated at
    once, a limit on memory that does not change the update. whiten: advantages to zero mean and unit deviation
    over the batch or each minibatch. lr_schedule: constant, or linear to zero; warmup: steps of linear warm-up.
    """

    loop: ClassVar[str] = "on_policy"
    slots: ClassVar[tuple[str, ...]] = (
        "curriculum", "behaviour", "rollout", "reward", "credit", "select", "focus", "objective", "aggregate",
        "regularisers", "reference",
    )  # fmt: skip
    many: ClassVar[tuple[str, ...]] = ("regularisers",)

    curriculum: Curriculum = Uniform()
    behaviour: Behaviour = Current()
    rollout: Rollout | None = None
    reward: Reward = Outcome()
    credit: Credit = MonteCarlo()
    select: Select = All()
    focus: Focus = AllSteps()
    objective: Objective = Reinforce()
    aggregate: Aggregate = TokenMean()
    regularisers: tuple[Regulariser, ...] = ()
    reference: Reference = Frozen()

    steps: int | None = None
    batch_size: int | None = None
    group_size: int = 1
    epochs: int = 1
    minibatches: int = 1
    micro_batch: int | None = None
    lr: float | None = None
    lr_schedule: Schedule = "constant"
    warmup: int = 0
    max_grad_norm: float | None = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    whiten: Literal["none", "batch", "minibatch"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch_size", "group_size", "epochs", "minibatches", "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: expected at least 1, got {value}")
        for name in ("lr", "max_grad_norm", "adam_eps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name}: expected a number above 0, got {value}")
        for name in ("warmup", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas: expected two numbers from 0 to below 1, got {self.betas}")
        for name, known in (("lr_schedule", get_args(Schedule)), ("whiten", ("none", "batch", "minibatch"))):
            if getattr(self, name) not in known:
                raise UserError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")

    def settle(self, task: Task, policy: Policy | None = None) -> OnPolicy:
        """The recipe with every None that the domain decides filled in; the learning rate once the policy is known.

        Language: 1e-3 below 5 million trainable parameters, 1e-5 below 100 million, 1e-6 above.
        """
        grouped = self.group_size > 1 or "greedy" in self.needs()
        rollout: Rollout = Sample() if task.domain == "language" or grouped else Segments()
        size = 32 if task.domain == "language" else 16 if grouped else 64
        rate = None
        if policy is not None:
            count = sum(p.numel() for p in policy.trainable().values())
            rate = 1e-3 if task.domain == "control" or count < 5e6 else 1e-5 if count < 1e8 else 1e-6
        defaults = {"rollout": rollout, "steps": 100, "batch_size": size, "lr": rate}
        filled = self.but(**{k: v for k, v in defaults.items() if getattr(self, k) is None})
        return filled.each(lambda part: part.settle(task))

    def check(self, task: Task, policy: Policy) -> None:
        """Refuse combinations that cannot work, saying why."""
        for part in self.parts():
            if task.domain not in part.domains:
                raise UserError(
                    f"{part.slot}: {part.part_name()} works in {' and '.join(part.domains)}, "
                    f"and task {task.part_name()} is {task.domain}"
                )
            if (why := part.refuses(self, task)) is not None:
                raise UserError(why)
            if part.whole and self.micro_batch is not None:
                raise UserError(
                    f"micro_batch: {part.slot} {part.part_name()} looks at a whole minibatch; leave --micro-batch out"
                )
        if policy.domain != task.domain:
            raise UserError(f"policy: it acts in {policy.domain}, and task {task.part_name()} is {task.domain}")
        unit, groups = self.unit(policy), self.batch_size or 1
        pieces = groups if unit == "group" else groups * self.group_size
        if unit != "step" and self.minibatches > pieces:
            what = "groups" if unit == "group" else "trajectories"
            raise UserError(f"minibatches: {self.minibatches} are more than the {pieces} {what} of a batch; lower it")

    def unit(self, policy: Policy) -> Unit:
        """What minibatches are made of: whole trajectories, or groups, as soon as something asks for them."""
        asks = {policy.unit, *(part.unit for part in self.parts())}
        return "group" if "group" in asks else "trajectory" if "trajectory" in asks else "step"


def train(recipe: OnPolicy, policy: Policy, task: Task, run: Run) -> None:
    """Train `policy` on `task` by `recipe`; all that must survive a kill is handed to `run.steps`."""
    recipe = recipe.settle(task, policy).fresh()
    recipe.check(task, policy)
    assert recipe.steps is not None and recipe.lr is not None
    learner = Learner(
        policy, recipe.lr, recipe.lr_schedule, recipe.warmup, recipe.steps, recipe.max_grad_norm,
        recipe.weight_decay, recipe.betas, recipe.adam_eps,
    )  # fmt: skip
    if "ref_logp" in recipe.needs():
        recipe.reference.start(policy)
    recipe.behaviour.start(policy)
    recipe.curriculum.start(policy, task, recipe.rollout, run.generators["curriculum"])
    remembering = {f"part.{i}.{p.part_name()}": p for i, p in enumerate(recipe.parts()) if hasattr(p, "state_dict")}
    state: dict[str, Any] = {"policy": policy, "learner": learner, "generators": run.generators, **remembering}
    for step in run.steps(recipe.steps, state):
        rate = learner.begin(step)
        batch, seen, metrics = gather(recipe, policy, task, run.generators, step)
        if len(batch):
            batch = recipe.focus.look(policy, batch, learner)
            batch = batch.but(weight=recipe.focus(batch))
            metrics |= recipe.focus.metrics(batch)
            metrics |= update(recipe, policy, learner, batch, run.generators, step)
        recipe.behaviour.update(policy, step)
        recipe.reference.update(policy, step)
        recipe.curriculum.learn(policy, seen)
        policy.observe_batch(seen)
        run.log(step, {**metrics, **recipe.curriculum.metrics(), "lr": rate}, seen)


def gather(
    recipe: OnPolicy, policy: Policy, task: Task, rng: Generators, step: int
) -> tuple[Batch, Batch, dict[str, float]]:
    """A batch to learn from, all that was sampled for it, and what to watch of it.

    Samples again, up to `select.rounds` times, while `select` leaves fewer trajectories than asked for.
    """
    assert recipe.rollout is not None and recipe.batch_size is not None
    needs = recipe.needs()
    wanted = recipe.batch_size * recipe.group_size
    kept: list[Batch] = []
    seen: list[Batch] = []
    failed = 0
    recipe.rollout.begin(step)
    for attempt in range(recipe.select.rounds):
        problems = recipe.curriculum.sample(task, recipe.batch_size, rng["curriculum"])
        with recipe.behaviour.acting(policy, step):
            batch = recipe.rollout(policy, task, problems, recipe.group_size, rng["rollout"], needs)
        if batch.failed is not None:  # the world broke: nothing is known of what these actions were worth
            failed += int(batch.failed.sum())
            batch = batch[~batch.failed].but(failed=None)
        if age := recipe.behaviour.age(step):
            batch = batch.but(age=torch.full((len(batch),), age, device=batch.mask.device))
        if attempt:
            batch = batch.but(group=batch.need("group") + attempt * recipe.batch_size)
        batch = recipe.curriculum.annotate(batch)
        if ("value" in needs and batch.value is None) or ("entropy" in needs and batch.entropy is None):
            with torch.no_grad():
                out = policy.evaluate(batch, entropy="entropy" in needs)
            batch = batch.but(value=out.value, entropy=out.entropy if "entropy" in needs else batch.entropy)
        batch = batch.but(reward=recipe.reward(batch))
        recipe.credit.learn(policy, batch, rng["credit"])
        batch = batch.but(advantage=recipe.credit(batch))
        if batch.value is not None:
            batch = batch.but(returns=recipe.credit.returns(batch))
        keep = recipe.select(batch)
        seen.append(batch)
        kept.append(batch if bool(keep.all()) else batch[keep])
        if sum(map(len, kept)) >= wanted:
            break
    batch, everything = Batch.cat(kept), Batch.cat(seen)
    if len(kept) > 1:  # what one rollout gave stays whole, though it may be more than was asked for
        batch = batch[:wanted]
    metrics = {**recipe.rollout.metrics(everything), **recipe.credit.metrics()}
    if failed:
        metrics["failed"] = float(failed)
    if recipe.group_size > 1:
        equal = degenerate(everything.need("reward").sum(1), everything.need("group"))
        metrics["degenerate"] = float(equal.float().mean())
    if recipe.reward != Outcome():
        metrics["reward"] = float(everything.need("reward").sum(1).mean())
    if len(batch) < len(everything):
        metrics |= {"kept": len(batch) / len(everything), "rounds": float(len(kept))}
    batch = recipe.behaviour.mix(batch, step, rng["behaviour"])
    if len(batch) and batch.age is not None:
        metrics["staleness"] = float(batch.age.float().mean())
    if len(batch) and "ref_logp" in needs:
        batch = batch.but(ref_logp=recipe.reference.logp(policy, batch))
    if len(batch) and recipe.whiten == "batch":
        batch = batch.but(advantage=whiten(batch.need("advantage"), batch.mask))
    return batch, everything, metrics
