"""Solvers of bandits: first choices and updates by hand, many runs as one by one, regret counted right."""

import math

import numpy as np
import pytest

from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.parts.bandits import UCB1, Counts, Exp3, LinUCB, Ridge, Weights
from partita.tasks.finite.bandits import DynamicalBandit, LinearBandit, SphereBandit

ARMS = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
PLAIN = LinearBandit(ARMS, [0.3, 0.5], sigma=0.1)


def test_ridge_is_ridge_regression():
    rng, lam = np.random.default_rng(0), 2.0
    learner = Ridge(PLAIN, 3, lam, lambda t, grown: 1.0)
    v, b = np.tile(lam * np.eye(2), (3, 1, 1)), np.zeros((3, 2))
    for _ in range(50):
        arms, reward = rng.integers(0, 3, 3), rng.standard_normal(3)
        learner.see(arms, reward)
        v += ARMS[arms][:, :, None] * ARMS[arms][:, None, :]
        b += ARMS[arms] * reward[:, None]
    np.testing.assert_allclose(learner.inverse, np.linalg.inv(v), rtol=1e-10)
    np.testing.assert_allclose(learner.estimate, np.linalg.solve(v, b[:, :, None])[:, :, 0], rtol=1e-10)
    np.testing.assert_allclose(learner.grown, np.linalg.slogdet(v)[1] - 2 * math.log(lam), rtol=1e-10)
    spread = np.sqrt(np.einsum("kd,rde,ke->rk", ARMS, np.linalg.inv(v), ARMS))
    assert learner.choose(50).tolist() == (learner.estimate @ ARMS.T + spread).argmax(1).tolist()


def test_widths_by_hand():
    # |theta| = sqrt(0.34), noise 0.1; lam = 4, delta = 0.1, t = 3, log det = 0.5, U = 1, d = 2
    base = 2 * math.sqrt(0.34)
    det = LinUCB(lam=4.0, delta=0.1).width(PLAIN)(3, np.array([0.5]))
    assert det.tolist() == [[pytest.approx(base + 0.1 * math.sqrt(2 * math.log(10) + 0.5))]]
    trace = LinUCB(lam=4.0, delta=0.1, growth="trace").width(PLAIN)(3, np.array([0.5]))
    assert trace == pytest.approx(base + 0.1 * math.sqrt(2 * math.log(10) + 2 * math.log(1 + 3 / 8)))
    assert LinUCB(rounds=1000).ridge == pytest.approx(math.log(1000))


def test_the_bound_of_the_determinant_bounds_it():
    det = [s.tables["estimate"] for s in LinUCB(rounds=200, runs=2)(PLAIN, np.random.default_rng(0))]
    assert len(det) > 30
    learner, rng = Ridge(PLAIN, 4, 1.0, lambda t, grown: 1.0), np.random.default_rng(1)
    for t in range(1, 100):
        learner.see(rng.integers(0, 3, 4), np.zeros(4))
        assert (learner.grown <= 2 * math.log(1 + t / 2) + 1e-12).all()


def test_counts_by_hand():
    learner = Counts(1, 2, reach=0.5)
    assert [learner.choose(t).tolist() for t in (0, 1)] == [[0], [1]]
    learner.see(np.array([0]), np.array([1.0]))
    learner.see(np.array([1]), np.array([0.0]))
    learner.see(np.array([0]), np.array([0.0]))
    # 1/2 + sqrt(2 log 3 / 2) = 1.548 against 0 + sqrt(2 log 3) = 1.482
    assert learner.choose(3).tolist() == [0]
    learner.see(np.array([0]), np.array([0.5]))
    assert learner.choose(4).tolist() == [1]  # 1/2 + sqrt(2 log 4 / 3) = 1.461 against 1.665


def test_weights_by_hand():
    learner = Weights(1, 2, 0.2, 1.0, np.random.default_rng(0))
    learner.choose(0)
    assert learner.chance.tolist() == [[0.5, 0.5]]
    learner.see(np.array([1]), np.array([0.6]))  # (0.6 + 1) / 2 = 0.8, over 0.5, times 0.2 / 2
    np.testing.assert_allclose(learner.log, [[0.0, 0.16]])
    learner.choose(1)
    share = 1 / (1 + math.exp(0.16))
    np.testing.assert_allclose(learner.chance, [[0.8 * share + 0.1, 0.8 * (1 - share) + 0.1]])
    learner.see(np.array([0]), np.array([-5.0]))  # cut to -1, worth nothing
    np.testing.assert_allclose(learner.log, [[0.0, 0.16]])


def test_draws_follow_the_chances():
    learner = Weights(20_000, 3, 0.1, 1.0, np.random.default_rng(0))
    learner.log += np.log([0.2, 0.3, 0.5])
    share = np.bincount(learner.choose(0), minlength=3) / 20_000
    np.testing.assert_allclose(share, 0.9 * np.array([0.2, 0.3, 0.5]) + 0.1 / 3, atol=0.015)


SOLVERS = [LinUCB(rounds=400, runs=3), LinUCB(rounds=400, runs=3, growth="trace"), UCB1(rounds=400, runs=3),
           Exp3(rounds=400, runs=3)]  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.part_name())
class TestAll:
    def test_the_accounts(self, solver):
        made = DynamicalBandit().bandit
        found = solve(Exact(solver=solver), made)
        tables, numbers = found.solution.tables, found.solution.numbers
        assert found.finished and numbers["round"] == 400 and (tables["plays"].sum(1) == 400).all()
        np.testing.assert_allclose(tables["regret"], tables["plays"] @ (made.values.max() - made.values))
        assert numbers["regret"] == pytest.approx(tables["regret"].mean())
        assert (np.diff(found.curves["regret"]) >= 0).all() and found.curves["round"][0] == 1
        # what is paid differs from long-run rewards by noise, and by what the last state would still bring
        assert numbers["shortfall"] == pytest.approx(numbers["regret"], abs=5 * 0.01 * 1.6 * 20 + 0.6)

    def test_one_arm_has_no_regret(self, solver):
        found = solve(Exact(solver=solver), LinearBandit([[1.0, 1.0]], [0.3, 0.1], sigma=0.1))
        assert found.solution.numbers["regret"] == 0 and found.solution.numbers["best"] == 1

    def test_equal_seeds_play_equally(self, solver):
        first, again, other = (solve(Exact(solver=solver), PLAIN, seed).solution.tables["plays"] for seed in (0, 0, 1))
        assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("solver", SOLVERS[:3], ids=lambda s: s.part_name())
def test_a_plain_bandit_is_solved(solver):
    made = LinearBandit(ARMS, [0.3, 0.5], sigma=0.02)
    settings = {"reach": 0.1} if isinstance(solver, UCB1) else {"lam": 1.0}
    found = solve(Exact(solver=solver.but(rounds=2000, **settings)), made)
    assert found.solution.numbers["best"] > 0.8
    if "held" in found.solution.numbers:
        assert found.solution.numbers["held"] == 1
        np.testing.assert_allclose(found.solution.tables["estimate"][:, 1], 0.5, atol=0.1)


def test_exp3_leans_to_the_better_arm():
    found = solve(Exact(solver=Exp3(rounds=5000, gamma=0.05, reach=1.0)), LinearBandit(np.eye(2), [0.9, -0.9]))
    assert found.solution.numbers["best"] > 0.85


@pytest.mark.parametrize("solver", [LinUCB(rounds=500, runs=2, growth="trace"), UCB1(rounds=500, runs=2)])
def test_rewards_and_reach_scale_together(solver):
    """Twice the rewards and noise, with twice the bounds on them, change no choice."""
    one, two = (LinearBandit(ARMS, s * np.array([0.3, 0.5]), sigma=s * 0.1) for s in (1, 2))
    plays = [solve(Exact(solver=solver), made).solution.tables["plays"] for made in (one, two)]
    assert (plays[0] == plays[1]).all()


def test_without_delay_the_set_holds_the_truth():
    found = solve(Exact(solver=LinUCB(rounds=300, runs=50, delta=0.1, lam=1.0)), SphereBandit().bandit)
    assert found.solution.numbers["held"] >= 0.9


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LinUCB(rounds=0), "solver.rounds: expected 1 or more, got 0"),
        (lambda: UCB1(runs=0), "solver.runs"),
        (lambda: Exp3(reports=0), "solver.reports"),
        (lambda: LinUCB(lam=0.0), "solver.lam: expected a number above 0"),
        (lambda: LinUCB(delta=1.0), "solver.delta: expected a number between 0 and 1"),
        (lambda: LinUCB(growth="none"), "solver.growth: expected det or trace"),
        (lambda: UCB1(reach=0.0), "solver.reach: expected a number above 0"),
        (lambda: Exp3(reach=math.inf), "solver.reach"),
        (lambda: Exp3(gamma=0.0), "solver.gamma"),
    ],
)
def test_refusals(make, said):
    with pytest.raises(UserError, match=said):
        make()
