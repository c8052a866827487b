"""Evaluation: intervals against known values, streams of its own, and what it says of a policy."""

from __future__ import annotations

import math

import pytest
import torch

from partita.lab.evaluate import evaluate, interval
from partita.lab.train import train
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.classic import Cartpole


def test_wilson_interval_of_success():
    metric, mean, low, high = interval([1.0] * 7 + [0.0] * 3)
    z, n, p = 1.959963984540054, 10, 0.7
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (metric, mean) == ("success", pytest.approx(0.7))
    assert (low, high) == (pytest.approx(centre - half), pytest.approx(centre + half))


def test_t_interval_of_returns():
    metric, mean, low, high = interval([1.0, 2.0, 3.0, 6.0])
    half = 3.182446305284263 * math.sqrt(14 / 3) / 2  # t(0.975, 3), deviation sqrt(14 / 3), n = 4
    assert (metric, mean) == ("return", 3.0)
    assert (low, high) == (pytest.approx(3 - half), pytest.approx(3 + half))
    assert interval([2.5, 2.5])[1:] == (2.5, 2.5, 2.5)


def test_a_policy_that_balances_and_one_that_does_not():
    policy = ActorCritic(hidden=(4,)).build(Cartpole(), False, torch.Generator().manual_seed(0))
    first, last = policy.module.actor[0], policy.module.actor[-1]
    with torch.no_grad():  # push towards where the pole falls: sign(angle + angular velocity), a known good rule
        for layer in (first, last):
            layer.weight.zero_()
            layer.bias.zero_()
        first.weight[0] = torch.tensor([0.0, 0.0, 1.0, 0.5])
        last.weight[1, 0] = 1.0
    good = evaluate(policy, Cartpole(), 20, seed=1)
    with torch.no_grad():
        last.weight.neg_()
    bad = evaluate(policy, Cartpole(), 20, seed=1)
    assert good.mean > 150 > 20 > bad.mean
    assert good.low <= good.mean <= good.high
    assert good.length == pytest.approx(good.mean)


def test_evaluating_does_not_disturb_training(tmp_path):
    sizes = dict(steps=3, batch_size=4, threads=1)
    plain = train("ppo", "cartpole", out=tmp_path / "a", eval_size=0, **sizes)
    watched = train("ppo", "cartpole", out=tmp_path / "b", eval_size=3, eval_every=1, **sizes)
    a, b = plain.policy.state_dict(), watched.policy.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert plain.before is None
    assert watched.after is not None
    assert watched.after.count == 3
