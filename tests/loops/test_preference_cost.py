"""What a step of the preference loop computes and keeps: prompts once, and no table of logits."""

import math

import pytest
import torch

from partita.core.task import Problem
from partita.loops.preference import Known, gather, losses, micro_batches
from partita.loops.run import Generators
from partita.papers.baselines.dpo import DPO
from partita.policies.language import Language
from preferences import Liked


@pytest.fixture
def step():
    """A policy, the recipe and the pairs of a step whose prompts are long enough to be worth sharing."""
    task = Asked()
    policy = Language().build(task, False, torch.Generator().manual_seed(0))
    recipe = DPO.but(batch_size=8).settle(task, policy).fresh()
    recipe.reference.start(policy)
    pairs, _ = gather(recipe, policy, task, Generators(0), 1, Known())
    return recipe, policy, pairs


class Asked(Liked):
    def prompt(self, index):
        return Problem("a long question " * 3 + super().prompt(index).prompt, {"index": index})


def read(policy, compute):
    """How many tokens went through the model, padding included."""
    seen = []
    hook = policy.lm.get_input_embeddings().register_forward_hook(lambda _, given, out: seen.append(given[0].numel()))
    try:
        compute()
    finally:
        hook.remove()
    return sum(seen)


@pytest.mark.parametrize("size", [None, 4])
def test_the_prompt_of_a_comparison_is_read_once(step, size):
    recipe, policy, pairs = step
    batch = pairs.batch
    prompts = batch.context["prompt_mask"].sum(1)
    once = int((prompts[pairs.first] - 1).sum())
    widest = 2 * len(pairs) * int(batch.lengths.max())
    pieces = list(micro_batches(pairs, size))
    assert len(pieces) == (1 if size is None else 4)
    total = read(policy, lambda: [losses(recipe, policy, piece, pairs) for piece in pieces])
    assert total <= len(pairs) * (int(prompts.max()) - 1) + widest
    assert total < 2 * once


def test_no_table_of_logits_is_kept_for_the_backward_pass(step):
    recipe, policy, pairs = step
    kept = []
    words = policy.head.weight.shape[0]
    steps = int(pairs.batch.mask.sum())
    weights = {p.data_ptr() for p in policy.lm.parameters()}

    def pack(x):
        if x.data_ptr() not in weights:
            kept.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss, _ = losses(recipe, policy, pairs, pairs)
    loss.backward()
    assert kept and not [shape for shape in kept if words in shape and math.prod(shape) >= steps * words]
