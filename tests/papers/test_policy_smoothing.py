"""Policy smoothing: certificates by hand, games that attain them, attacks, and that none of them is broken."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from partita.core.errors import UserError
from partita.core.spaces import Discrete
from partita.loops.run import Generators
from partita.papers.robust import policy_smoothing as module
from partita.papers.robust.attacks import Greedy, Smoothed, Steady, attacks, play, valued
from partita.papers.robust.policy_smoothing import (
    CLAIMS,
    attacked_chance,
    certify,
    clopper_pearson,
    linear_game,
    off_the_bound,
    returns_known,
)
from partita.policies.feed_forward import FeedForward
from partita.tasks.control.base import Native
from partita.tasks.control.classic import Acrobot, Cartpole, Pendulum
from partita.tasks.control.grid import Gridworld


def phi(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


# -- certificates


def test_chances_under_attack_by_hand():
    # Phi^-1(.8413447) = 1: one deviation of budget takes it to Phi(0), three to Phi(-2).
    assert attacked_chance(phi(1.0), [0.0, 0.5, 1.5], 0.5) == pytest.approx([phi(1.0), 0.5, phi(-2.0)])
    assert attacked_chance(0.99, [0.5, 1.0, 2.0, 5.0], 1.0) == pytest.approx([0.9661, 0.9076, 0.6279, 0.0038], abs=5e-5)
    assert attacked_chance([0.0, 1.0], 3.0, 1.0).tolist() == [0.0, 1.0]
    assert attacked_chance([0.3, 0.9], [0.0, 0.1], 0.0).tolist() == [0.3, 0.0]  # no noise, no certificate


def test_confidence_by_hand():
    # All of n succeed: p^n = alpha. One of n: 1 - (1 - p)^n = alpha. None: 0.
    assert clopper_pearson([0, 1, 20], 20, 0.05) == pytest.approx([0.0, 1 - 0.95 ** (1 / 20), 0.05 ** (1 / 20)])
    successes, p = 7, float(clopper_pearson(7, 20, 0.05))
    assert stats.binom.sf(successes - 1, 20, p) == pytest.approx(0.05)
    found = certify([1.0] * 3 + [2.0], sigma=1.0, lowest=0.0, alpha=0.9)
    gap = math.sqrt(math.log(2 / 0.9) / 8)
    assert found.levels.tolist() == [1.0, 2.0] and found.chances == pytest.approx([1 - gap, max(0.0, 0.25 - gap)])
    assert certify(np.ones(10_000), 1.0, 0.0).chances == pytest.approx([0.98642], abs=5e-6)


def test_the_certificate_of_a_mean_by_hand():
    # Levels -1, 1, 2 from -2: of four returns 4, 3 and 1 reach them.
    found = certify([-1.0, 1.0, 1.0, 2.0], 0.5, -2.0, [-1.0, 1.0, 2.0], alpha=0.3)
    p = [0.1 ** (1 / 4), float(stats.beta.ppf(0.1, 3, 2)), float(stats.beta.ppf(0.1, 1, 4))]
    assert found.chances == pytest.approx(p)
    for budget in (0.0, 0.2, 1.0):
        q = [phi(stats.norm.ppf(x) - budget / 0.5) for x in p]
        assert float(found.mean(budget)[0]) == pytest.approx(-2 + q[0] + 2 * q[1] + q[2])


def test_a_perfect_cart_pole_by_the_authors_numbers():
    found = certify(np.full(10_000, 200.0), 1.0, 0.0, np.arange(1.0, 201.0))
    assert found.mean([0.0, 1.0, 5.0]) / 200 == pytest.approx([0.99917, 0.9840, 0.0318], abs=5e-5)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0.05, 3.0), st.floats(0.0, 4.0),
    st.floats(0.1, 5.0), st.floats(-3.0, 3.0), st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_what_holds_of_every_certificate(returns, sigma, budget, scale, shift, banded):
    r = np.array(returns, dtype=float)
    levels = None if banded else np.arange(1.0, 6.0)
    found = certify(r, sigma, 0.0, levels)
    bounds = found.mean([0.0, budget, budget + 0.5])
    assert bounds[0] >= bounds[1] >= bounds[2] >= 0.0 and bounds[0] <= r.mean() + 1e-12
    assert np.all(np.diff(found.chances) <= 0)
    # Noise and budget in other units; rewards shifted and scaled; episodes in another order.
    assert certify(r, 3 * sigma, 0.0, levels).mean(3 * budget) == pytest.approx(found.mean(budget))
    moved = certify(shift + scale * r[::-1], sigma, shift, None if banded else shift + scale * levels)
    assert moved.mean(budget) == pytest.approx(shift + scale * found.mean(budget))


def test_one_level_is_the_certificate_of_a_chance():
    wins = np.repeat([-1.0, 1.0], [30, 70])
    found = certify(wins, 0.4, -1.0, [1.0])
    chance = attacked_chance(clopper_pearson(70, 100, 0.05), 0.3, 0.4)
    assert float(found.mean(0.3)[0]) == pytest.approx(float(2 * chance - 1))


def test_confidence_is_what_it_says():
    """Of 2000 certificates of 50 episodes, at most 1 in 5 is above the truth; alpha is not wasted on one level."""
    drawn = np.random.default_rng(0).binomial(50, 0.7, 2000)
    share = float((clopper_pearson(drawn, 50, 0.2) > 0.7).mean())
    assert 0.1 < share < 0.23


# -- games in which the bound is attained


@pytest.mark.parametrize("level", [-0.5, 0.8])
def test_a_game_of_one_step_attains_the_bound(level):
    assert linear_game((1.0,), level, 0.7, 0.5) == pytest.approx(phi((-level - 0.7) / 0.5), rel=1e-12)


def test_no_adaptive_adversary_of_a_linear_game_beats_the_bound_and_the_best_attains_it():
    assert off_the_bound(0) < 1e-9
    bound = float(attacked_chance(phi(-0.3), 1.0, 1.0))
    for weights in ((0.6, 0.8), (0.3, 0.5, math.sqrt(0.66))):  # whose best shifts lie between the angles
        assert 0 < linear_game(weights, 0.3, 1.0, 1.0, angles=9) - bound < 1e-3


class Walk(Native):
    """State (sum of what was seen, steps); the return is whether the sum reaches 0.3 at the end of `steps` steps."""

    steps = 6

    @property
    def observation_shape(self):
        return (1,)

    @property
    def action_space(self):
        return Discrete(2)

    @property
    def horizon(self):
        return self.steps

    @classmethod
    def part_name(cls):
        return "walk"

    def reset(self, n, generator, device="cpu"):
        return torch.zeros(n, 2)

    def observe(self, state):
        return torch.zeros(len(state), 1)

    def step(self, state, action, generator):
        after = state + torch.stack((action, torch.ones(len(state))), 1)
        won = (after[:, 0] >= 0.3) & (after[:, 1] == self.steps)
        return after, won.float(), after[:, 1] == self.steps


class Hearing(SimpleNamespace):
    """A policy whose action is what it sees, over the root of the number of steps."""

    def __init__(self):
        super().__init__(module=torch.nn.Identity(), device=torch.device("cpu"))

    def begin(self, count): ...

    def seen(self, obs, action, reward): ...

    def act(self, obs, noise):
        return obs[:, 0] / math.sqrt(Walk.steps)


def test_steady_attacks_in_play_attain_the_bound():
    victim, count = Smoothed(Hearing(), 0.5, torch.Generator().manual_seed(0)), 20_000
    clean, spent = play(victim, Walk(), count, torch.Generator())
    assert float(clean.mean()) == pytest.approx(phi(-0.6), abs=0.014) and not bool(spent.any())
    left, spent = play(victim, Walk(), count, torch.Generator(), Steady(6, (-3.0,)), 0.4)
    torch.testing.assert_close(spent, torch.full_like(spent, 0.4), rtol=1e-5, atol=0)
    assert float(left.mean()) == pytest.approx(float(attacked_chance(phi(-0.6), 0.4, 0.5)), abs=0.014)
    early, spent = play(victim, Walk(), count, torch.Generator(), Steady(1, (-1.0,)), 0.4)
    assert float(spent.max()) == pytest.approx(0.4) and float(early.mean()) > float(left.mean()) + 0.05


# -- attacks on action values


def planes(rows):
    """A greedy policy whose action values are Q(o, a) = rows[a] . o, and an environment that never ends."""
    policy = FeedForward(head="greedy", critics=1, values=0, outputs=1, dueling=False, hidden=(4,)).build(
        SimpleNamespace(observation_shape=(2,), action_space=Discrete(len(rows))), False, Generators(0)["init"]
    )
    with torch.no_grad():
        for p in policy.module.parameters():
            p.zero_()
        first, last = policy.module.critic.weights
        first[0, :2, :2], first[0, :2, 2:] = torch.eye(2), -torch.eye(2)
        table = torch.tensor(rows).T
        last[0, :2], last[0, 2:] = table, -table
    return policy


def test_greedy_buys_the_worst_action_in_reach_and_no_other():
    # Q = (x, 0, -x + y / 2): at (0.1, 0) the second is 0.1 away, the third 0.2 / sqrt(4.25) = 0.097.
    policy = planes([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.5]])
    victim = Smoothed(policy, 0.0, torch.Generator())
    obs = torch.tensor([[0.1, 0.0]]).repeat(4, 1)
    assert victim.q(obs[:1], torch.zeros(1, 1, 2)).tolist()[0] == pytest.approx([0.1, 0.0, -0.1])
    shift = Greedy()(victim, obs, torch.tensor([0.02, 0.08, 0.2, 1.0]), 0)
    assert not bool(shift[:2].any())  # out of reach: nothing is spent
    assert policy.act(obs + shift, None).tolist() == [0, 0, 2, 2]
    assert float(shift[2].norm()) == pytest.approx(0.1, abs=0.011)
    picky = Greedy(threshold=0.25)(victim, obs, torch.full((4,), 1.0), 0)
    assert not bool(picky.any())  # the worst action is worse by 0.2 alone
    assert policy.act(obs + Greedy(threshold=0.15)(victim, obs, torch.full((4,), 1.0), 0), None).tolist() == [2] * 4


def test_what_is_spent_is_carried_over():
    policy = planes([[1.0, 0.0], [-1.0, 0.0]])
    seen = []

    def attack(victim, obs, left, t):
        seen.append(left.tolist())
        shift = torch.zeros_like(obs)
        shift[:, 0] = torch.tensor([0.3, 0.0])[: len(obs)] if t == 1 else 0.0
        return shift

    env = Acrobot(max_steps=4)
    wide = FeedForward(head="greedy", critics=1, values=0, outputs=1, dueling=False, hidden=(4,))
    victim = Smoothed(wide.build(env, False, Generators(0)["init"]), 0.1, torch.Generator())
    _, spent = play(victim, env, 2, torch.Generator(), attack, 0.5)
    assert spent.tolist() == pytest.approx([0.3, 0.0])
    assert seen[1] == pytest.approx([0.5, 0.5]) and seen[2] == pytest.approx([0.4, 0.5])
    assert valued(policy) and len(attacks(policy, env)) > len(attacks(Hearing(), env)) > 0


@pytest.mark.parametrize("sigma", [0.0, 0.2])
def test_every_attack_stays_within_its_budget(sigma):
    env = Cartpole(max_steps=12)
    policy = FeedForward(head="greedy", critics=2, values=0, outputs=1, dueling=False, hidden=(8,)).build(
        env, False, Generators(0)["init"]
    )
    victim = Smoothed(policy, sigma, torch.Generator().manual_seed(0))
    for attack in attacks(policy, env):
        returns, spent = play(victim, env, 8, torch.Generator().manual_seed(1), attack, 0.3)
        assert float(spent.max()) <= 0.3 * (1 + 1e-5) and returns.shape == (8,)


def test_the_slope_of_steady_is_that_of_the_values():
    policy = planes([[3.0, 4.0], [0.0, 0.0]])
    shift = Steady(4)(Smoothed(policy, 0.1, torch.Generator()), torch.tensor([[1.0, 1.0]]), torch.tensor([0.8]), 0)
    assert shift[0].tolist() == pytest.approx([-0.6 * 0.4, -0.8 * 0.4], rel=1e-4)


# -- what is known of returns, and what is refused


def test_the_least_return():
    assert returns_known(Cartpole(max_steps=3))[1].tolist() == [1.0, 2.0, 3.0]
    low, levels = returns_known(Acrobot(max_steps=3))
    assert low == -3.0 and levels.tolist() == [-2.0, -1.0, 0.0]
    assert returns_known(Gridworld(max_steps=10)) == (pytest.approx(-1.1), None)
    assert returns_known(Pendulum()) is None


def test_bad_settings_are_refused():
    for changes, message in (
        ({"alpha": 0.0}, "alpha: expected a number between 0 and 1"), ({"lowest": 2.0}, "lowest: a return of 1"),
        ({"levels": [2.0, 1.0]}, "levels: expected numbers that rise"), ({"returns": [math.nan]}, "returns: expected"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            certify(**({"returns": [1.0, 3.0], "sigma": 1.0, "lowest": 0.0} | changes))
    for make in (lambda: Greedy(threshold=-1.0), lambda: Greedy(step=0.0), lambda: Steady(0)):
        with pytest.raises(UserError, match="attack: expected"):
            make()
    with pytest.raises(ValueError, match="chance, budget, sigma"):
        attacked_chance(1.2, 0.1, 1.0)


# -- what is stated


@pytest.mark.parametrize("env", ["cartpole", "gridworld"])
def test_what_is_stated_can_be_measured(env, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 2)
    monkeypatch.setattr(module, "LEARNER", module.LEARNER.but(updates=10, start=64))
    monkeypatch.setattr(module, "attacks", lambda policy, env: attacks(policy, env)[-6:])
    module.learnt.cache_clear()
    first = module.kept("treatment", 1000, env, budget=0.2, episodes=6)
    assert first == module.kept("treatment", 1000, env, budget=0.2, episodes=6)  # whatever was measured before
    assert math.isfinite(module.kept("control", 1000, env, budget=0.0, episodes=6)["value"])
    assert module.shortfall(1000, env, budgets=(0.4,), clean=200, episodes=6) == 0.0
    module.learnt.cache_clear()
    assert len(CLAIMS) == 5
