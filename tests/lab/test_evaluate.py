"""Evaluation: intervals against known values, streams of its own, and what it says of a policy."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from partita.lab.evaluate import evaluate, interval
from partita.lab.progress import said
from partita.lab.run import read_rows
from partita.lab.train import train
from partita.policies.actor_critic import ActorCritic
from partita.policies.language import Language
from partita.tasks.control.classic import Cartpole
from partita.tasks.control.probes import ProbeAction
from partita.tasks.preferences.lab import Lab


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


def test_intervals_are_those_of_scipy_stats_to_the_bit():
    for count in (1, 2, 17, 200):
        for right in range(0, count + 1, max(1, count // 7)):
            found = stats.binomtest(right, count).proportion_ci(method="wilson")
            assert interval([1.0] * right + [0.0] * (count - right))[2:] == (found.low, found.high)
        scores = [float(i * i) for i in range(count + 1)] + [0.5]
        _, mean, low, high = interval(scores)
        spread = float(torch.tensor(scores, dtype=torch.float64).std())
        half = float(stats.t.ppf(0.975, count + 1)) * spread / (count + 2) ** 0.5
        assert (low, high) == (mean - half, mean + half)


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


def test_how_far_a_policy_has_drifted_is_measured_on_what_it_samples(tmp_path):
    settings = dict(steps=4, batch_size=8, lr=3e-3, threads=1, eval_every=2, eval_size=64, eval_sampled=True)
    result = train("reinforce", Lab(size=4, judge="proxy"), out=tmp_path / "run", **settings)
    rows = read_rows(tmp_path / "run" / "evaluations.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4] and rows[0]["drift"] == pytest.approx(0.0, abs=1e-5)
    assert set(rows[0]["parts"]) == {"gold", "proxy", "covered", "class"}
    assert rows[0]["parts"]["gold"] == pytest.approx(rows[0]["mean"], abs=1e-5)
    first = Language().build(None, False, torch.Generator())
    policy, size = result.policy, 4000  # the same number from many more samples
    found = evaluate(policy, Lab(size=4), size, 1, greedy=False, first=first.state_dict())
    assert rows[1]["drift"] > 0.0 and found.drift == pytest.approx(rows[2]["drift"], rel=0.5)
    same = evaluate(policy, Lab(size=4), 32, 1, greedy=False, first=policy.state_dict())
    assert same.drift == pytest.approx(0.0, abs=1e-5)
    assert evaluate(policy, Lab(size=4), 8, 1).drift is None


def test_drift_against_a_closed_form():
    """Two actions, one step: KL of Bernoulli distributions."""
    task = ProbeAction()
    policy = ActorCritic(hidden=(4,)).build(task, False, torch.Generator().manual_seed(0))
    last = policy.module.actor[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 0.0]))
    first = {name: weight.clone() for name, weight in policy.state_dict().items()}
    with torch.no_grad():
        last.bias[0] = math.log(3.0)  # 3/4 against 1/2
    found = evaluate(policy, task, 4000, seed=1, greedy=False, first=first)
    exact = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert found.drift == pytest.approx(exact, abs=4 * 0.55 / math.sqrt(4000))
    assert said(found) == f"sampled {found}, {found.drift:.2f} nats"
    assert said(evaluate(policy, task, 8, seed=1)).startswith("greedy ")
