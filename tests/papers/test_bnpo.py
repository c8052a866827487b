"""BNPO: the Beta density by hand, what it contains, and that it learns."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.reasoning.bnpo import BetaNormalised, fitted, from_grpo, from_the_optimum, log_density, variance
from partita.parts.credit import GroupRelative
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.control.probes import ProbeAction
from partita.tasks.language.probes import ProbeBandit, ProbeCredit


def batch_of(*groups, records=None):
    """A batch of one-step trajectories with the rewards of each group."""
    reward = torch.tensor([r for group in groups for r in group], dtype=torch.float64)[:, None]
    group = torch.tensor([i for i, rewards in enumerate(groups) for _ in rewards])
    return Batch(mask=torch.ones_like(reward, dtype=torch.bool), reward=reward, group=group, records=records)


def test_advantages_by_hand():
    batch = batch_of([1, 0, 0, 0], [1, 1, 0, 0])
    p = (0.25, 0.5)
    mean, var = 0.375, 2 * 0.125**2  # (n - 1) variance of two numbers
    k = mean * (1 - mean) / var - 1  # 6.5
    alpha, beta = 1 + k * mean / 3, 1 + k * (1 - mean) / 3
    beta_function = math.gamma(alpha) * math.gamma(beta) / math.gamma(alpha + beta)
    density = [q ** (alpha - 1) * (1 - q) ** (beta - 1) / beta_function for q in p]
    expected = [0.75 / density[0], *[-0.25 / density[0]] * 3, *[0.5 / density[1]] * 2, *[-0.5 / density[1]] * 2]
    assert k == pytest.approx(6.5)
    torch.testing.assert_close(BetaNormalised()(batch)[:, 0], torch.tensor(expected, dtype=torch.float64))


def test_the_fit_has_the_moments_of_the_rates():
    rate = torch.tensor([0.1, 0.4, 0.5, 0.7, 0.75], dtype=torch.float64)
    a, b = fitted(rate)
    torch.testing.assert_close(a / (a + b), rate.mean())
    torch.testing.assert_close(a * b / ((a + b) ** 2 * (a + b + 1)), rate.var())


def test_the_density_is_that_of_the_beta_distribution():
    rate = torch.tensor([0.05, 0.5, 0.9], dtype=torch.float64)
    alpha, beta = torch.tensor(2.5, dtype=torch.float64), torch.tensor(1.25, dtype=torch.float64)
    theirs = torch.distributions.Beta(alpha, beta).log_prob(rate)
    torch.testing.assert_close(log_density(rate, alpha, beta), theirs)


def test_with_ones_it_is_the_reward_minus_the_mean_and_with_three_halves_grpo():
    batch = batch_of([1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1])
    torch.testing.assert_close(BetaNormalised(1.0, 1.0)(batch), GroupRelative(std=False)(batch))
    assert from_grpo(3) < 1e-9
    ours, theirs = BetaNormalised(1.5, 1.5)(batch), GroupRelative(eps=0.0, unbiased=False)(batch[:8])
    torch.testing.assert_close(ours[:8], math.pi / 8 * theirs)
    assert not ours[8:].any()


def test_the_density_follows_the_batch():
    """The same group gets less in a batch whose rates crowd around its own."""
    near = BetaNormalised()(batch_of([1, 0], [1, 0], [1, 1, 1, 0, 0]))[0, 0]
    far = BetaNormalised()(batch_of([1, 0], [1, 1], [0, 0, 0]))[0, 0]
    assert 0 < near < far == 0.5  # rates of 1/2, 1 and 0 vary too much for any Beta: no normalisation


def test_one_question_and_equal_rates_are_finite():
    assert BetaNormalised()(batch_of([1, 0, 0, 0]))[:, 0].tolist() == [0.75, -0.25, -0.25, -0.25]
    out = BetaNormalised()(batch_of([1, 0], [0, 1], [1, 0]))
    assert bool(out.isfinite().all()) and out[0] > 0 > out[1]
    assert not BetaNormalised()(batch_of([0, 0], [0, 0])).any()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_rewards_may_mean_anything_between_low_and_high(seed, scale, shift):
    g = torch.Generator().manual_seed(seed)
    plain = batch_of(*(torch.rand(6, 4, generator=g) < 0.4).double().tolist())
    moved = plain.but(reward=plain.reward * scale + shift)
    out = BetaNormalised()(plain)
    torch.testing.assert_close(BetaNormalised(low=shift, high=shift + scale)(moved), out, rtol=1e-6, atol=1e-8)
    order = torch.randperm(24, generator=g)
    torch.testing.assert_close(BetaNormalised()(plain[order]), out[order])
    assert float(out.sum()) == pytest.approx(0.0, abs=1e-9)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_failure_and_success_are_mirror_images(seed):
    g = torch.Generator().manual_seed(seed)
    batch = batch_of(*(torch.rand(6, 4, generator=g) < 0.3).double().tolist())
    torch.testing.assert_close(BetaNormalised()(batch.but(reward=1 - batch.reward)), -BetaNormalised()(batch))


def test_components_are_normalised_one_by_one():
    right, form = [1, 0, 0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 1, 0, 1, 1]
    records = tuple({"parts": {"answer": float(r), "format": float(f)}} for r, f in zip(right, form, strict=True))
    batch = batch_of([9, 9, 9, 9], [9, 9, 9, 9], records=records)
    each = [BetaNormalised()(batch_of(x[:4], x[4:])) for x in (right, form)]
    out = BetaNormalised(components=("answer", "format"))(batch)
    torch.testing.assert_close(out, (each[0] + each[1]) / 2)
    one = BetaNormalised(components=("answer",))(batch)
    torch.testing.assert_close(one, each[0])
    with pytest.raises(UserError, match=r"credit.components: the task gives no partial score `forma`; did you mean"):
        BetaNormalised(components=("forma",))(batch)


def test_the_variance_is_the_integral_and_least_at_the_stated_parameters():
    a, b, alpha, beta = 2.0, 3.0, 1.4, 1.7
    p = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    log = log_density(p, *torch.tensor([alpha, beta], dtype=torch.float64))
    integral = (p * (1 - p) * (-2 * log).exp() * p ** (a - 1) * (1 - p) ** (b - 1)).mean()
    assert variance(alpha, beta, a, b) == pytest.approx(float(integral), rel=1e-4)
    least = variance(1 + a / 3, 1 + b / 3, a, b)
    assert all(variance(1 + a / 3 + x, 1 + b / 3 + y, a, b) > least for x in (-0.1, 0.1) for y in (-0.1, 0.1))
    assert variance((a + 3) / 2, 1.0, a, b) == math.inf
    assert from_the_optimum(2005) < 1e-3


@pytest.mark.parametrize("task", [ProbeBandit(), ProbeCredit()], ids=["bandit", "credit"])
def test_it_learns(task):
    recipe = recipe_of("bnpo").but(batch_size=12, lr=1e-2, steps=20 if isinstance(task, ProbeBandit) else 45)
    model = tiny_model(tiny_config("qwen2", hidden=32, layers=1, heads=2, context=32))
    run = Run(0)
    train(recipe, LanguagePolicy(model, character_tokenizer(context=32), Language()), task, run)
    assert run.metrics[0]["return"] < 0.45
    assert sum(m["return"] for m in run.metrics[-3:]) / 3 > 0.9


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match=r"credit.alpha: expected a number above 0, or None to fit it, got 0"):
        BetaNormalised(alpha=0.0)
    with pytest.raises(UserError, match=r"credit.high: expected more than low = 1.0, got 1.0"):
        BetaNormalised(low=1.0)
    with pytest.raises(UserError, match=r"credit.most"):
        BetaNormalised(most=0.0)
    bnpo = recipe_of("bnpo")
    assert "group-size 2" in BetaNormalised().refuses(bnpo.but(group_size=1), ProbeBandit())
    assert "language only" in BetaNormalised(components=("x",)).refuses(bnpo, ProbeAction())
