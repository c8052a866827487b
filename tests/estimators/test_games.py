"""Bandits and games against what can be worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.estimators.games import (
    bradley_terry,
    chance,
    exploitability,
    geometric,
    kl,
    kl_optimal,
    kl_value,
    nash,
    proximal,
    regularised_exploitability,
    regularised_nash,
    self_play,
    win_rate,
)  # fmt: skip
from partita.tasks.preferences.games import MatrixGame, SoftmaxBandit

TWO = torch.tensor([[0.5, 0.8], [0.2, 0.5]], dtype=torch.float64)
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64).log()


def close(found, expected, tolerance=1e-12):
    found, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (found, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def distribution(actions: int, seed: int) -> torch.Tensor:
    """A log-policy."""
    return torch.randn(actions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(0)


def test_the_kl_optimal_policy_of_two_responses():
    # ref (1/4, 3/4), r (log 6, 0), beta 1: weights 6/4 and 3/4, so pi* = (2/3, 1/3) and Z = 9/4
    reward, ref = torch.tensor([math.log(6), 0.0], dtype=torch.float64), torch.tensor([0.25, 0.75]).double().log()
    close(kl_optimal(reward, ref, 1.0).exp(), [2 / 3, 1 / 3])
    close(kl_value(reward, ref, 1.0), math.log(9 / 4))
    close(kl_optimal(2 * reward, ref, 2.0).exp(), [2 / 3, 1 / 3])


@given(st.integers(2, 7), st.integers(0, 1000), st.floats(0.05, 5))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_no_policy_is_worth_more_than_the_optimal_one(actions, seed, beta):
    bandit = SoftmaxBandit.random(actions, seed, beta)
    other = distribution(actions, seed + 1)
    close(bandit.value(bandit.optimal), bandit.best, 1e-10)
    close(bandit.regret(other), beta * kl(other, bandit.optimal), 1e-9)
    assert bandit.regret(other) > 0
    shifted = SoftmaxBandit(bandit.reward + 3, bandit.log_ref, beta)
    close(shifted.optimal, bandit.optimal, 1e-10)


def test_win_rate_and_gap_of_two_responses_by_hand():
    pi, other = torch.tensor([0.3, 0.7]), torch.tensor([0.6, 0.4])
    # 0.3*0.6*0.5 + 0.3*0.4*0.8 + 0.7*0.6*0.2 + 0.7*0.4*0.5 = 0.09 + 0.096 + 0.084 + 0.14
    close(win_rate(TWO, pi, other), 0.41, 1e-7)
    close(win_rate(TWO, pi, other) + win_rate(TWO, other, pi), 1.0, 1e-7)
    # against pi the first response wins 0.3*0.5 + 0.7*0.8 = 0.71
    close(exploitability(TWO, pi), 0.42, 1e-7)
    close(nash(TWO), [1.0, 0.0], 1e-9)


def test_rock_paper_scissors_is_uniform():
    game = MatrixGame.rock_paper_scissors()
    close(nash(game.preference), [1 / 3] * 3, 1e-9)
    close(exploitability(game.preference, torch.tensor([1.0, 0, 0])), 1.0)
    for tau in (1.0, 0.1, 0.01):
        close(regularised_nash(game.preference, UNIFORM, tau).exp(), [1 / 3] * 3)


def test_the_regularised_equilibrium_of_two_responses_by_hand():
    # P(1 beats pi) - P(2 beats pi) = 0.3 whatever pi: log odds = log(ref odds) + 0.3 / tau
    ref = torch.tensor([0.2, 0.8], dtype=torch.float64).log()
    for tau in (2.0, 0.3, 0.05):
        z = regularised_nash(TWO, ref, tau)
        close(z[0] - z[1], math.log(0.25) + 0.3 / tau)


@given(st.integers(2, 12), st.integers(0, 1000), st.floats(-3, 1))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_fixed_point_holds_and_nobody_gains(actions, seed, exponent):
    tau = 10**exponent
    game = MatrixGame(MatrixGame.random(actions, seed).preference, 2 * distribution(actions, seed), tau)
    z = game.equilibrium
    goal = torch.log_softmax(game.ref + game.preference @ z.exp() / tau, 0)
    assert float((z - goal).abs().max()) < 2e-12
    assert abs(float(game.gap(z))) < 1e-12
    other = distribution(actions, seed + 1)
    assert game.gap(other) > 0
    payoff = game.win_rate(other, z) - tau * kl(other, game.ref) + tau * kl(z, game.ref)
    assert payoff <= 0.5 + 1e-12, "no reply beats the equilibrium"


def test_the_gap_is_what_the_best_replies_gain():
    game = MatrixGame(MatrixGame.random(5, 3).preference, distribution(5, 1), 0.4)
    pi = distribution(5, 2)
    reply = kl_optimal(game.preference @ pi.exp(), game.ref, 0.4)
    gain = game.win_rate(reply, pi) - 0.4 * kl(reply, game.ref) + 0.4 * kl(pi, game.ref)
    close(game.gap(pi), 2 * gain - 1)


def test_small_tau_comes_to_the_plain_game():
    game = MatrixGame.random(6, 4)
    assert abs(float(game.gap(game.equilibrium))) < 1e-8
    z = regularised_nash(game.preference, game.ref, 1e-3)
    assert 0 < exploitability(game.preference, z.exp()) < 0.02
    assert regularised_exploitability(game.preference, z, game.ref, 0) == exploitability(game.preference, z.exp())


def test_a_transitive_game_with_a_bradley_terry_reward_ends_at_its_best_response():
    bandit = SoftmaxBandit.random(5, 0)
    assert int(nash(bandit.preference).argmax()) == int(bandit.reward.argmax())
    rewards = MatrixGame.random(4, 2, intransitive=0.0).preference.logit()
    close(rewards[0, 1] + rewards[1, 2], rewards[0, 2])


def test_a_geometric_mixture_by_hand():
    # sqrt(0.8 * 0.2) = 0.4 and sqrt(0.2 * 0.8) = 0.4; 0.8^(3/4) 0.2^(1/4) against the reverse is 4^(1/2) = 2 to 1
    first, second = torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64).log()
    close(geometric(first, second, 0.5).exp(), [0.5, 0.5])
    close(geometric(first, second, 0.75).exp(), [2 / 3, 1 / 3])
    close(geometric(first, second, 1.0), first)


def test_a_proximal_step_by_hand():
    # log odds: (tau * log 4 + (eta - tau) * log(1/4) + (r_1 - r_2)) / eta, eta = 2, tau = 0.5, r_1 - r_2 = 0.6
    first, second = torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64).log()
    z = proximal(torch.tensor([0.7, 0.1]), first, second, 0.5, 2.0)
    close(z[0] - z[1], (0.5 * math.log(4) - 1.5 * math.log(4) + 0.6) / 2, 1e-7)
    reward = torch.tensor([0.7, 0.1], dtype=torch.float64)
    close(proximal(reward, first, second, 2.0, 2.0), kl_optimal(reward, first, 2.0))
    close(proximal(reward, first, second, 0.0, 2.0), kl_optimal(reward, second, 2.0))


@given(st.integers(2, 7), st.integers(0, 1000), st.floats(0.05, 2), st.floats(0, 1))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_no_policy_is_better_than_the_proximal_step(actions, seed, eta, share):
    reward, ref, now, other = (distribution(actions, seed + i) for i in range(4))
    tau = share * eta

    def value(z):
        return z.exp() @ reward - tau * kl(z, ref) - (eta - tau) * kl(z, now)

    best = proximal(reward, ref, now, tau, eta)
    close(value(best) - value(other), eta * kl(other, best), 1e-9)


def test_self_play_against_each_opponent_by_hand():
    # Two steps of rock-paper-scissors of strength 0.4 from ref = (1/2, 1/4, 1/4): P - 1/2 is 0.2 times the cycle.
    game = MatrixGame.rock_paper_scissors(0.4, log_ref=torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log())
    ref, tau, eta = game.ref, 0.1, 0.4

    def step(now, opponent):
        gain = 0.2 * torch.stack(
            (opponent[2] - opponent[1], opponent[0] - opponent[2], opponent[1] - opponent[0])
        )  # each beats the one before it
        return torch.log_softmax((0.1 * ref + 0.3 * now + gain) / 0.4, 0)

    now = ref
    for n in (1, 2):
        now = step(now, now.exp())
        close(self_play(game.preference, ref, tau, eta, 2)[n], now)
    now = ref
    for n in (1, 2):
        mixed = ref.exp() ** 0.25 * now.exp() ** 0.75
        now = step(now, mixed / mixed.sum())
        close(self_play(game.preference, ref, tau, eta, 2, "mixture")[n], now)
    now, path = ref, self_play(game.preference, ref, tau, eta, 5, "half_step")
    for n in (2, 4):
        close(path[n - 1], now)
        now = step(now, step(now, now.exp()).exp())
        close(path[n], now)
    close(path[5], path[4])


def test_steps_may_change_their_length():
    game = MatrixGame.random(4, 0)
    path = self_play(game.preference, game.ref, 0.1, [0.5, 2.0], 2)
    close(path[1], self_play(game.preference, game.ref, 0.1, 0.5, 1)[1])
    close(path[2], proximal(game.preference @ path[1].exp(), game.ref, path[1], 0.1, 2.0))


@pytest.mark.parametrize("opponent", ["itself", "half_step"])
def test_self_play_ends_at_the_equilibrium_where_nash_md_stays_beside_it(opponent):
    game = MatrixGame.random(5, 1, tau=0.2)
    path = self_play(game.preference, game.ref, 0.2, 0.5, 200, opponent)
    close(path[-1], game.equilibrium, 1e-10)
    beside = self_play(game.preference, game.ref, 0.2, 0.5, 200, "mixture")
    close(beside[-1], beside[-2], 1e-10)
    assert kl(game.equilibrium, beside[-1]) > 1e-4


@given(st.integers(2, 7), st.integers(0, 1000))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_rewards_of_comparisons_explain_their_win_rates(actions, seed):
    game, pi = MatrixGame.random(actions, seed).preference, distribution(actions, seed).mul(3).softmax(0)
    r = bradley_terry(game, pi)
    close((r[:, None] - r).sigmoid() @ pi, game @ pi, 1e-12)
    close(pi @ r, 0.0, 1e-12)
    close(bradley_terry(game, pi), bradley_terry(game, 2 * pi), 1e-12)

    def loss(r):
        return -(pi[:, None] * pi * game * torch.nn.functional.logsigmoid(r[:, None] - r)).sum()

    assert loss(r) <= loss(r + 0.01 * distribution(actions, seed + 1))


def test_bradley_terry_finds_the_rewards_behind_preferences_also_of_responses_never_given():
    bandit = SoftmaxBandit.random(5, 0)
    pi = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0], dtype=torch.float64)
    close(bradley_terry(bandit.preference, pi), bandit.reward - pi @ bandit.reward, 1e-12)


def test_bad_games_are_refused():
    with pytest.raises(ValueError, match=r"P \+ P\^T = 1"):
        nash(torch.tensor([[0.5, 0.8], [0.8, 0.5]]))
    with pytest.raises(ValueError, match=r"expected \(A, A\)"):
        nash(torch.full((2, 3), 0.5))
    with pytest.raises(ValueError, match="tau"):
        regularised_nash(TWO, torch.zeros(2), 0.0)
    with pytest.raises(ValueError, match="beta"):
        kl_optimal(torch.zeros(2), torch.zeros(2), 0.0)
    with pytest.raises(ValueError, match="log_ref"):
        regularised_nash(TWO, torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="eta"):
        proximal(torch.zeros(2), torch.zeros(2), torch.zeros(2), 0.0, 0.0)
    with pytest.raises(ValueError, match="tau"):
        proximal(torch.zeros(2), torch.zeros(2), torch.zeros(2), 1.1, 1.0)
    with pytest.raises(ValueError, match="weight"):
        geometric(torch.zeros(2), torch.zeros(2), -0.1)
    with pytest.raises(ValueError, match="opponent"):
        self_play(TWO, torch.zeros(2), 0.1, 1.0, 2, "nobody")
    with pytest.raises(ValueError, match="sure"):
        bradley_terry(torch.tensor([[0.5, 1.0], [0.0, 0.5]]), torch.ones(2))
    for settings_, words in (
        (dict(preference=TWO, tau=-1.0), "tau"),
        (dict(preference=TWO, log_ref=torch.zeros(3)), "log_ref"),
        (dict(preference=TWO * 2), "preference"),
        (dict(preference=TWO, log_ref=torch.tensor([0.0, -math.inf])), "finite"),
    ):
        with pytest.raises(UserError, match=words):
            MatrixGame(**settings_)
    with pytest.raises(UserError, match="beta"):
        SoftmaxBandit(torch.zeros(2), beta=0.0)


def test_the_chance_to_be_preferred():
    gap = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    close(chance(gap, 0.0), [0.0, 0.5, 1.0])
    close(chance(gap, 2.0), [1 / (1 + math.exp(0.5)), 0.5, 1 / (1 + math.exp(-1.0))])
