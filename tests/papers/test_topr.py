"""TOPR: the tapered ratio by hand, the rows of its table, and why naive off-policy REINFORCE does not last."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surrogates import case, drawn, gradient, late, learn, wider

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.papers.reasoning.topr import SignedBaseline, Tapered, effective_positives
from partita.parts.behaviour import Stale
from partita.parts.objective import Reinforce
from partita.tasks.language.probes import ProbeBandit, ProbeDelayedVerifier

NAIVE, POSITIVES = Tapered(negative_low=1.0), Tapered(negative_high=0.0)


def test_weight_loss_and_gradient_by_hand():
    # Trajectory ratios 4 and 0.25 with A = 1; 2 * 0.25 = 0.5 and 2 * 3 = 6 with A = -2; log-probs are -1.
    out, batch = case([[8.0, 0.5], [0.5, 0.5], [2.0, 0.25], [2.0, 3.0]], [[1.0] * 2, [1.0] * 2, [-2.0] * 2, [-2.0] * 2])
    assert Tapered().weight(out, batch)[:, 0].tolist() == pytest.approx([1.0, 1.0, 0.5, 1.0])
    assert Tapered()(out, batch)[:, 1].tolist() == pytest.approx([1.0, 1.0, -1.0, -2.0])
    torch.testing.assert_close(
        gradient(Tapered(), out, batch),
        torch.tensor([[-1.0] * 2, [-1.0] * 2, [1.0] * 2, [2.0] * 2], dtype=torch.float64),
    )


def test_the_limits_of_both_signs_by_hand():
    part = Tapered(positive_low=0.5, positive_high=2.0, negative_low=0.1, negative_high=0.3)
    ratios, advantages = [[4.0], [1.5], [0.1], [0.2], [0.05], [7.0]], [[1.0]] * 3 + [[-1.0]] * 3
    out, batch = case(ratios, advantages)
    assert part.weight(out, batch)[:, 0].tolist() == pytest.approx([2.0, 1.5, 0.5, 0.2, 0.1, 0.3])


def test_the_ratio_is_the_product_over_the_steps_that_were_acted():
    out, batch = case([[0.5, 100.0, 0.5]], [[-1.0] * 3], mask=[[1, 0, 1]])
    assert Tapered().weight(out, batch)[0, 0] == pytest.approx(0.25)


def test_an_advantage_of_zero_counts_as_good():
    out, batch = case([[0.1]], [[0.0]])
    assert float(Tapered().weight(out, batch)) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_on_policy_it_is_reinforce(seed):
    out, batch = drawn(seed, on_policy=True)
    torch.testing.assert_close(gradient(Tapered(), out, batch), gradient(Reinforce(), out, batch))


@pytest.mark.parametrize("seed", range(3))
def test_the_other_rows_of_the_table(seed):
    out, batch = drawn(seed)
    everywhere = gradient(Reinforce(), out, batch)
    assert torch.equal(gradient(NAIVE, out, batch), everywhere)
    assert torch.equal(gradient(POSITIVES, out, batch), everywhere * (batch.advantage > 0))
    ratio = ((out.logp - batch.logp) * batch.mask).sum(1, keepdim=True).exp().detach()
    truncated = recipe_of("topr_truncated").objective
    torch.testing.assert_close(gradient(truncated, out, batch), everywhere * ratio.clamp(max=1.0))
    tapered = torch.where(batch.advantage < 0, ratio.clamp(max=1.0), torch.ones_like(ratio))
    torch.testing.assert_close(gradient(Tapered(), out, batch), everywhere * tapered)
    assert {n: recipe_of(n).objective for n in ("topr_naive", "topr_positives")} == {
        "topr_naive": NAIVE, "topr_positives": POSITIVES,
    }  # fmt: skip


def descend(objective, steps, lr=0.5):
    """Expected descent on a bandit of three arms, the first good, with data of the uniform policy for ever."""
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    batch = Batch(
        mask=torch.ones(3, 1, dtype=torch.bool),
        logp=torch.full((3, 1), -math.log(3.0), dtype=torch.float64),
        advantage=torch.tensor([[1.0], [-1.0], [-1.0]], dtype=torch.float64),
    )
    for _ in range(steps):
        out = Outputs(logits.log_softmax(0)[:, None])
        grad = torch.autograd.grad(objective(out, batch).mean(), logits)[0]
        with torch.no_grad():
            logits -= lr * grad
    return logits.detach().log_softmax(0)


def test_offline_the_naive_estimator_runs_away_and_the_tapered_one_settles():
    halves = {part: (descend(part, 400), descend(part, 800)) for part in (NAIVE, Tapered(), POSITIVES)}
    for before, after in halves.values():
        assert before[0].exp() > 0.9  # all find the good arm here
        assert after[1] < before[1]
    # Away from the good arm the naive loss falls at the same rate for ever; the tapered one is bounded.
    naive, tapered, positives = ((b[1] - a[1]) for b, a in halves.values())
    assert naive > 100 and tapered < 1 and positives < 1
    assert halves[Tapered()][1][0] > halves[POSITIVES][1][0]  # and bad arms teach too


def test_bad_trajectories_that_are_gone_are_left_alone():
    ratios = [[1.0], [1e-2], [1e-6], [1e-30]]
    out, batch = case(ratios, [[-1.0]] * 4)
    assert gradient(Tapered(), out, batch)[:, 0].tolist() == pytest.approx([1.0, 1e-2, 1e-6, 1e-30])
    assert float(Tapered().metrics(out, batch)["negative_weight"]) == pytest.approx(1.010001 / 4)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_padding_and_order_change_nothing(seed):
    out, batch = drawn(seed)
    loss = Tapered()(out, batch) * batch.mask
    more, wide = wider(out, batch, 3)
    torch.testing.assert_close((Tapered()(more, wide) * wide.mask)[:, :5], loss)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(Tapered()(Outputs(out.logp[order]), batch[order]) * batch.mask[order], loss[order])


def test_credit_by_hand():
    batch = Batch(
        mask=torch.tensor([[True, True], [True, False], [True, True]]),
        reward=torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.25]], dtype=torch.float64),
    )
    assert SignedBaseline()(batch).tolist() == [[1.0, 1.0], [-1.0, 0.0], [-0.5, -0.5]]
    assert SignedBaseline(-0.5)(batch).tolist() == [[1.5, 1.5], [-0.5, 0.0], [0.0, 0.0]]
    assert SignedBaseline(-1.0)(batch)[1].tolist() == [0.0, 0.0]  # wrong trajectories count nothing


@settings(max_examples=20, deadline=None, derandomize=True)
@given(right=st.integers(1, 20), wrong=st.integers(1, 20), baseline=st.floats(-1.0, 1.0))
def test_the_baseline_sets_the_composition_of_the_data(right, wrong, baseline):
    reward = torch.tensor([1.0] * right + [0.0] * wrong, dtype=torch.float64)[:, None]
    weight = SignedBaseline(baseline)(Batch(mask=torch.ones_like(reward, dtype=torch.bool), reward=reward)).abs()
    share = float(weight[:right].sum() / weight.sum())
    assert effective_positives(right / (right + wrong), baseline) == pytest.approx(share, abs=1e-9)


def test_effective_positives_at_its_ends():
    assert effective_positives(0.3, 0.0) == pytest.approx(0.3)
    assert effective_positives(0.3, -1.0) == 1.0 and effective_positives(0.3, 1.0) == 0.0
    assert effective_positives(0.5, 0.8) == pytest.approx(0.1)
    for share, baseline, field in ((1.2, 0.0, "share"), (0.5, -2.0, "baseline"), (1.0, 1.0, "baseline")):
        with pytest.raises(ValueError, match=field):
            effective_positives(share, baseline)


@pytest.mark.parametrize("name", ["topr", "topr_positives"])
def test_one_token_is_learnt_from_the_first_policy_alone(name):
    run = learn(name, ProbeBandit(), steps=24, behaviour=Stale(lag=0, refresh=12))
    assert [row["return"] < 0.45 for row in run.metrics[:12]] == [True] * 12 and late(run) > 0.9


def test_a_late_verdict_is_learnt_on_policy():
    run = learn("topr", ProbeDelayedVerifier(), steps=30)
    assert run.metrics[0]["return"] < 0.45 and late(run) > 0.9


def test_settings_out_of_range_name_the_field():
    for changes, field in (
        ({"positive_low": 2.0}, "positive_high"),
        ({"positive_high": math.inf}, "positive_high"),
        ({"negative_low": -0.1}, "negative_high"),
        ({"negative_high": -1.0}, "negative_high"),
    ):
        with pytest.raises(UserError, match=rf"objective\.{field}: expected .* got"):
            Tapered(**changes)
    for baseline in (-1.5, 1.01):
        with pytest.raises(UserError, match=r"credit\.baseline: expected a number from -1 to 1, got"):
            SignedBaseline(baseline)
