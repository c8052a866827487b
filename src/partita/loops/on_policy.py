"""The on-policy loop: control and language are the same loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import NonFinite, UserError
from partita.core.policy import Policy
from partita.core.recipe import Recipe
from partita.core.task import Task
from partita.estimators.masked import masked_mean, whiten
from partita.loops.learner import Learner, Schedule
from partita.loops.run import Generators, Run
from partita.parts.aggregate import Aggregate, TokenMean
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
        "curriculum", "rollout", "reward", "credit", "select", "focus", "objective", "aggregate", "regularisers",
        "reference",
    )  # fmt: skip
    many: ClassVar[tuple[str, ...]] = ("regularisers",)

    curriculum: Curriculum = Uniform()
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
        if policy.domain != task.domain:
            raise UserError(f"policy: it acts in {policy.domain}, and task {task.part_name()} is {task.domain}")
        trajectories = (self.batch_size or 1) * self.group_size
        if self.unit(policy) == "trajectory" and self.minibatches > trajectories:
            raise UserError(
                f"minibatches: {self.minibatches} are more than the {trajectories} trajectories of a batch; lower it"
            )

    def unit(self, policy: Policy) -> Literal["step", "trajectory"]:
        """What minibatches are made of: whole trajectories as soon as a part or the policy asks for them."""
        asks = [policy.unit, *(part.unit for part in self.parts())]
        return "trajectory" if "trajectory" in asks else "step"


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
    remembering = {f"part.{i}.{p.part_name()}": p for i, p in enumerate(recipe.parts()) if hasattr(p, "state_dict")}
    state: dict[str, Any] = {"policy": policy, "learner": learner, "generators": run.generators, **remembering}
    for step in run.steps(recipe.steps, state):
        rate = learner.begin(step)
        batch, seen, metrics = gather(recipe, policy, task, run.generators)
        if len(batch):
            batch = batch.but(weight=recipe.focus(batch))
            metrics |= update(recipe, policy, learner, batch, run.generators, step)
        recipe.reference.update(policy, step)
        recipe.curriculum.update(seen)
        policy.observe_batch(seen)
        run.log(step, {**metrics, "lr": rate}, seen)


def gather(recipe: OnPolicy, policy: Policy, task: Task, rng: Generators) -> tuple[Batch, Batch, dict[str, float]]:
    """A batch to learn from, all that was sampled for it, and what to watch of it.

    Samples again, up to `select.rounds` times, while `select` leaves fewer trajectories than asked for.
    """
    assert recipe.rollout is not None and recipe.batch_size is not None
    needs = recipe.needs()
    wanted = recipe.batch_size * recipe.group_size
    kept: list[Batch] = []
    seen: list[Batch] = []
    for attempt in range(recipe.select.rounds):
        problems = recipe.curriculum.sample(task, recipe.batch_size, rng["curriculum"])
        batch = recipe.rollout(policy, task, problems, recipe.group_size, rng["rollout"], needs)
        if attempt:
            batch = batch.but(group=batch.need("group") + attempt * recipe.batch_size)
        if ("value" in needs and batch.value is None) or ("entropy" in needs and batch.entropy is None):
            with torch.no_grad():
                out = policy.evaluate(batch, entropy="entropy" in needs)
            batch = batch.but(value=out.value, entropy=out.entropy if "entropy" in needs else batch.entropy)
        batch = batch.but(reward=recipe.reward(batch))
        batch = batch.but(advantage=recipe.credit(batch))
        if batch.value is not None:
            batch = batch.but(returns=batch.need("advantage") + batch.value)
        keep = recipe.select(batch)
        seen.append(batch)
        kept.append(batch if bool(keep.all()) else batch[keep])
        if sum(map(len, kept)) >= wanted:
            break
    batch, everything = Batch.cat(kept)[:wanted], Batch.cat(seen)
    metrics = recipe.rollout.metrics(everything)
    if len(batch) < len(everything):
        metrics |= {"kept": len(batch) / len(everything), "rounds": float(len(kept))}
    if len(batch) and "ref_logp" in needs:
        batch = batch.but(ref_logp=recipe.reference.logp(policy, batch))
    if len(batch) and recipe.whiten == "batch":
        batch = batch.but(advantage=whiten(batch.need("advantage"), batch.mask))
    return batch, everything, metrics


def minibatches(recipe: OnPolicy, policy: Policy, batch: Batch, rng: Generators) -> Iterator[tuple[Batch, bool]]:
    """Shuffled minibatches of every epoch, and whether each is the last of its epoch."""
    rows = batch.but(reward=None, terminated=None, truncated=None, bootstrap=None)  # `credit` has had its use of them
    rows = rows.steps() if recipe.unit(policy) == "step" else rows
    count = min(recipe.minibatches, len(rows))
    edges = [round(i * len(rows) / count) for i in range(count + 1)]
    for _ in range(recipe.epochs):
        shuffled = rows if count == 1 else rows[torch.randperm(len(rows), generator=rng["minibatch"])]
        for i in range(count):
            yield (shuffled if count == 1 else shuffled[edges[i] : edges[i + 1]]), i == count - 1


def update(
    recipe: OnPolicy, policy: Policy, learner: Learner, batch: Batch, rng: Generators, step: int
) -> dict[str, float]:
    """Every epoch and minibatch of one step; returns the averages of what to watch."""
    watched: list[dict[str, Tensor]] = []
    given = batch.need("reward") + batch.need("logp") + batch.need("advantage") + batch.need("weight")
    if not bool(given.isfinite().all()):  # before the first minibatch, so that no weight moves
        raise diagnose(recipe, policy, batch, step)
    for minibatch, last in minibatches(recipe, policy, batch, rng):
        if recipe.whiten == "minibatch":
            minibatch = minibatch.but(advantage=whiten(minibatch.need("advantage"), minibatch.mask))
        weights = recipe.aggregate(minibatch)
        loss = torch.zeros((), device=weights.device)
        seen: dict[str, Tensor] = {}
        steps = minibatch.mask.sum().clamp(min=1)
        for micro, share in micro_batches(recipe, minibatch, weights):
            part, notes = losses(recipe, policy, micro, share, len(micro) / len(minibatch), watch=last)
            part.backward()
            loss = loss + part.detach()
            seen |= {n: seen.get(n, 0.0) + v * (micro.mask.sum() / steps) for n, v in notes.items()}
        if not bool(loss.isfinite()) or not bool((norm := learner.apply()).isfinite()):
            raise diagnose(recipe, policy, minibatch, step)
        if last:
            watched.append({"loss": loss, "grad_norm": norm, **seen})
    if batch.value is not None:
        watched[-1] |= {"explained_variance": explained_variance(batch)}
    names = {name for row in watched for name in row}
    means = {n: torch.stack([row[n] for row in watched if n in row]).mean() for n in sorted(names)}
    return dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True)) if means else {}


def micro_batches(recipe: OnPolicy, minibatch: Batch, weights: Tensor) -> Iterator[tuple[Batch, Tensor]]:
    """The minibatch in pieces of at most `micro_batch` trajectories of similar length, with their weights."""
    size = recipe.micro_batch
    if size is None or size >= len(minibatch):
        yield minibatch, weights
        return
    order = minibatch.lengths.argsort(stable=True)
    for rows in order.split(size):
        yield minibatch[rows], weights[rows]


def losses(
    recipe: OnPolicy, policy: Policy, batch: Batch, weights: Tensor, share: float, watch: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a micro-batch, and what to watch of it.

    loss = sum(aggregate * (focus * objective + sum of regularisers))
    """
    out = policy.evaluate(batch, entropy="logp_entropy" in recipe.needs())
    per_step = recipe.objective(out, batch) * batch.need("weight")
    whole = torch.zeros((), device=weights.device)
    for regulariser in recipe.regularisers:
        extra = regulariser(out, batch)
        if extra.dim():
            per_step = per_step + extra
        else:
            whole = whole + extra * share
    loss = (weights * per_step).sum() + whole
    if not watch:
        return loss, {}
    with torch.no_grad():
        drift = batch.need("logp") - out.logp.detach()
        seen = {"kl": masked_mean(torch.expm1(-drift) + drift, batch.mask), **recipe.objective.metrics(out, batch)}
        entropy = out.entropy if out.entropy is not None else batch.entropy
        if entropy is not None:
            seen["entropy"] = masked_mean(entropy.detach(), batch.mask)
        if batch.ref_logp is not None:
            seen["ref_kl"] = masked_mean(out.logp.detach() - batch.ref_logp, batch.mask)
    return loss, seen


def explained_variance(batch: Batch) -> Tensor:
    """1 - Var(G - V) / Var(G) over the steps of the batch; 1 is a perfect critic, 0 a constant one. Scalar."""
    returns, value = batch.need("returns")[batch.mask], batch.need("value")[batch.mask]
    return 1 - (returns - value).var() / returns.var().clamp(min=1e-12)


def diagnose(recipe: OnPolicy, policy: Policy, batch: Batch, step: int) -> NonFinite:
    """The error for a loss or gradient that is not finite: the first tensor along the step that is to blame."""
    weights = recipe.aggregate(batch)
    suspects: list[tuple[str, str, Tensor | None]] = [
        ("reward", "reward", batch.reward),
        ("rollout", "logp", batch.logp),
        ("policy", "value", batch.value),
        ("credit", "advantage", batch.advantage),
        ("focus", "weight", batch.weight),
        ("reference", "ref_logp", batch.ref_logp),
        ("aggregate", "weights", weights),
    ]
    if (error := blame(suspects, step)) is not None:
        return error
    for micro, _ in micro_batches(recipe, batch, weights):
        with torch.no_grad():
            out = policy.evaluate(micro, entropy="logp_entropy" in recipe.needs())
            suspects = [
                ("policy", "logp", out.logp),
                ("policy", "entropy", out.entropy),
                ("policy", "value", out.value),
            ]
            suspects.append(("objective", recipe.objective.part_name(), recipe.objective(out, micro)))
            suspects += [("regularisers", r.part_name(), r(out, micro)) for r in recipe.regularisers]
        if (error := blame(suspects, step)) is not None:
            return error
    return NonFinite(f"step {step}: policy: the gradient is not finite though the loss is; lower lr; stopped")


def blame(suspects: list[tuple[str, str, Tensor | None]], step: int) -> NonFinite | None:
    """The error that names the first (slot, name, tensor) which is not finite, if there is one."""
    for slot, name, value in suspects:
        if value is not None and not bool(value.isfinite().all()):
            bad = int((~value.isfinite()).sum())
            return NonFinite(f"step {step}: {slot}: {name} is not finite in {bad} of {value.numel()} entries; stopped")
    return None
