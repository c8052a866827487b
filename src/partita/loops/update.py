"""One step's updates: the minibatches of every epoch, and the averages of what was seen of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.policy import Policy
from partita.loops.descent import Descent, diagnose
from partita.loops.run import Generators

if TYPE_CHECKING:
    from partita.loops.on_policy import OnPolicy


def minibatches(recipe: OnPolicy, policy: Policy, batch: Batch, rng: Generators) -> Iterator[tuple[Batch, bool]]:
    """Shuffled minibatches of every epoch, and whether each is the last of its epoch."""
    rows = batch.but(reward=None, terminated=None, truncated=None, bootstrap=None)  # `credit` has had its use of them
    unit = recipe.unit(policy)
    rows = rows.steps() if unit == "step" else rows
    if unit == "group":
        yield from _groups(recipe, rows, rng)
        return
    count = min(recipe.minibatches, len(rows))
    edges = [round(i * len(rows) / count) for i in range(count + 1)]
    for _ in range(recipe.epochs):
        shuffled = rows if count == 1 else rows[torch.randperm(len(rows), generator=rng["minibatch"])]
        for i in range(count):
            yield (shuffled if count == 1 else shuffled[edges[i] : edges[i + 1]]), i == count - 1


def _groups(recipe: OnPolicy, batch: Batch, rng: Generators) -> Iterator[tuple[Batch, bool]]:
    """Minibatches of whole groups."""
    group = batch.need("group").unique(return_inverse=True)[1]
    total = int(group.max()) + 1
    count = min(recipe.minibatches, total)
    edges = [round(i * total / count) for i in range(count + 1)]
    for _ in range(recipe.epochs):
        rank = torch.arange(total) if count == 1 else torch.randperm(total, generator=rng["minibatch"])
        place = rank.to(group.device)[group]
        for i in range(count):
            yield batch[(place >= edges[i]) & (place < edges[i + 1])], i == count - 1


def update(
    recipe: OnPolicy, policy: Policy, descend: Descent, batch: Batch, rng: Generators, step: int
) -> dict[str, float]:
    """Every epoch and minibatch of one step; returns the averages of what to watch."""
    watched: list[dict[str, Tensor]] = []
    start: Tensor | None = None  # KL from the policy that acted to the one that begins to learn
    given = batch.need("reward") + batch.need("logp") + batch.need("advantage") + batch.need("weight")
    if not bool(given.isfinite().all()):  # before the first minibatch, so that no weight moves
        raise diagnose(recipe, policy, batch, step)
    batch = remembered(recipe, policy, batch)
    for minibatch, last in minibatches(recipe, policy, batch, rng):
        seen = descend(minibatch, step, last or start is None)
        start = seen["kl"] if start is None else start
        if last:
            watched.append(seen)
    assert start is not None
    watched[-1]["start_kl"] = start
    if batch.value is not None:
        watched[-1] |= {"explained_variance": explained_variance(batch)}
    names = {name for row in watched for name in row}
    means = {n: torch.stack([row[n] for row in watched if n in row]).mean() for n in sorted(names)}
    metrics = dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True)) if means else {}
    for each in recipe.parts():
        metrics |= each.adapt(policy, batch, step, recipe.steps or step)
    return metrics


def remembered(recipe: OnPolicy, policy: Policy, batch: Batch) -> Batch:
    """The batch with the action distributions of the policy as it is before the update, where a part compares them."""
    if "old" not in recipe.needs():
        return batch
    with torch.no_grad():
        return batch.but(inputs={**batch.inputs, "old": policy.distribution(batch)})


def explained_variance(batch: Batch) -> Tensor:
    """1 - Var(G - V) / Var(G) over the steps of the batch; 1 is a perfect critic, 0 a constant one. Scalar."""
    returns, value = batch.need("returns")[batch.mask], batch.need("value")[batch.mask]
    return 1 - (returns - value).var() / returns.var().clamp(min=1e-12)
