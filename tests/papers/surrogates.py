"""What tests of objectives share: trajectories by hand, gradients, and a small model that learns a probe."""

from __future__ import annotations

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.registry import recipe as recipe_of
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model


def case(ratios, advantages, mask=None, logp=None, **fields) -> tuple[Outputs, Batch]:
    """Trajectories (one, where rows are numbers) with these importance ratios and advantages; float64.

    Log-probs now are -1 unless given; those of the sampler follow from the ratios.
    """

    def rows(values) -> Tensor:
        found = torch.tensor(values, dtype=torch.float64)
        return found if found.dim() == 2 else found[None]

    ratio = rows(ratios)
    now = torch.full_like(ratio, -1.0) if logp is None else rows(logp)
    acted = torch.ones_like(ratio, dtype=torch.bool) if mask is None else rows(mask).bool()
    batch = Batch(mask=acted, logp=now - ratio.log(), advantage=rows(advantages) * acted, **fields)
    return Outputs(now.requires_grad_()), batch


def gradient(objective, out: Outputs, batch: Batch) -> Tensor:
    """Of the sum of losses over the mask, by the log-probabilities; (B, T)."""
    return torch.autograd.grad((objective(out, batch) * batch.mask).sum(), out.logp, retain_graph=True)[0]


def drawn(seed: int, b: int = 6, t: int = 5, on_policy: bool = False) -> tuple[Outputs, Batch]:
    """Random ratios, advantages, entropies and lengths; float64. Advantages are equal along a trajectory."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    mask = torch.arange(t) < torch.randint(1, t + 1, (b, 1), generator=g)
    logp = -normal(b, t).abs() * mask
    behaviour = logp if on_policy else (logp + 0.5 * normal(b, t)) * mask
    entropy = normal(b, t).abs() * mask
    batch = Batch(mask=mask, logp=behaviour, advantage=normal(b, 1) * mask, entropy=entropy)
    return Outputs(logp.clone().requires_grad_()), batch


def wider(out: Outputs, batch: Batch, extra: int) -> tuple[Outputs, Batch]:
    """The same with empty steps on the right."""
    empty = torch.zeros(len(batch), extra, dtype=torch.float64)

    def pad(x: Tensor) -> Tensor:
        return torch.cat((x, empty.to(x.dtype)), 1)

    filled = {
        n: pad(getattr(batch, n))
        for n in ("mask", "logp", "advantage", "entropy", "weight")
        if getattr(batch, n) is not None
    }
    return Outputs(pad(out.logp.detach()).requires_grad_()), Batch(**filled)


def learner() -> LanguagePolicy:
    """A language model of one layer with random weights over printable characters."""
    model = tiny_model(tiny_config("qwen2", hidden=32, layers=1, heads=2, context=32))
    return LanguagePolicy(model, character_tokenizer(context=32), Language(), False)


def learn(recipe, task, **changes) -> Run:
    """Train a recipe, by name or as it is, on a probe from random weights."""
    recipe = recipe_of(recipe) if isinstance(recipe, str) else recipe
    run = Run(0)
    train(recipe.but(batch_size=96 // recipe.group_size, lr=1e-2).but(**changes), learner(), task, run)
    return run


def late(run: Run, name: str = "return") -> float:
    """Mean of a metric over the last three steps."""
    return sum(row[name] for row in run.metrics[-3:]) / 3
