"""The preference loop: responses, comparisons among them, and a loss on how much likelier the better ones are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import NonFinite, UserError
from partita.core.pairs import Pairs
from partita.core.policy import Policy
from partita.core.task import Problem, Task
from partita.estimators.anchors import hashed
from partita.estimators.margins import response_logp
from partita.loops.descent import blame
from partita.loops.learned import Batched, rate_for
from partita.loops.learner import Learner
from partita.loops.run import Generators, Run
from partita.parts.contrast import Contrast, Direct
from partita.parts.pairs import Compare, Labelled
from partita.parts.reference import Frozen, Reference
from partita.parts.resample import Offline, Resample
from partita.parts.rollout import DEMONSTRATION
from partita.parts.tether import Tether


@dataclass(frozen=True)
class Preference(Batched):
    """A recipe of the preference loop: a part for each slot, and the numbers of the loop.

    batch_size: prompts a step. Minibatches are whole prompts with all their responses.
    """

    loop: ClassVar[str] = "preference"
    slots: ClassVar[tuple[str, ...]] = ("resample", "pairs", "objective", "regularisers", "reference")
    many: ClassVar[tuple[str, ...]] = ("regularisers",)

    resample: Resample = Offline()
    pairs: Compare = Labelled()
    objective: Contrast = Direct()
    regularisers: tuple[Tether, ...] = ()
    reference: Reference = Frozen()

    def settle(self, task: Task, policy: Policy | None = None) -> Preference:
        """The recipe with every None filled in; the learning rate once the policy is known."""
        defaults = {"steps": 100, "batch_size": 32, "lr": rate_for(task, policy)}
        filled = self.but(**{k: v for k, v in defaults.items() if getattr(self, k) is None})
        return filled.each(lambda part: part.settle(task))

    def check(self, task: Task, policy: Policy) -> None:
        """Refuse combinations that cannot work, saying why."""
        if not hasattr(task, "given"):
            raise UserError(
                f"task {task.part_name()}: the preference loop needs preferences; use --task lab or --task FILE.jsonl"
            )
        self.complain(task, policy)
        if self.minibatches > (self.batch_size or 1):
            raise UserError(f"minibatches: {self.minibatches} are more than the {self.batch_size} prompts; lower it")


def train(recipe: Preference, policy: Any, task: Any, run: Run) -> None:
    """Train `policy` on the preferences of `task` by `recipe`."""
    task = task.met(policy)
    recipe = recipe.settle(task, policy).fresh()
    recipe.check(task, policy)
    assert recipe.steps is not None
    learner, known = recipe.learner(policy.trainable()), Known()
    if "ref" in recipe.needs():
        recipe.reference.start(policy)
    remembering = {f"part.{i}.{p.part_name()}": p for i, p in enumerate(recipe.parts()) if hasattr(p, "state_dict")}
    state: dict[str, Any] = {
        "policy": policy, "learner": learner, "generators": run.generators, "known": known, **remembering,
    }  # fmt: skip
    for step in run.steps(recipe.steps, state):
        rate = learner.begin(step)
        pairs, metrics = gather(recipe, policy, task, run.generators, step, known)
        if pairs.ref is not None and recipe.resample.samples and len(pairs.batch):
            left = response_logp(pairs.batch.need("logp"), pairs.batch.mask).sum() - pairs.ref.sum()
            metrics["ref_kl"] = float(left / pairs.batch.mask.sum())
        if recipe.objective.count(pairs):
            metrics |= update(recipe, policy, learner, pairs, run.generators, step)
        recipe.reference.update(policy, step)
        run.log(step, {**metrics, "lr": rate}, pairs.batch)


def gather(
    recipe: Preference, policy: Any, task: Any, rng: Generators, step: int, known: Known
) -> tuple[Pairs, dict[str, float]]:
    """The responses of a step, the comparisons among them, what the reference says of them, and what to watch."""
    assert recipe.batch_size is not None
    pairs, problems = recipe.resample(policy, task, recipe.batch_size, step, rng["resample"])
    metrics = {"samples": float(len(pairs.batch))}
    if recipe.resample.samples:  # of all that was sampled, compared or not
        lengths = pairs.batch.lengths.float()
        metrics |= {"return": float(pairs.batch.need("outcome").mean()), "length": float(lengths.mean())}
    prefer = judgement(task, problems, pairs, rng["judge"]) if recipe.pairs.judges else None
    pairs = recipe.pairs(pairs, prefer, rng["pairs"])
    if "label" in recipe.needs():
        pairs = pairs.labelled()
    if not any(regulariser.uncompared for regulariser in recipe.regularisers) and recipe.objective.compares:
        pairs = pairs.only_compared()
    if "ref" in recipe.needs() and len(pairs.batch):
        ref = known if recipe.reference.still and not recipe.resample.samples else None
        pairs = pairs.but(ref=reference_logp(recipe.reference, policy, pairs, ref, recipe.micro_batch))
    return pairs, metrics | {"comparisons": float(len(pairs))}


def judgement(task: Any, problems: list[Problem], pairs: Pairs, generator: torch.Generator) -> Tensor:
    """(B, B): the judge's probability that a row is preferred to another of its group; 1/2 elsewhere."""
    group, records = pairs.batch.need("group"), pairs.batch.records
    assert records is not None
    out = torch.full((len(group), len(group)), 0.5, dtype=torch.float64)
    for name in group.unique().tolist():
        rows = (group == name).nonzero()[:, 0].tolist()
        found = task.prefer(problems[rows[0]], [records[i]["response"] for i in rows], generator)
        out[torch.tensor(rows)[:, None], torch.tensor(rows)] = found.double()
    return out.to(group.device)


class Known:
    """What a frozen reference has said of responses of the data set, so that each is asked of once."""

    def __init__(self) -> None:
        self.table: dict[int, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Keys and values as tensors."""
        return {
            "keys": torch.tensor(list(self.table), dtype=torch.int64),
            "values": torch.tensor(list(self.table.values()), dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.table = dict(zip(state["keys"].tolist(), state["values"].tolist(), strict=True))


def reference_logp(
    reference: Reference, policy: Any, pairs: Pairs, known: Known | None, size: int | None = None
) -> Tensor:
    """log ref(y | x) of every response, (B,), `size` at once; those of the data that are known are not asked again."""
    batch = pairs.batch
    if known is None:
        return by_pieces(partial(reference.logp, policy), batch, size)
    keys = [_key(record) for record in batch.records or ()]
    given = batch.mask.new_ones(len(batch)) if batch.source is None else batch.source == DEMONSTRATION
    asked = ~given | torch.tensor([key not in known.table for key in keys], device=batch.mask.device)
    out = torch.tensor([known.table.get(key, 0.0) for key in keys], device=batch.mask.device)
    if bool(asked.any()):
        out[asked] = by_pieces(partial(reference.logp, policy), batch[asked], size)
        kept = (asked & given).tolist()
        known.table |= {k: v for k, v, keep in zip(keys, out.tolist(), kept, strict=True) if keep}
    return out


def by_pieces(logp: Callable[[Batch], Tensor], batch: Batch, size: int | None) -> Tensor:
    """Log-probabilities of whole responses, (B,), `size` of them at once, without gradients."""
    pieces = (batch[rows] for rows in torch.arange(len(batch), device=batch.mask.device).split(size or len(batch)))
    with torch.no_grad():
        return torch.cat([response_logp(logp(piece), piece.mask) for piece in pieces])


def _key(record: Any) -> int:
    return hashed(f"{record['prompt']}\0{record['response']}")


def update(
    recipe: Preference, policy: Any, learner: Learner, pairs: Pairs, rng: Generators, step: int
) -> dict[str, float]:
    """Every epoch and minibatch of one step; returns the averages of what to watch."""
    watched: list[dict[str, Tensor]] = []
    for minibatch in minibatches(pairs, recipe.epochs, recipe.minibatches, rng):
        if not recipe.objective.count(minibatch):
            continue
        if "drift" in recipe.needs():
            minibatch = minibatch.but(drift=mismatched(recipe.reference, policy, minibatch, recipe.micro_batch))
        seen: dict[str, Tensor] = {}
        for micro in micro_batches(minibatch, recipe.micro_batch):
            loss, notes = losses(recipe, policy, micro, minibatch)
            if loss.requires_grad:  # a piece may hold prompts without a comparison
                loss.backward()
            seen |= {n: seen.get(n, 0.0) + v for n, v in ({"loss": loss.detach()} | notes).items()}
        if not bool(seen["loss"].isfinite()) or not bool((norm := learner.apply()).isfinite()):
            raise diagnose(recipe, policy, minibatch, step)
        watched.append({"grad_norm": norm, **seen})
    names = sorted({name for row in watched for name in row})
    return {n: float(torch.stack([row[n] for row in watched]).mean()) for n in names}


def minibatches(pairs: Pairs, epochs: int, count: int, rng: Generators) -> Iterator[Pairs]:
    """Shuffled minibatches of whole prompts, for every epoch."""
    group = pairs.batch.need("group").unique(return_inverse=True)[1]
    total = int(group.max()) + 1
    count = min(count, total)
    edges = [round(i * total / count) for i in range(count + 1)]
    for _ in range(epochs):
        if count == 1:
            yield pairs
            continue
        place = torch.randperm(total, generator=rng["minibatch"]).to(group.device)[group]
        for low, high in zip(edges, edges[1:], strict=False):
            yield pairs.rows((place >= low) & (place < high))


def micro_batches(pairs: Pairs, size: int | None) -> Iterator[Pairs]:
    """The minibatch in pieces of as many prompts as `size` responses hold, at least one."""
    if size is None or size >= len(pairs.batch):
        yield pairs
        return
    group = pairs.batch.need("group").unique(return_inverse=True)[1]
    each = max(1, size // int(group.bincount().max()))
    for some in torch.arange(int(group.max()) + 1, device=group.device).split(each):
        yield pairs.rows((group >= some[0]) & (group <= some[-1]))


def losses(recipe: Preference, policy: Any, pairs: Pairs, whole: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
    """The share of a micro-batch in the loss of the minibatch `whole`, and in what to watch of it.

    loss = mean(objective) + sum of mean(regulariser),  means over what each of them counts in the minibatch
    """
    out = policy.evaluate(pairs.batch)
    loss = torch.zeros((), device=out.logp.device)
    parts: tuple[Contrast | Tether, ...] = (recipe.objective, *recipe.regularisers)
    for part in parts:
        if part.count(pairs):
            loss = loss + part(out, pairs).sum() / part.count(whole)
    with torch.no_grad():
        return loss, _notes(recipe.objective, out, pairs, len(whole))


def _notes(objective: Contrast, out: Any, pairs: Pairs, total: int) -> dict[str, Tensor]:
    """Accuracy and margin of the reward that the loss implies, and how likely both sides are: shares of their means."""
    if not len(pairs):
        return {}
    swapped = pairs.prefer < 0.5
    better = torch.where(swapped, pairs.second, pairs.first)
    worse = torch.where(swapped, pairs.first, pairs.second)
    logp = response_logp(out.logp.detach(), pairs.batch.mask)
    notes = {"logp_better": logp[better], "logp_worse": logp[worse]}
    reward = objective.reward(out, pairs)
    if reward is not None:
        margin = (reward[better] - reward[worse]).detach()
        notes |= {"accuracy": (margin > 0).float(), "margin": margin}
    return {name: value.sum() / total for name, value in notes.items()}


def mismatched(reference: Reference, policy: Any, pairs: Pairs, size: int | None = None) -> Tensor:
    """mean log(pi(y' | x) / ref(y' | x)), y' answering another prompt than x: each response with the next group's.

    size: responses at once.
    """
    batch = pairs.batch
    names, group = batch.need("group").unique(return_inverse=True)
    rows = torch.arange(len(batch), device=group.device)
    first = rows.new_full((len(names),), len(batch)).scatter_reduce_(0, group, rows, "amin")
    order = first[(group + 1) % len(names)]
    other = batch.but(context={k: v[order] for k, v in batch.context.items()}, group=batch.need("group")[order])
    now = by_pieces(lambda piece: policy.evaluate(piece).logp, other, size)
    return (now - by_pieces(partial(reference.logp, policy), other, size)).mean()


def diagnose(recipe: Preference, policy: Any, pairs: Pairs, step: int) -> NonFinite:
    """The error for a loss or gradient that is not finite: the first tensor along the step that is to blame."""
    with torch.no_grad():
        out = policy.evaluate(pairs.batch)
        suspects = [("reference", "ref", pairs.ref), ("pairs", "prefer", pairs.prefer), ("policy", "logp", out.logp)]
        suspects += [("policy", "value", out.value)]
        suspects += [("objective", recipe.objective.part_name(), recipe.objective(out, pairs))]
        suspects += [("regularisers", r.part_name(), r(out, pairs)) for r in recipe.regularisers]
    error = blame(suspects, step)
    if error is not None:
        return error
    return NonFinite(f"step {step}: policy: the gradient is not finite though the loss is; lower lr; stopped")
