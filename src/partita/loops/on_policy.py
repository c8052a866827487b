"""The on-policy loop: control and language are the same loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_count
from partita.core.part import Unit
from partita.core.policy import Policy
from partita.core.task import Task
from partita.estimators.groups import degenerate
from partita.estimators.masked import whiten
from partita.loops.descent import Descent
from partita.loops.learned import Batched, rate_for
from partita.loops.run import Generators, Run
from partita.loops.update import update
from partita.parts.aggregate import Aggregate, TokenMean
from partita.parts.behaviour import Behaviour, Current
from partita.parts.credit import Credit, MonteCarlo
from partita.parts.curriculum import Curriculum, Uniform
from partita.parts.focus import AllSteps, Focus
from partita.parts.objective import Objective, Reinforce
from partita.parts.optimiser import Adam, Optimiser
from partita.parts.reference import Frozen, Reference
from partita.parts.regularisers import Regulariser
from partita.parts.reward import Outcome, Reward
from partita.parts.rollout import Rollout, Sample, Segments
from partita.parts.select import All, Select


@dataclass(frozen=True)
class OnPolicy(Batched):
    """A recipe of the on-policy loop: a part for each slot, and the numbers of the loop.

    Numbers left at None are settled by the task's domain (`settle`) and written to the run's configuration; those that
    other loops have too are in `Batched`. batch_size: problems (or environments) a step; group_size:
    trajectories of each. whiten: advantages to zero mean and unit deviation over the batch or each minibatch. compile:
    updates, and steps of native environments, run as compiled programs (control); making them takes some 20 s and a
    C++ compiler.
    """

    loop: ClassVar[str] = "on_policy"
    slots: ClassVar[tuple[str, ...]] = (
        "curriculum", "behaviour", "rollout", "reward", "credit", "select", "focus", "objective", "aggregate",
        "regularisers", "reference", "optimiser",
    )  # fmt: skip
    many: ClassVar[tuple[str, ...]] = ("reward", "regularisers")

    curriculum: Curriculum = Uniform()
    behaviour: Behaviour = Current()
    rollout: Rollout | None = None
    reward: tuple[Reward, ...] = (Outcome(),)
    credit: Credit = MonteCarlo()
    select: Select = All()
    focus: Focus = AllSteps()
    objective: Objective = Reinforce()
    aggregate: Aggregate = TokenMean()
    regularisers: tuple[Regulariser, ...] = ()
    reference: Reference = Frozen()
    optimiser: Optimiser = Adam()

    group_size: int = 1
    compile: bool = False
    whiten: Literal["none", "batch", "minibatch"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("group_size", self.group_size)
        if self.whiten not in ("none", "batch", "minibatch"):
            raise UserError(f"whiten: expected one of none, batch, minibatch, got {self.whiten!r}")

    @property
    def taught(self) -> tuple[Any, type[Any]] | None:
        """A part that teaches one kind of policy alone, and the settings of that kind."""
        return next(((part, part.teaches) for part in self.parts() if part.teaches is not None), None)

    @property
    def policies(self) -> Mapping[str, str]:  # type: ignore[override]
        """What acts unless another policy is asked for."""
        if self.taught is None:
            return Batched.policies
        kind = self.taught[1]
        return {**Batched.policies, **dict.fromkeys(kind.domains, kind.part_name())}

    def settle(self, task: Task, policy: Policy | None = None) -> OnPolicy:
        """The recipe with every None that the domain decides filled in; the learning rate once the policy is known."""
        grouped = self.group_size > 1 or "greedy" in self.needs()
        rollout: Rollout = Sample() if task.domain == "language" or grouped else Segments()
        size = 32 if task.domain == "language" else 16 if grouped else 64
        defaults = {"rollout": rollout, "steps": 100, "batch_size": size, "lr": rate_for(task, policy)}
        filled = self.but(**{k: v for k, v in defaults.items() if getattr(self, k) is None})
        if self.compile and isinstance(filled.rollout, Segments):
            filled = filled.but(rollout=replace(filled.rollout, compile=True))
        return filled.each(lambda part: part.settle(task))

    def check(self, task: Task, policy: Policy) -> None:
        """Refuse combinations that cannot work, saying why."""
        self.complain(task, policy)
        if self.taught is not None:
            part, kind = self.taught
            if not isinstance(getattr(policy, "settings", None), kind):
                raise UserError(
                    f"policy: {part.slot} {part.part_name()} teaches a {kind.part_name()} policy; "
                    f"use --policy {kind.part_name()}"
                )
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
    assert recipe.steps is not None
    learner = recipe.learner(policy.trainable())
    descend = Descent(recipe, policy, learner)
    if "ref_logp" in recipe.needs():
        recipe.reference.start(policy)
    for part in recipe.reward:
        part.start(policy, task, run.generators["reward"])
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
            metrics |= update(recipe, policy, descend, batch, run.generators, step)
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
        roll = partial(recipe.rollout, policy, task, problems, recipe.group_size, rng["rollout"], needs)
        batch = recipe.behaviour.collect(roll, policy, step, rng["behaviour"])
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
        if any("ref_logp" in part.needs for part in recipe.reward):
            batch = batch.but(ref_logp=recipe.reference.logp(policy, batch))
        for part in recipe.reward:
            batch = batch.but(reward=part(batch))
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
    for part in recipe.reward:
        metrics |= part.metrics()
    if failed:
        metrics["failed"] = float(failed)
    if recipe.group_size > 1:
        equal = degenerate(everything.need("reward").sum(1), everything.need("group"))
        metrics["degenerate"] = float(equal.float().mean())
    if recipe.reward != (Outcome(),):
        metrics["reward"] = float(everything.need("reward").sum(1).mean())
    if len(batch) < len(everything):
        metrics |= {"kept": len(batch) / len(everything), "rounds": float(len(kept))}
    batch = recipe.behaviour.mix(batch, step, rng["behaviour"])
    if len(batch):
        batch = relabelled(recipe, policy, batch) if recipe.behaviour.relabels else batch
        metrics |= recipe.behaviour.watch(policy, batch)
    if len(batch) and batch.age is not None:
        metrics["staleness"] = float(batch.age.float().mean())
    if len(batch) and "ref_logp" in needs and batch.ref_logp is None:
        batch = batch.but(ref_logp=recipe.reference.logp(policy, batch))
    if len(batch) and recipe.whiten == "batch":
        batch = batch.but(advantage=whiten(batch.need("advantage"), batch.mask))
    return batch, everything, metrics


def relabelled(recipe: OnPolicy, policy: Policy, batch: Batch) -> Batch:
    """The batch as if the policy had just sampled it: log-probabilities, values, advantages and returns as of now."""
    with torch.no_grad():
        out = policy.evaluate(batch, entropy=batch.entropy is not None)
    batch = batch.but(logp=out.logp, value=out.value, entropy=out.entropy)
    batch = batch.but(advantage=recipe.credit(batch))
    return batch if batch.value is None else batch.but(returns=recipe.credit.returns(batch))
