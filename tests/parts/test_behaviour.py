"""Behaviour: whose weights sample at which step, and which past trajectories come back."""

import pytest
import torch
from batches import Table, make

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.lab.checkpoint import flatten, restore
from partita.loops.on_policy import gather, train
from partita.loops.run import Generators, Run
from partita.papers.baselines.grpo import GRPO
from partita.parts.behaviour import Current, Replayed, Stale
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.probes import ProbeContinuous


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sampled_by(part, steps):
    """For each step the version (number of updates) of the weights that sample; every update adds one to them."""
    policy, part = Table(), part.fresh()
    begun = policy.module.logits.detach().clone()
    part.start(policy)
    out = []
    for step in range(1, steps + 1):
        with part.acting(policy, step):
            out.append(round(float((policy.module.logits.detach() - begun).mean())))
        assert part.age(step) == step - 1 - out[-1]
        with torch.no_grad():
            policy.module.logits.add_(1.0)
        part.update(policy, step)
    return out


@pytest.mark.parametrize(
    ("part", "versions"),
    [
        (Current(), [0, 1, 2, 3, 4, 5, 6]),
        (Stale(lag=0, refresh=1), [0, 1, 2, 3, 4, 5, 6]),
        (Stale(lag=2, refresh=1), [0, 0, 0, 1, 2, 3, 4]),
        (Stale(lag=0, refresh=3), [0, 0, 0, 3, 3, 3, 6]),
        (Stale(lag=1, refresh=3), [0, 0, 0, 0, 3, 3, 3]),
        (Stale(lag=0, refresh=99), [0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_the_weights_that_sample_are_as_old_as_asked(part, versions):
    assert sampled_by(part, 7) == versions


@pytest.mark.parametrize(("lag", "refresh", "copies"), [(0, 1, 1), (3, 1, 4), (0, 4, 1), (5, 4, 3)])
def test_no_more_copies_are_kept_than_are_needed(lag, refresh, copies):
    policy, part = Table(), Stale(lag, refresh).fresh()
    part.start(policy)
    for step in range(1, 30):
        part.update(policy, step)
        assert len(part.state_dict()) <= copies


def test_a_stale_sampler_goes_on_from_a_checkpoint():
    policy, part = Table(), Stale(lag=2, refresh=1).fresh()
    part.start(policy)
    for step in range(1, 6):
        with torch.no_grad():
            policy.module.logits.add_(1.0)
        part.update(policy, step)
    tensors = {}
    structure = flatten(part.state_dict(), tensors)
    again = Stale(lag=2, refresh=1).fresh()
    again.load_state_dict(restore(structure, tensors))
    for held in (part, again):
        with held.acting(policy, 6):
            kept = policy.module.logits.detach().clone()
        torch.testing.assert_close(policy.module.logits.detach() - kept, torch.full_like(kept, 2.0))


def test_the_behaviour_logp_is_that_of_the_policy_that_sampled():
    task, recipe = ProbeContinuous(), GRPO.but(steps=3, batch_size=4, group_size=4, behaviour=Stale(refresh=9))
    policy = ActorCritic(hidden=(8,)).build(task, False, seeded())
    recipe = recipe.settle(task, policy).fresh()
    recipe.behaviour.start(policy)
    begun = {n: w.clone() for n, w in policy.state_dict().items()}
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.add_(0.1)
    batch, _, metrics = gather(recipe, policy, task, Generators(0), 3)
    assert metrics["staleness"] == 2.0 and batch.age.tolist() == [2] * 16
    with policy.using(begun):
        old = policy.evaluate(batch).logp
    torch.testing.assert_close(old, batch.logp)
    assert not torch.allclose(policy.evaluate(batch).logp, batch.logp)


def test_replay_brings_back_whole_groups_as_they_were_and_counts_their_age():
    part = Replayed(share=0.5, keep=2).fresh()
    batches = [make(seed=seed) for seed in range(4)]
    first = part.mix(batches[0], 1, seeded())
    assert len(first) == 8 and first.age.tolist() == [0] * 8
    second = part.mix(batches[1], 2, seeded())
    assert len(second) == 16 and second.age.tolist() == [0] * 8 + [1] * 8
    assert second.group.bincount().tolist() == [2] * 8
    rows = {tuple(r.tolist()) for r in batches[0].advantage}
    assert {tuple(r.tolist()) for r in second.advantage[8:]} == rows  # all of the past, without replacement
    part.mix(batches[2], 3, seeded())
    fourth = part.mix(batches[3], 4, seeded())
    assert fourth.age[8:].min() == 1 and fourth.age[8:].max() <= 2  # only the last two batches are kept


def test_the_share_of_replayed_trajectories_is_as_asked():
    part = Replayed(share=0.2, keep=4).fresh()
    part.mix(make(b=16, groups=8), 1, seeded())
    assert len(part.mix(make(b=16, groups=8, seed=1), 2, seeded())) == 20


def test_a_replay_goes_on_from_a_checkpoint():
    part = Replayed(share=0.5, keep=3).fresh()
    part.mix(make(seed=1).but(records=tuple({"score": i} for i in range(8))), 1, seeded())
    tensors = {}
    structure = flatten(part.state_dict(), tensors)
    again = Replayed(share=0.5, keep=3).fresh()
    again.load_state_dict(restore(structure, tensors))
    fresh = make(seed=2).but(records=tuple({"score": -i} for i in range(8)))
    one, two = (p.mix(fresh, 2, seeded(5)) for p in (part, again))
    assert torch.equal(one.advantage, two.advantage) and one.records == two.records and len(one) == 16


def test_a_batch_is_whole_after_a_checkpoint():
    batch = make(holes=True)
    tensors = {}
    again = Batch.from_state(restore(flatten(batch.state_dict(), tensors), tensors))
    for name, value in vars(batch).items():
        held = getattr(again, name)
        pairs = [(held, value)] if isinstance(value, torch.Tensor) else []
        pairs = [(held[k], value[k]) for k in value] if isinstance(value, dict) else pairs
        assert all(torch.equal(a, b) for a, b in pairs) and (bool(pairs) or not value)


@pytest.mark.parametrize("part", [Stale(lag=2, refresh=2), Replayed(share=0.5, keep=2)])
def test_training_with_it_runs_and_reports_staleness(part):
    task, recipe = ProbeContinuous(), GRPO.but(steps=6, batch_size=4, group_size=4, behaviour=part)
    policy, run = ActorCritic(hidden=(8,)).build(task, False, seeded()), Run(0)
    train(recipe, policy, task, run)
    assert run.metrics[-1]["staleness"] > 0


@pytest.mark.parametrize(
    ("make_part", "field"),
    [
        (lambda: Stale(lag=-1), "behaviour.lag"),
        (lambda: Stale(refresh=0), "behaviour.refresh"),
        (lambda: Replayed(share=1.0), "behaviour.share"),
        (lambda: Replayed(keep=0), "behaviour.keep"),
    ],
)
def test_settings_out_of_range_are_refused(make_part, field):
    with pytest.raises(UserError, match=field):
        make_part()
