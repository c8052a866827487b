"""A step down the loss of one minibatch: in pieces, as one compiled program, and what to say when it is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.errors import NonFinite, UserError
from partita.core.policy import Policy
from partita.core.program import Columns, Program
from partita.core.ranks import world
from partita.estimators.masked import masked_mean, whiten
from partita.loops.learner import Learner
from partita.parts import optimiser

if TYPE_CHECKING:
    from partita.loops.on_policy import OnPolicy

SIZES = 4  # of minibatches, for which a run makes programs


class Descent:
    """Moves a policy down the loss of minibatches, one at a time; returns what to watch of each, scalars.

    Among these are "loss" and "grad_norm", finite: NonFinite is raised otherwise. With `recipe.compile` all of it is
    one program for each size of minibatch.
    """

    def __init__(self, recipe: OnPolicy, policy: Policy, learner: Learner) -> None:
        self.recipe, self.policy, self.learner = recipe, policy, learner
        self.programs: dict[int, Program] = {}
        if recipe.compile:
            refuse(recipe, policy)
            learner.kernel = False  # a compiler joins the step with what comes before it, where it sees it
            policy.fused = True

    def __call__(self, batch: Batch, step: int, watch: bool = True) -> dict[str, Tensor]:
        """watch: also what costs something to know."""
        seen = self._compiled(batch) if self.recipe.compile else self._plain(batch, watch)
        if not bool(seen["loss"].isfinite()) or not bool(seen["grad_norm"].isfinite()):
            raise diagnose(self.recipe, self.policy, batch, step)
        return seen

    def _plain(self, batch: Batch, watch: bool) -> dict[str, Tensor]:
        recipe, policy = self.recipe, self.policy
        if recipe.whiten == "minibatch":
            batch = batch.but(advantage=whiten(batch.need("advantage"), batch.mask))
        weights = recipe.aggregate(batch)
        loss = torch.zeros((), device=weights.device)
        seen: dict[str, Tensor] = {}
        steps = batch.mask.sum().clamp(min=1)
        for micro, share in micro_batches(recipe, batch, weights):
            part, notes = losses(recipe, policy, micro, share, len(micro) / len(batch), watch)
            part.backward()
            loss = loss + part.detach()
            seen |= {n: seen.get(n, 0.0) + v * (micro.mask.sum() / steps) for n, v in notes.items()}
        if not recipe.compile and not bool(loss.isfinite()):  # before any weight moves
            return {"loss": loss, "grad_norm": loss}
        moved = recipe.optimiser(self.learner, batch, partial(evaluated, recipe, policy, batch, weights))
        return {"loss": loss, **moved, **seen}

    def _compiled(self, batch: Batch) -> dict[str, Tensor]:
        size = len(batch)
        if size not in self.programs:
            if len(self.programs) == SIZES:
                raise UserError(f"compile: minibatches of more than {SIZES} sizes; leave --compile out")
            networks = [*self.policy.module.parameters(), *self.policy.module.buffers()]

            def update(given: Columns) -> dict[str, Tensor]:
                return self._plain(batch.over(given), True)

            self.programs[size] = Program(update, [*networks, *self.learner.tensors()], [])
        return self.programs[size](batch.columns())


def refuse(recipe: OnPolicy, policy: Policy) -> None:
    """Raise UserError where an update cannot be one program, saying why."""
    why = "not with several ranks" if world() > 1 else None
    if policy.domain != "control" or recipe.unit(policy) != "step":
        why = "programs are made of minibatches of steps (control, and no part that looks at trajectories)"
    elif not isinstance(recipe.optimiser, optimiser.Adam):
        why = f"optimiser {recipe.optimiser.part_name()} looks before it moves"
    for part in (recipe.objective, recipe.aggregate, *recipe.regularisers):
        if hasattr(part, "state_dict"):
            why = f"{part.slot} {part.part_name()} keeps a state of its own"
    if why is not None:
        raise UserError(f"compile: {why}; leave --compile out")


def micro_batches(recipe: OnPolicy, minibatch: Batch, weights: Tensor) -> Iterator[tuple[Batch, Tensor]]:
    """The minibatch in pieces of at most `micro_batch` trajectories of similar length, with their weights.

    Where a part asks for whole groups, a piece is as many groups as fit, at least one.
    """
    size = recipe.micro_batch
    if size is None or size >= len(minibatch):
        yield minibatch, weights
        return
    if any(part.unit == "group" for part in recipe.parts()):
        group = minibatch.need("group").unique(return_inverse=True)[1]
        largest = int(group.bincount().max())
        for some in torch.arange(int(group.max()) + 1, device=group.device).split(max(1, size // largest)):
            rows = (group >= some[0]) & (group <= some[-1])
            yield minibatch[rows], weights[rows]
        return
    order = minibatch.lengths.argsort(stable=True)
    for rows in order.split(size):
        yield minibatch[rows], weights[rows]


def losses(
    recipe: OnPolicy, policy: Policy, batch: Batch, weights: Tensor, share: float, watch: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a micro-batch, and what to watch of it."""
    loss, out = evaluated(recipe, policy, batch, weights, share)
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


def evaluated(
    recipe: OnPolicy, policy: Policy, batch: Batch, weights: Tensor, share: float = 1.0
) -> tuple[Tensor, Outputs]:
    """The loss of a micro-batch, which is this share of a minibatch, and the outputs that it is made of.

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
    return (weights * per_step).sum() + whole, out


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
