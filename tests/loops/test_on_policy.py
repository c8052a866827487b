"""The on-policy loop: what happens in which order, how often, and when it refuses."""

from dataclasses import dataclass, field

import pytest
import torch

from partita.core.batch import Batch
from partita.core.registry import recipe as recipe_of
from partita.estimators.masked import whiten
from partita.loops import descent
from partita.loops.descent import Descent
from partita.loops.learner import Learner
from partita.loops.on_policy import OnPolicy, gather, train
from partita.loops.run import Generators, Run
from partita.loops.update import explained_variance, minibatches, update
from partita.papers.baselines.dapo import DAPO
from partita.papers.baselines.grpo import GRPO
from partita.papers.baselines.ppo import PPO
from partita.parts.aggregate import SequenceMean
from partita.parts.credit import GroupRelative, LeaveOneOut, MonteCarlo
from partita.parts.objective import ClippedSurrogate, Reinforce
from partita.parts.reference import Ema, Frozen, Reset
from partita.parts.regularisers import KL, Entropy
from partita.parts.rollout import Rollout, Sample, Segments
from partita.parts.select import DropDegenerate
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.probes import ProbeAction, ProbeContinuous, ProbeDelayed
from partita.tasks.language.arithmetic import Arithmetic

SMALL_PPO = PPO.but(rollout=Segments(steps=8), batch_size=6, steps=3)
SMALL_GRPO = GRPO.but(batch_size=4, group_size=4, steps=3, lr=1e-2)


def policy_for(task, recipe, seed=0):
    value = "value" in recipe.needs()
    return ActorCritic(hidden=(8,)).build(task, value, torch.Generator().manual_seed(seed))


def trained(recipe, task, seed=0, start=0):
    """Weights and metrics after training."""
    policy, run = policy_for(task, recipe, start), Run(seed)
    train(recipe, policy, task, run)
    return {n: p.clone() for n, p in policy.state_dict().items()}, run.metrics


def same(a, b):
    return all(torch.equal(a[n], b[n]) for n in a)


# ----- determinism and counts


@pytest.mark.parametrize("recipe", [SMALL_PPO, SMALL_GRPO], ids=["ppo", "grpo"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(recipe):
    task = ProbeContinuous()
    one, metrics = trained(recipe, task)
    torch.rand(3)  # the global generator is nobody's business
    two, again = trained(recipe, task)
    assert same(one, two) and metrics == again
    assert not same(one, trained(recipe, task, seed=1)[0])


@pytest.mark.parametrize(("epochs", "count"), [(1, 1), (3, 4), (2, 5)])
def test_updates_are_epochs_times_minibatches_and_every_step_is_seen_once_an_epoch(epochs, count, monkeypatch):
    applied, seen = [], []
    apply, losses = Learner.apply, descent.losses
    monkeypatch.setattr(Learner, "apply", lambda self: applied.append(1) or apply(self))

    def spy(recipe, policy, batch, weights, share, watch):
        seen.append(batch.inputs["obs"][:, 0, 0] + 1000 * batch.logp[:, 0])
        return losses(recipe, policy, batch, weights, share, watch)

    monkeypatch.setattr(descent, "losses", spy)
    trained(SMALL_PPO.but(epochs=epochs, minibatches=count, steps=2), ProbeContinuous())
    assert len(applied) == 2 * epochs * count
    per_epoch = [torch.cat(seen[i : i + count]).sort().values for i in range(0, len(seen), count)]
    assert all(len(x) == 48 for x in per_epoch)
    for e in range(1, epochs):
        assert torch.equal(per_epoch[e], per_epoch[0])
    if count > 1:
        assert not torch.equal(seen[0].sort().values, seen[count].sort().values)  # shuffled anew
        assert max(map(len, seen)) - min(map(len, seen)) <= 1


def test_minibatches_hold_whole_trajectories_when_a_part_asks():
    task = ProbeDelayed()
    policy = policy_for(task, SMALL_GRPO)
    batch, _, _ = gather(SMALL_GRPO.fresh(), policy, task, Generators(0), 1)
    recipe = SMALL_GRPO.but(minibatches=2)
    assert recipe.unit(policy) == "trajectory"
    rows = [(len(m), m.mask.shape[1], last) for m, last in minibatches(recipe, policy, batch, Generators(0))]
    assert rows == [(8, 4, False), (8, 4, True)]
    steps = recipe.but(aggregate=OnPolicy().aggregate)
    rows = [(len(m), m.mask.shape[1], last) for m, last in minibatches(steps, policy, batch, Generators(0))]
    assert rows == [(32, 1, False), (32, 1, True)]


# ----- what the loop fills


def test_returns_are_those_of_the_unwhitened_advantages():
    task = ProbeDelayed()
    recipe = SMALL_PPO.but(whiten="batch").fresh()
    policy = policy_for(task, recipe)
    batch, seen, _ = gather(recipe, policy, task, Generators(0), 1)
    raw = recipe.credit(batch)
    torch.testing.assert_close(batch.returns, raw + batch.value)
    torch.testing.assert_close(batch.advantage, whiten(raw, batch.mask))
    torch.testing.assert_close(seen.advantage, raw)


def test_explained_variance_by_hand():
    def of(returns, value):
        one = torch.tensor([returns])
        mask = torch.tensor([[True, True, True, False]])
        return float(explained_variance(Batch(mask=mask, returns=one, value=torch.tensor([value]))))

    assert of([1.0, 2.0, 6.0, 99.0], [1.0, 2.0, 6.0, -99.0]) == 1.0
    assert of([1.0, 2.0, 6.0, 99.0], [3.0, 3.0, 3.0, 0.0]) == pytest.approx(0.0)
    # residuals 1, 0, -1 with variance 1; returns 1, 2, 6 with variance 7
    assert of([1.0, 2.0, 6.0, 99.0], [0.0, 2.0, 7.0, 0.0]) == pytest.approx(1 - 1 / 7)


def test_metrics_do_not_depend_on_micro_batches():
    # Episodes of one and of three steps, so that the pieces differ.
    from partita.tasks.control.probes import ProbeDiscounted

    recipe = SMALL_GRPO.but(steps=2, epochs=2, credit=MonteCarlo(), regularisers=(Entropy(), KL()))
    task = ProbeDiscounted()
    _, whole = trained(recipe, task)
    _, split = trained(recipe.but(micro_batch=3), task)
    for a, b in zip(whole, split, strict=True):
        assert set(a) == set(b) and {"kl", "entropy", "clip_fraction", "ref_kl"} <= set(a)
        assert list(b.values()) == pytest.approx(list(a.values()), abs=2e-4)


# ----- reductions


def one_update(recipe, task):
    """Change of weights in one update that follows the gradient (a large eps takes Adam's normalisation out)."""
    recipe = recipe.but(steps=1, adam_eps=1e3, lr=1e3, max_grad_norm=None)
    before = policy_for(task, recipe).state_dict()
    return {n: w - before[n] for n, w in trained(recipe, task)[0].items()}


def test_one_epoch_of_ppo_is_an_actor_critic_step():
    ppo = SMALL_PPO.but(epochs=1, minibatches=1)
    a, b = (one_update(ppo.but(objective=o), ProbeContinuous()) for o in (ClippedSurrogate(), Reinforce()))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-6)
        assert a[name].abs().max() > 1e-4, name


def test_dapo_with_equal_clips_and_no_degenerate_groups_is_grpo_up_to_the_aggregate():
    sizes = dict(batch_size=4, group_size=4, steps=3, lr=1e-2, epochs=2)
    dapo = DAPO.but(objective=ClippedSurrogate(), aggregate=SequenceMean(), **sizes)
    task = ProbeContinuous()
    assert same(trained(dapo, task)[0], trained(GRPO.but(**sizes), task)[0])
    assert not same(trained(DAPO.but(**sizes, objective=Reinforce()), task)[0], trained(GRPO.but(**sizes), task)[0])


def test_centred_groups_are_leave_one_out_scaled():
    a = one_update(SMALL_GRPO.but(credit=GroupRelative(std=False)), ProbeContinuous())
    b = one_update(SMALL_GRPO.but(credit=LeaveOneOut()), ProbeContinuous())
    for name in a:
        torch.testing.assert_close(a[name], b[name] * 3 / 4, rtol=1e-3, atol=1e-6)


# ----- refilling and empty batches


@dataclass(frozen=True)
class Scripted(Rollout):
    """Returns of groups of two, given by attempt; the rest as `Sample` does it."""

    returns: tuple = ()
    _calls: list = field(init=False, default_factory=list, compare=False)

    def __call__(self, policy, task, problems, group_size, generator, needs):
        batch = Sample()(policy, task, problems, group_size, generator, needs)
        total = torch.tensor(self.returns[len(self._calls) % len(self.returns)])
        self._calls.append(1)
        return batch.but(reward=total[:, None], outcome=total)

    def metrics(self, batch):
        return {"return": float(batch.outcome.mean())}


MIXED, FLAT = (0.0, 1.0, 5.0, 5.0), (1.0, 1.0, 0.0, 0.0)


def filling(returns, rounds=3):
    return OnPolicy(
        rollout=Scripted(returns=returns), credit=GroupRelative(), select=DropDegenerate(rounds=rounds),
        objective=Reinforce(), batch_size=2, group_size=2, steps=1,
    )  # fmt: skip


def test_degenerate_groups_are_sampled_again_until_the_batch_is_full():
    recipe, task = filling((MIXED, FLAT, MIXED)).fresh(), ProbeAction()
    batch, seen, metrics = gather(recipe, policy_for(task, recipe), task, Generators(0), 1)
    assert len(recipe.rollout._calls) == 3
    assert batch.outcome.tolist() == [0.0, 1.0, 0.0, 1.0] and batch.group.tolist() == [0, 0, 4, 4]
    assert len(seen) == 12 and metrics["kept"] == pytest.approx(4 / 12) and metrics["rounds"] == 3
    assert metrics["return"] == pytest.approx((11 + 2 + 11) / 12)


def test_no_more_is_sampled_than_needed_nor_more_often_than_allowed():
    task = ProbeAction()
    for returns, rounds, calls, kept in (
        ((MIXED, MIXED, FLAT), 3, 2, 4),
        ((MIXED, FLAT), 2, 2, 2),
        ((MIXED,), 1, 1, 2),
    ):
        recipe = filling(returns, rounds).fresh()
        batch, _, _ = gather(recipe, policy_for(task, recipe), task, Generators(0), 1)
        assert (len(recipe.rollout._calls), len(batch)) == (calls, kept)


def test_a_batch_that_overflows_is_cut_to_its_size():
    both = (0.0, 1.0, 5.0, 6.0)
    recipe, task = filling((MIXED, both)).fresh(), ProbeAction()
    batch, seen, _ = gather(recipe, policy_for(task, recipe), task, Generators(0), 1)
    assert batch.outcome.tolist() == [0.0, 1.0, 0.0, 1.0] and len(seen) == 8


def test_an_empty_batch_skips_the_update_and_goes_on():
    task, recipe = ProbeContinuous(), filling((FLAT, FLAT, FLAT, MIXED)).but(steps=2)
    policy = policy_for(task, recipe)
    before = {n: p.clone() for n, p in policy.state_dict().items()}
    after_first = []

    class Watch(Run):
        def log(self, step, metrics, batch=None):
            super().log(step, metrics, batch)
            after_first.append(same(policy.state_dict(), before))

    run = Watch(0)
    train(recipe, policy, task, run)
    assert after_first == [True, False]
    assert "loss" not in run.metrics[0] and run.metrics[0]["kept"] == 0.0 and "loss" in run.metrics[1]


# ----- references


@pytest.mark.parametrize(("part", "moves"), [(Frozen(), []), (Reset(every=2), [2, 4]), (Ema(decay=0.5), [1, 2, 3, 4])])
def test_references_move_when_they_should(part, moves, monkeypatch):
    task, moved = ProbeContinuous(), []
    recipe = SMALL_GRPO.but(regularisers=(KL(),), reference=part, steps=4)
    kind = type(part)
    original = kind.update

    def spy(self, policy, step):
        before = {n: w.clone() for n, w in self.weights.items()}
        assert before
        original(self, policy, step)
        if not same(before, self.weights):
            moved.append(step)

    monkeypatch.setattr(kind, "update", spy)
    _, metrics = trained(recipe, task)
    assert moved == moves
    assert metrics[0]["ref_kl"] == pytest.approx(0.0, abs=1e-6) and metrics[1]["ref_kl"] != 0.0
    if isinstance(part, Reset):
        assert metrics[2]["ref_kl"] == pytest.approx(0.0, abs=1e-6) and abs(metrics[3]["ref_kl"]) > 1e-6


def test_a_strong_divergence_holds_the_policy_at_its_reference():
    task = ProbeAction()
    base = GRPO.but(batch_size=8, group_size=8, steps=40, lr=3e-2, objective=Reinforce())
    held = base.but(regularisers=(KL(weight=50.0, estimator="k2"),))
    drift = [trained(r.but(regularisers=r.regularisers or (KL(weight=0.0),)), task)[1][-1] for r in (base, held)]
    assert drift[0]["return"] > 0.9 and abs(drift[1]["return"]) < 0.6


# ----- settings and state


def test_settling_depends_on_the_domain_and_the_groups():
    task = ProbeAction()
    plain, grouped = OnPolicy().settle(task), GRPO.but(rollout=None).settle(task)
    assert isinstance(plain.rollout, Segments) and plain.batch_size == 64 and plain.lr is None
    assert isinstance(grouped.rollout, Sample) and grouped.batch_size == 16
    spoken = OnPolicy().settle(Arithmetic())
    assert isinstance(spoken.rollout, Sample) and spoken.batch_size == 32
    mine = OnPolicy(batch_size=5, steps=7, lr=0.5).settle(task, policy_for(task, OnPolicy()))
    assert (mine.batch_size, mine.steps, mine.lr) == (5, 7, 0.5)


def test_a_recipe_is_not_changed_by_training():
    recipe = recipe_of("ppo").but(rollout=Segments(steps=4), batch_size=4, steps=2)
    trained(recipe, ProbeAction())
    assert recipe.rollout.state_dict() == {} and recipe.lr is None


def test_a_stopped_run_takes_no_further_step():
    run = Run(0)
    policy = policy_for(ProbeAction(), SMALL_GRPO)
    run.stopped = True
    train(SMALL_GRPO, policy, ProbeAction(), run)
    assert run.metrics == []


def test_update_reports_the_learning_of_the_critic():
    task = ProbeContinuous()
    recipe = SMALL_PPO.settle(task, policy_for(task, SMALL_PPO)).fresh()
    policy = policy_for(task, recipe)
    learner = Learner(policy.trainable(), 1e-3, "constant", 0, 1, None, 0.0, (0.9, 0.999), 1e-8)
    batch, _, _ = gather(recipe, policy, task, Generators(0), 1)
    batch = batch.but(weight=recipe.focus(batch))
    metrics = update(recipe, policy, Descent(recipe, policy, learner), batch, Generators(0), 1)
    assert metrics["explained_variance"] == pytest.approx(float(explained_variance(batch)))
    assert {"loss", "grad_norm", "kl", "clip_fraction", "entropy"} <= set(metrics)


def test_random_streams_are_named_independent_and_resumable():
    one, two = Generators(3), Generators(3)
    torch.rand(5, generator=one["rollout"])
    assert torch.equal(torch.rand(4, generator=one["minibatch"]), torch.rand(4, generator=two["minibatch"]))
    assert not torch.equal(torch.rand(4, generator=one["a"]), torch.rand(4, generator=one["b"]))
    two.load_state_dict(one.state_dict())
    assert torch.equal(torch.rand(4, generator=one["rollout"]), torch.rand(4, generator=two["rollout"]))
