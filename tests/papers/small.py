"""A random character model and problems for rollouts, so small that tests look at every token."""

from __future__ import annotations

import functools

import torch

from partita.core.registry import part_class
from partita.core.registry import recipe as recipe_of
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model


@functools.cache
def _tokenizer(context: int):
    return character_tokenizer(context=context)


def policy(scale: float = 0.3, context: int = 128, hidden: int = 32, layers: int = 2) -> LanguagePolicy:
    """Random weights; the larger the scale, the surer the model."""
    lm = tiny_model(tiny_config("qwen2", hidden=hidden, layers=layers, heads=2, context=context))
    g = torch.Generator().manual_seed(7)
    for parameter in lm.parameters():
        parameter.data.add_(scale * torch.randn(parameter.shape, generator=g))
    return LanguagePolicy(lm, _tokenizer(context), Language())


def task(name: str = "arithmetic", **settings):
    return part_class("task", name)(**settings)


def roll(rollout, group: int = 6, count: int = 3, seed: int = 0, needs=frozenset(), on=None, by=None):
    """A batch of `rollout` from the small policy; the same for the same seed."""
    on, by = on or task(), by or policy()
    problems = on.problems(count, torch.Generator().manual_seed(11))
    return rollout(by, on, problems, group, torch.Generator().manual_seed(seed), needs)


def agrees(batch, by=None) -> None:
    """Re-evaluated by the policy, responses have the log-probabilities and entropies that the rollout recorded."""
    with torch.no_grad():
        out = (by or policy()).evaluate(batch, entropy=True)
    torch.testing.assert_close(out.logp, batch.logp, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.entropy, batch.entropy, rtol=1e-4, atol=1e-4)


def learnt(name: str, on, steps: int, **changes) -> float:
    """The mean return of the last three steps of a training from random weights."""
    recipe = recipe_of(name).but(**{"steps": steps, "lr": 1e-2, **changes})
    run, by = Run(0), policy(scale=0.0, context=32, layers=1)
    train(recipe.but(batch_size=96 // recipe.group_size), by, on, run)
    assert run.metrics[0]["return"] < 0.45  # there was something to learn
    return sum(m["return"] for m in run.metrics[-3:]) / 3
