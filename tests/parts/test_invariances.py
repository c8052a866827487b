"""What must hold for every registered part of a slot, whoever wrote it."""

import math

import pytest
import torch
from batches import Table, make, padded
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core import registry
from partita.core.batch import Batch
from partita.loops.descent import losses, micro_batches
from partita.loops.on_policy import OnPolicy
from partita.parts.aggregate import FixedLength, SequenceMean, TokenMean
from partita.parts.objective import ClippedSurrogate
from partita.parts.regularisers import KL, Entropy, ValueLoss


def registered(slot):
    """Every part of the slot that can be made without settings, remembers nothing, and asks of no special policy."""
    parts = [registry.load(entry["target"]) for entry in registry.index()["parts"].get(slot, {}).values()]
    made = [cls() for cls in parts if not hasattr(cls, "state_dict") and cls.loop in ("", "on_policy")]
    return [part for part in made if not {"old", "noise"} & set(part.needs)]


def named(slot):
    return pytest.mark.parametrize("part", registered(slot), ids=lambda p: p.part_name())


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@named("credit")
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), holes=st.booleans())
def test_credit_is_finite_zero_outside_the_mask_blind_to_padding_and_order(part, seed, holes):
    batch = make(seed=seed, holes=holes)
    out = part(batch)
    assert out.shape == batch.mask.shape and bool(out.isfinite().all()) and not out[~batch.mask].any()
    close(part(padded(batch, 2))[:, :5], out)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    close(part(batch[order]), out[order])
    renamed = batch.but(group=torch.tensor([40, 3, 17, 8])[batch.group])
    close(part(renamed), out)


@named("credit")
def test_credit_does_not_write_to_its_batch(part):
    batch, same = make(), make()
    part(batch)
    assert all(torch.equal(getattr(batch, n), getattr(same, n)) for n in ("reward", "value", "terminated", "mask"))


def per_step(slot, part, policy, batch):
    out = policy.evaluate(batch, entropy=True)
    return part(out, batch)


@named("objective")
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), holes=st.booleans())
def test_objectives_are_blind_to_padding_and_order(part, seed, holes):
    policy, batch = Table(seed=1), make(seed=seed, holes=holes)
    mask = batch.mask
    out = per_step("objective", part, policy, batch)
    assert bool(out.isfinite().all())
    close(per_step("objective", part, policy, padded(batch, 2))[:, :5] * mask, out * mask)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    close((per_step("objective", part, policy, batch[order]) * mask[order]), (out * mask)[order])


@named("objective")
def test_objectives_improve_on_policy_by_a_small_step(part):
    """Down the gradient, log-probs move with the advantages: sum A dlogp > 0."""
    policy, batch = Table(), make(on_policy=True)
    before = policy.evaluate(batch).logp.detach()
    loss = (part(policy.evaluate(batch), batch) * batch.mask).sum()
    gradient = torch.autograd.grad(loss, policy.module.logits)[0]
    with torch.no_grad():
        policy.module.logits -= 1e-4 * gradient
        after = policy.evaluate(batch).logp
    assert ((after - before) * batch.advantage).sum() > 0


@named("regularisers")
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_regularisers_are_blind_to_padding_and_order(part, seed):
    policy, batch = Table(seed=1), make(seed=seed)
    out = per_step("regularisers", part, policy, batch)
    wide, order = padded(batch, 2), torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    if not out.dim():
        close(per_step("regularisers", part, policy, wide), out)
        close(per_step("regularisers", part, policy, batch[order]), out)
        return
    close(per_step("regularisers", part, policy, wide)[:, :5] * batch.mask, out * batch.mask)
    close(per_step("regularisers", part, policy, batch[order]), out[order])


@named("aggregate")
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_aggregates_weigh_the_mask_alone_and_follow_order(part, seed):
    batch = make(seed=seed, holes=True)
    weights = part(batch)
    assert bool((weights >= 0).all()) and not weights[~batch.mask].any() and float(weights.sum()) > 0
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(part(batch[order]), weights[order])
    if part != FixedLength():  # its length is the padded width, by definition
        torch.testing.assert_close(part(padded(batch, 3))[:, :5], weights)


@named("focus")
def test_focus_is_finite_and_zero_outside_the_mask(part):
    batch = make(holes=True)
    weights = part(batch)
    assert bool(weights.isfinite().all()) and bool((weights >= 0).all()) and not weights[~batch.mask].any()


@named("select")
def test_selection_follows_order_and_ignores_padding(part):
    batch = make()
    keep = part(batch)
    assert keep.dtype == torch.bool and keep.shape == (8,)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(part(batch[order]), keep[order]) and torch.equal(part(padded(batch, 2)), keep)


def gradients(recipe, policy, batch, size):
    """Loss and gradients of a minibatch evaluated `size` trajectories at a time."""
    recipe = recipe.but(micro_batch=size)
    for p in policy.trainable().values():
        p.grad = None
    total = 0.0
    pieces = 0
    for micro, weights in micro_batches(recipe, batch, recipe.aggregate(batch)):
        loss, _ = losses(recipe, policy, micro, weights, len(micro) / len(batch), watch=True)
        loss.backward()
        total += float(loss.detach())
        pieces += 1
    return total, {n: p.grad.clone() for n, p in policy.trainable().items() if p.grad is not None}, pieces


def same_when_split(recipe, batch):
    policy = Table(seed=1, unit="trajectory")
    whole = gradients(recipe, policy, batch, None)
    assert any(g.abs().max() > 1e-6 for g in whole[1].values())
    grouped = any(part.unit == "group" for part in recipe.parts())  # then a piece is one of the batch's four pairs
    for size in (1, 3):
        split = gradients(recipe, policy, batch, size)
        assert split[2] == (4 if grouped else math.ceil(len(batch) / size))
        assert split[0] == pytest.approx(whole[0], abs=1e-6)
        for name, gradient in whole[1].items():
            torch.testing.assert_close(split[1][name], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("aggregate", registered("aggregate"), ids=lambda p: p.part_name())
@pytest.mark.parametrize("objective", [p for p in registered("objective") if not p.whole], ids=lambda p: p.part_name())
def test_micro_batches_add_up_to_the_same_gradient(objective, aggregate):
    same_when_split(OnPolicy(objective=objective, aggregate=aggregate), make(holes=True))


@named("regularisers")
def test_micro_batches_add_up_to_the_same_gradient_with_regularisers(part):
    same_when_split(OnPolicy(aggregate=SequenceMean(), regularisers=(part,)), make(holes=True))


def test_equal_lengths_make_the_means_one():
    batch = make()
    batch = batch.but(mask=torch.ones_like(batch.mask))
    policy = Table(seed=1)
    recipe = OnPolicy(objective=ClippedSurrogate(), regularisers=(KL(), Entropy(), ValueLoss()))
    a, b, c = (
        gradients(recipe.but(aggregate=part), policy, batch, None)[1]
        for part in (TokenMean(), SequenceMean(), FixedLength())
    )
    for name in a:
        torch.testing.assert_close(a[name], b[name])
        torch.testing.assert_close(a[name], c[name])


def test_focus_weighs_the_objective_and_not_the_regularisers():
    batch = make()
    silent = batch.but(weight=torch.zeros_like(batch.weight))
    policy = Table(seed=1)
    recipe = OnPolicy(objective=ClippedSurrogate(), regularisers=(KL(),))
    total = gradients(recipe, policy, batch, None)[1]["logits"]
    penalty = gradients(recipe, policy, silent, None)[1]["logits"]
    alone = gradients(recipe.but(regularisers=()), policy, batch, None)[1]["logits"]
    torch.testing.assert_close(total, penalty + alone)
    assert penalty.abs().max() > 1e-6 and alone.abs().max() > 1e-6


def test_the_factory_covers_what_a_batch_can_hold():
    batch = make(holes=True)
    empty = [n for n in vars(Batch(mask=batch.mask)) if getattr(batch, n) is None]
    assert empty == ["records"]
    assert not batch.mask.all() and bool((batch.mask[:, 1:] & ~batch.mask[:, :-1]).any())
