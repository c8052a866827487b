"""Negative-aware fine-tuning: losses by hand, the policies that it splits, and GRPO's gradient on-policy."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surrogates import case, drawn, gradient, late, learn, wider

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.hybrid.nft import NegativeAware, gradient_gap
from partita.parts.behaviour import Stale
from partita.parts.credit import GroupRelative, LeaveOneOut
from partita.parts.objective import ClippedSurrogate, Reinforce
from partita.tasks.language.probes import ProbeBandit, ProbeCredit


def answers(*groups, steps=2, seed=0, on_policy=False):
    """Trajectories with rewards 0 or 1 by group, and advantages r - mean(r); float64."""
    reward = torch.tensor([float(r) for group in groups for r in group], dtype=torch.float64)
    group = torch.tensor([i for i, rewards in enumerate(groups) for _ in rewards])
    g = torch.Generator().manual_seed(seed)
    logp = -torch.rand(len(reward), steps, generator=g, dtype=torch.float64) - 0.5
    near = torch.zeros_like(logp) if on_policy else 0.2 * torch.randn(logp.shape, generator=g, dtype=torch.float64)
    rewards = torch.cat((torch.zeros(len(reward), steps - 1, dtype=torch.float64), reward[:, None]), 1)
    batch = Batch(mask=torch.ones_like(logp, dtype=torch.bool), logp=logp - near, reward=rewards, group=group)
    return Outputs(logp.requires_grad_()), batch.but(advantage=GroupRelative(std=False)(batch))


def test_loss_and_gradient_by_hand():
    # r_q = 0.25: right answers have A = 0.75, wrong ones -0.25; omega = 0.75.
    out, batch = case([1.5, 0.5, 1.0, 2.0], [0.75, -0.25, -0.25, -0.25])
    loss = NegativeAware()(out, batch).tolist()[0]
    implied = (1 - 0.25 * 0.5) / 0.75
    assert loss == pytest.approx([-0.75 * math.log(1.5), -0.75 * math.log(implied), 0.0, 0.0])  # max(0.667, 1) = 1
    # Right: -omega. Wrong: omega r R / (1 - r) / max((1 - r R) / (1 - r), 1).
    push = [0.75 * 0.25 * r / 0.75 / max((1 - 0.25 * r) / 0.75, 1.0) for r in (0.5, 1.0, 2.0)]
    assert gradient(NegativeAware(), out, batch).tolist()[0] == pytest.approx([-0.75, *push])
    assert push == pytest.approx([0.125 / implied, 0.25, 0.5])


def test_the_clip_bounds_the_value_and_keeps_the_gradient():
    # r_q = 0.5, R = 1.9: (1 - 0.95) / 0.5 = 0.1. At R = 3 it is -1, and only the clip keeps it positive.
    out, batch = case([1.9, 3.0], [-0.5, -0.5])
    for eps, value in ((1.0, 1.0), (0.2, 0.2), (0.05, 0.1)):
        part = NegativeAware(eps=eps)
        assert float(part(out, batch)[0, 0].detach()) == pytest.approx(-0.5 * math.log(value))
        assert float(gradient(part, out, batch)[0, 0]) == pytest.approx(0.5 * 1.9 / value * 0.5 / 0.5)
    assert gradient(NegativeAware(), out, batch).tolist()[0][1] == pytest.approx(0.5 * 3.0)
    assert float(NegativeAware().metrics(out, batch)["clip_fraction"]) == 1.0
    assert float(NegativeAware(eps=0.05).metrics(out, batch)["clip_fraction"]) == 0.5


def test_the_success_rate_is_read_from_the_advantage():
    _, batch = answers([1, 0, 0, 0, 0], [1, 1, 1, 0], [1, 0])
    rate, omega = NegativeAware().weights(batch.advantage)
    assert rate[:, 0].tolist() == pytest.approx([0.2] * 5 + [0.75] * 4 + [0.5] * 2)
    torch.testing.assert_close(omega, 1 - rate)
    torch.testing.assert_close(NegativeAware(omega="root").weights(batch.advantage)[1], ((1 - rate) / rate).sqrt())
    assert bool((NegativeAware(omega="one").weights(batch.advantage)[1] == 1).all())


def test_both_policies_mix_to_the_sampler():
    """Over all actions of a state, the policy that wrong answers imply sums to one, whatever the right one is."""
    g = torch.Generator().manual_seed(0)
    mu, pi = (torch.randn(5, generator=g, dtype=torch.float64).mul(0.2).softmax(0) for _ in range(2))
    rate = 0.3
    out, batch = case((pi / mu)[None].tolist(), [[-rate] * 5], logp=pi.log()[None].tolist())
    implied = (-NegativeAware(eps=1e-6, omega="one")(out, batch)[0]).exp() * mu
    torch.testing.assert_close(implied.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(rate * pi + (1 - rate) * implied, mu)


@pytest.mark.parametrize("seed", range(3))
def test_on_policy_its_gradient_is_dr_grpos(seed):
    out, batch = answers([1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0], [1, 1], seed=seed, on_policy=True)
    mine = gradient(NegativeAware(), out, batch)
    torch.testing.assert_close(mine, -batch.advantage, rtol=1e-9, atol=1e-12)
    for theirs in (ClippedSurrogate(), Reinforce()):
        torch.testing.assert_close(mine, gradient(theirs, out, batch), rtol=1e-9, atol=1e-12)
    assert mine.abs().max() > 0.1


@pytest.mark.parametrize("eps", [1.0, 0.5])
def test_on_policy_with_the_root_weight_its_gradient_is_grpos(eps):
    out, batch = answers([1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0], [1, 1], on_policy=True)
    grpo = batch.but(advantage=GroupRelative(eps=0.0, unbiased=False)(batch).nan_to_num())
    mine = gradient(NegativeAware(omega="root", eps=eps), out, batch)
    torch.testing.assert_close(mine, gradient(ClippedSurrogate(), out, grpo), rtol=1e-9, atol=1e-12)


def test_off_policy_it_is_not_grpo():
    out, batch = answers([1, 0, 0, 0])
    mine, theirs = gradient(NegativeAware(), out, batch), gradient(ClippedSurrogate(0.9, 9.0), out, batch)
    assert (mine - theirs).abs().max() > 1e-2


def test_on_a_language_model_the_gradients_agree():
    assert gradient_gap(2000) < 1e-6


def test_groups_without_a_signal_say_nothing():
    out, batch = answers([1, 1, 1], [0, 0, 0])
    assert not NegativeAware()(out, batch).any() and not gradient(NegativeAware(), out, batch).any()


def test_without_wrong_answers_it_is_the_likelihood_of_the_right_ones():
    out, batch = answers([1, 0, 0, 0], [1, 1, 0])
    rejection = recipe_of("rejection_tuning").objective
    right = (batch.advantage > 0).to(torch.float64)
    assert torch.equal(gradient(rejection, out, batch), -right)
    half = gradient(NegativeAware(negative=0.5), out, batch)
    torch.testing.assert_close(half, gradient(NegativeAware(), out, batch) * (0.5 + 0.5 * right))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), eps=st.floats(0.01, 1.0), omega=st.sampled_from(["linear", "root", "one"]))
def test_padding_and_order_change_nothing_and_signs_are_those_of_advantages(seed, eps, omega):
    out, batch = drawn(seed)
    batch = batch.but(advantage=batch.advantage.clamp(-0.9, 0.9))
    part = NegativeAware(eps=eps, omega=omega)
    loss = part(out, batch) * batch.mask
    assert bool(loss.isfinite().all()) and bool((gradient(part, out, batch) * batch.advantage <= 0).all())
    more, wide = wider(out, batch, 3)
    torch.testing.assert_close((part(more, wide) * wide.mask)[:, :5], loss)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    turned = part(Outputs(out.logp[order]), batch[order]) * batch.mask[order]
    torch.testing.assert_close(turned, loss[order])


def test_gradients_against_finite_differences_where_nothing_is_clipped():
    out, batch = answers([1, 0, 0, 0], [1, 1, 0])
    part = NegativeAware(eps=1e-3)
    assert torch.autograd.gradcheck(lambda x: part(Outputs(x), batch), (out.logp,))


def test_very_likely_wrong_answers_and_extreme_rates_stay_finite():
    out, batch = case([1e9, 1e9, 1e-9], [-0.999, 0.9999, -0.999])
    assert bool(gradient(NegativeAware(), out, batch).isfinite().all())


@pytest.mark.parametrize("name", ["nft", "rejection_tuning"])
def test_one_token_is_learnt(name):
    run = learn(name, ProbeBandit(), steps=16)
    assert run.metrics[0]["return"] < 0.45 and late(run) > 0.9


def test_it_learns_from_stale_answers_and_scores_between():
    assert late(learn("nft", ProbeBandit(), steps=24, behaviour=Stale(refresh=4), lr=5e-3)) > 0.9
    assert late(learn("nft", ProbeCredit(), steps=45)) > 0.9


@pytest.mark.parametrize("changes", [{"credit": GroupRelative()}, {"credit": LeaveOneOut()}, {"whiten": "batch"}])
def test_advantages_that_do_not_tell_the_rate_are_refused(changes):
    from surrogates import learner

    recipe = recipe_of("nft").but(steps=1, batch_size=2, **changes)
    with pytest.raises(UserError, match=r"reads a question's success rate .* use --credit group_relative"):
        train(recipe, learner(), ProbeBandit(), Run(0))


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"eps": 0.0}, "eps"), ({"eps": 1.5}, "eps"), ({"omega": "two"}, "omega"), ({"negative": -1.0}, "negative")],
)
def test_settings_out_of_range_name_the_field(changes, field):
    with pytest.raises(UserError, match=rf"objective\.{field}: expected .* got"):
        NegativeAware(**changes)
