"""Bandits and games against what can be worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.estimators.games import (
    exploitability,
    kl,
    kl_optimal,
    kl_value,
    nash,
    regularised_exploitability,
    regularised_nash,
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
