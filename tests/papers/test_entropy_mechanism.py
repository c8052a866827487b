"""The entropy mechanism: covariances, both objectives and the law by hand; what entropy does after a step."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surrogates import case, drawn, gradient, late, learn, wider

from partita.core.batch import Outputs
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.lab.config import Config, Settings
from partita.papers.reasoning.entropy_mechanism import ClipCov, KLCov, Law, covariance, entropy_change, fit
from partita.parts.objective import Reinforce
from partita.policies.actor_critic import ActorCritic
from partita.policies.language import Language
from partita.tasks.control.probes import ProbeAction
from partita.tasks.language.arithmetic import Arithmetic
from partita.tasks.language.probes import ProbeBandit, ProbeCredit
from resuming import resumed_alike

LOGP, ADVANTAGE = [-1.0, -3.0, -2.0, -6.0], [2.0, -2.0, 1.0, -1.0]
# Means -3 and 0: centred 2, 0, 1, -3 and 2, -2, 1, -1.
COVARIANCE = [4.0, 0.0, 1.0, 3.0]


def plain(out, batch):
    """-w A, without any bound."""
    return -(out.logp - batch.logp).exp() * batch.advantage


def test_covariance_by_hand():
    logp, advantage = (torch.tensor([[*x, 99.0]], dtype=torch.float64) for x in (LOGP, ADVANTAGE))
    mask = torch.tensor([[True] * 4 + [False]])
    assert covariance(logp, advantage, mask).tolist() == [[*COVARIANCE, 0.0]]
    pair = torch.stack((logp[mask], advantage[mask]))
    torch.testing.assert_close(covariance(logp, advantage, mask).sum() / 4, torch.cov(pair, correction=0)[0, 1])


def test_kl_cov_by_hand():
    ratios = [1.5, 0.8, 2.0, 0.5]
    out, batch = case(ratios, ADVANTAGE, logp=LOGP)
    two = KLCov(share=0.5, coef=0.7)  # the first and the last
    loss = [-1.5 * 2 + 0.7 * math.log(1.5), 0.8 * 2, -2.0, 0.5 + 0.7 * math.log(2.0)]
    assert two(out, batch).tolist()[0] == pytest.approx(loss)
    # d|log w| / dlogp is the sign of log w.
    assert gradient(two, out, batch).tolist()[0] == pytest.approx([-3.0 + 0.7, 1.6, -2.0, 0.5 - 0.7])
    one = KLCov(share=1e-9)  # rounds to none, and one is the least
    assert one.chosen(out, batch).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize(
    ("estimator", "value", "slope"), [("k2", math.log(2) ** 2 / 2, -math.log(2)), ("k3", math.log(2) - 0.5, -0.5)]
)
def test_other_estimators_of_the_divergence(estimator, value, slope):
    out, batch = case([0.5], [0.0])
    part = KLCov(share=1.0, coef=3.0, estimator=estimator)
    assert float(part(out, batch)) == pytest.approx(3 * value)
    assert float(gradient(part, out, batch)) == pytest.approx(3 * slope)


def test_k3_is_unbiased_for_the_divergence_from_the_sampler():
    mu = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    pi = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    out, batch = case((pi / mu)[None].tolist(), [[0.0] * 3], logp=pi.log()[None].tolist())
    loss = KLCov(share=1.0, estimator="k3")(out, batch)[0]
    torch.testing.assert_close((mu * loss).sum(), (mu * (mu / pi).log()).sum())


@pytest.mark.parametrize("seed", range(3))
def test_kl_cov_reduces_to_the_plain_surrogate(seed):
    out, batch = drawn(seed)
    for part in (KLCov(share=0.0), KLCov(share=0.5, coef=0.0)):
        torch.testing.assert_close(part(out, batch) * batch.mask, plain(out, batch) * batch.mask)
    everywhere = (out.logp - batch.logp).abs() + plain(out, batch)
    torch.testing.assert_close(KLCov(share=1.0)(out, batch) * batch.mask, everywhere * batch.mask)
    assert torch.equal(gradient(ClipCov(share=0.0), out, batch), gradient(plain, out, batch))


@pytest.mark.parametrize("part", [KLCov(share=0.3), ClipCov(share=0.0), KLCov(share=0.3, estimator="k3")])
def test_on_policy_it_is_reinforce(part):
    out, batch = drawn(4, on_policy=True)
    torch.testing.assert_close(gradient(part, out, batch), gradient(Reinforce(), out, batch))


def test_clip_cov_by_hand():
    out, batch = case([1.5, 0.8, 2.0, 0.5], ADVANTAGE, logp=LOGP)
    part = ClipCov(share=1.0, low=1.0, high=3.5)  # the last two lie within; the first lies above
    assert part(out, batch).tolist()[0] == pytest.approx([-3.0, 1.6, 0.0, 0.0])
    assert gradient(part, out, batch).tolist()[0] == pytest.approx([-3.0, 1.6, 0.0, 0.0])
    assert plain(out, batch).abs().min() > 0.4


def test_clip_cov_draws_as_many_as_asked_uniformly_from_the_candidates():
    out, batch = case([1.0] * 8, [2.0, 2.0, 2.0, 2.0, -2.0, -2.0, -2.0, -2.0], logp=[-1.0] * 4 + [-2.0] * 4)
    part = ClipCov(share=0.375, low=0.5, high=5.0).fresh()  # every covariance is 1; 0.375 * 8 = 3
    counts = sum((part(out, batch) == 0).to(torch.float64) for _ in range(400))[0]
    assert float(counts.sum()) == 3 * 400
    assert all(abs(float(c) / 400 - 3 / 8) < 4 * math.sqrt(3 / 8 * 5 / 8 / 400) for c in counts)


def test_clip_cov_goes_on_where_it_was_and_starts_from_nothing_when_fresh():
    out, batch = case([1.0] * 8, [2.0] * 4 + [-2.0] * 4, logp=[-1.0] * 4 + [-2.0] * 4)

    def draws(part, times=6):
        return torch.cat([part(out, batch) for _ in range(times)])

    part = ClipCov(share=0.25, low=0.5)
    first = draws(part)
    state = part.state_dict()
    after, other = draws(part), ClipCov(share=0.25, low=0.5)
    other.load_state_dict(state)
    assert torch.equal(draws(other), after) and not torch.equal(first, after)
    assert torch.equal(draws(part.fresh()), first)
    assert not torch.equal(draws(part.but(seed=1)), first)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), share=st.floats(0.0, 1.0), shift=st.floats(-3.0, 3.0))
def test_padding_and_order_change_nothing_nor_does_a_shift_of_advantages_change_the_choice(seed, share, shift):
    out, batch = drawn(seed)
    for part in (KLCov(share=share), ClipCov(share=1.0, low=0.05, high=50.0)):  # all candidates: nothing is drawn
        loss = part(out, batch) * batch.mask
        more, wide = wider(out, batch, 3)
        torch.testing.assert_close((part(more, wide) * wide.mask)[:, :5], loss)
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
        turned = part(Outputs(out.logp[order]), batch[order]) * batch.mask[order]
        torch.testing.assert_close(turned, loss[order])
    shifted = batch.but(advantage=(batch.advantage + shift) * batch.mask)
    assert torch.equal(KLCov(share=share).chosen(out, shifted), KLCov(share=share).chosen(out, batch))


def test_gradients_against_finite_differences():
    out, batch = drawn(7)
    for part in (KLCov(share=0.4), KLCov(share=0.4, estimator="k3"), ClipCov(share=1.0, low=0.1)):
        assert torch.autograd.gradcheck(lambda x, part=part: part(Outputs(x), batch) * batch.mask, (out.logp,))


def test_entropy_changes_by_minus_the_covariance_to_first_order():
    g = torch.Generator().manual_seed(0)
    before, direction = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    gaps = []
    for size in (1e-2, 5e-3):
        measured, predicted = entropy_change(before, before + size * direction)
        gaps.append((measured - predicted).abs().max())
        assert (measured - predicted).abs().max() < 0.05 * measured.abs().max()
        assert bool((measured * predicted > 0).all())
    assert gaps[0] / gaps[1] == pytest.approx(4.0, rel=0.1)  # the rest is of second order
    moved, foretold = entropy_change(before + 5.0, before + 1e-2 * direction - 2.0)
    torch.testing.assert_close((moved, foretold), entropy_change(before, before + 1e-2 * direction))


def test_policy_gradient_makes_entropy_fall_with_what_is_likely_and_good():
    logits = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    p, eta = logits.softmax(0), 1e-4
    for reward, sign in (([1.0, 0.0, 0.0], -1), ([0.0, 0.0, 1.0], 1)):
        advantage = torch.tensor(reward, dtype=torch.float64)
        advantage = advantage - (p * advantage).sum()
        measured, predicted = entropy_change(logits, logits + eta * p * advantage)  # the gradient of p . reward
        mean = (p * p * advantage).sum()
        theorem = -eta * (p * (p.log() - (p * p.log()).sum()) * (p * advantage - mean)).sum()
        assert float(predicted) == pytest.approx(float(theorem)) and float(measured) * sign > 0
        assert float(measured) == pytest.approx(float(theorem), rel=1e-3)


def test_the_law_is_found_again_and_says_where_it_ends():
    rows = [{"entropy": h, "success": -0.3 * math.exp(h) + 0.9} for h in (1.0, 0.7, 0.2, 0.05)]
    law = fit([*rows, {"entropy": 3.0}, {"success": 0.0}])
    assert (law.a, law.b, law.r2) == pytest.approx((0.3, 0.9, 1.0))
    assert law.at(0.0) == pytest.approx(0.6) and law.at(math.log(2.0)) == pytest.approx(0.3)


def test_the_fit_is_of_least_squares():
    # exp(H) = 1, 2, 3 against 1, 0, 0.5: slope -0.25 through (2, 0.5); 0.375 of 0.5 is left over.
    rows = [{"entropy": math.log(x), "return": y} for x, y in ((1, 1.0), (2, 0.0), (3, 0.5))]
    assert fit(rows, "return") == Law(pytest.approx(0.25), pytest.approx(1.0), pytest.approx(0.25))
    for few in ([], [{"entropy": 1.0, "success": 1.0}], [{"entropy": 1.0, "success": 0.5}] * 3):
        with pytest.raises(ValueError, match="two or more"):
            fit(few)


@pytest.mark.parametrize(("name", "changes"), [("entropy_mechanism", {"share": 0.1}), ("clip_cov", {"share": 0.1})])
def test_probes_are_learnt(name, changes):
    objective = recipe_of(name).objective.but(**changes)
    run = learn(name, ProbeBandit(), steps=12, objective=objective, minibatches=2)
    assert run.metrics[0]["return"] < 0.45 and late(run) > 0.9 and run.metrics[0]["covariance"] != 0


def test_two_tokens_are_learnt_with_a_divergence_on_the_few():
    run = learn("entropy_mechanism", ProbeCredit(), steps=30, objective=KLCov(share=0.02), minibatches=2, lr=5e-3)
    assert late(run) > 0.9


def test_a_run_stopped_and_resumed_draws_as_if_it_had_not_stopped(tmp_path):
    recipe = recipe_of("clip_cov").but(
        objective=ClipCov(share=0.3, low=-50.0, high=50.0), steps=4, batch_size=2, group_size=4, minibatches=2, lr=1e-3
    )
    resumed_alike(Config("clip_cov", recipe, Arithmetic(level=1), Language(), Settings(seed=2000)), tmp_path)


def test_the_minibatch_is_judged_as_a_whole():
    from partita.loops.on_policy import train
    from partita.loops.run import Run

    task = ProbeAction()
    policy = ActorCritic().build(task, False, torch.Generator().manual_seed(0))
    for name, part in (("entropy_mechanism", "kl_cov"), ("clip_cov", "clip_cov")):
        recipe = recipe_of(name).but(steps=1, batch_size=4, minibatches=1)
        with pytest.raises(UserError, match=f"{part} looks at a whole minibatch"):
            train(replace(recipe, micro_batch=2), policy, task, Run(0))
        train(recipe, policy, task, Run(0))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: KLCov(share=1.5), "share"),
        (lambda: KLCov(coef=-1.0), "coef"),
        (lambda: KLCov(estimator="k1"), "estimator"),
        (lambda: ClipCov(share=-0.1), "share"),
        (lambda: ClipCov(low=5.0, high=1.0), "high"),
    ],
)
def test_settings_out_of_range_name_the_field(make, field):
    with pytest.raises(UserError, match=rf"objective\.{field}: expected .* got"):
        make()
