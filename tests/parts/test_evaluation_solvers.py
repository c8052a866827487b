"""Temporal differences on finite processes: steps by hand, exact values found, what is promised of rewards."""

import numpy as np
import pytest
from scipy import sparse

from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.parts.evaluation import GTD2, LSTD, TD, TDC, Moves, best, moments, semi_gradient, traces, trajectories
from partita.parts.evaluation import uniform as evenly
from partita.tasks.finite.mdp import FiniteMDP, assembled
from partita.tasks.finite.river_swim import RiverSwim
from processes import random_process

SHORT = {"episodes": 16, "length": 20, "batches": 10}


def cycle(discount=0.5, **about):
    """Three states in a ring, one action; pays 1, 2, 4."""
    table = np.eye(3)[[1, 2, 0]]
    return FiniteMDP(table, np.array([[1.0], [2.0], [4.0]]), np.eye(3)[0], discount, **about)


def moves(features, after, reward, ratio, discount):
    """Moves of one episode."""
    f, g = np.array(features, float)[:, None], np.array(after, float)[:, None]
    return Moves(f, discount * g - f, np.array(reward, float)[:, None], np.array(ratio, float)[:, None])


TWO = moves([[1, 0], [0, 1]], [[0, 1], [1, 1]], [3, 5], [1, 2], 0.5)


def after(solver, batch=TWO, discount=0.5, theta=(2.0, 4.0)):
    return next(iter(solver.learn([batch], np.array(theta), discount)))


def test_sums_by_hand():
    x = np.array([[[1.0]], [[2.0]], [[4.0]]])
    assert traces(x, 0.5).ravel().tolist() == [1, 2.5, 5.25]
    assert traces(x, 0.5, np.array([[1.0], [2.0], [0.5]])).ravel().tolist() == [1, 5, 3.25]
    tests, slope, base = np.array([[[1.0], [2.0]]]), np.array([[[3.0], [5.0]]]), np.array([[1.0, 4.0]])
    assert [m.tolist() for m in moments(tests, slope, base)] == [[[6.5]], [4.5]]
    # errors at theta = 1: 4 and 9, their mean with tests 1 and 2: 11
    assert semi_gradient(np.ones(1), tests, slope, base, 0.1).tolist() == pytest.approx([2.1])


def test_steps_of_td_by_hand():
    # first delta = 3 + 0.5 * 4 - 2 = 3, z = (1, 0), theta = (2.3, 4)
    # then  delta = 5 + 0.5 * 6.3 - 4 = 4.15, z = 2 (0.5 * 0.8 (1, 0) + (0, 1)) = (0.8, 2)
    found = after(TD(lam=0.8, lr=0.1, episodes=1))
    assert found.tolist() == pytest.approx([2.3 + 0.1 * 0.8 * 4.15, 4 + 0.1 * 2 * 4.15])


def test_steps_of_gtd2_and_tdc_by_hand():
    # delta = 3, w = 0: GTD2 leaves theta, TDC has it at (2.3, 4); w = 0.2 * 3 (1, 0) = (0.6, 0)
    # then phi . w = 0: GTD2 leaves theta; TDC moves by rho delta = 2 * 4.15, w by 0.2 * 2 delta
    assert after(GTD2(lr=0.1, fast=0.2, episodes=1)).tolist() == [2.0, 4.0]
    assert after(TDC(lr=0.1, fast=0.2, episodes=1)).tolist() == pytest.approx([2.3, 4 + 0.1 * 2 * 4.15])
    twice = moves([[1, 0], [1, 1]], [[0, 1], [1, 0]], [3, 5], [1, 2], 0.5)
    # GTD2: phi . w = 0.6, theta + 0.1 * 2 * 0.6 (phi - phi' / 2) = theta + 0.12 (0.5, 1)
    assert after(GTD2(lr=0.1, fast=0.2, episodes=1), twice).tolist() == pytest.approx([2.06, 4.12])
    # TDC: theta = (2.3, 4), delta = 5 + 1.15 - 6.3 = -0.15; + 0.1 * 2 (-0.15 (1, 1) - 0.5 * 0.6 (1, 0))
    assert after(TDC(lr=0.1, fast=0.2, episodes=1), twice).tolist() == pytest.approx([2.3 - 0.09, 4 - 0.03])


def test_tdc_without_its_correction_is_td():
    td, tdc = TD(lr=0.3, decay=0.2, **SHORT), TDC(lr=0.3, fast=1e-300, decay=0.2, **SHORT)
    one, two = (solve(Exact(solver=s), random_process(0), 3).solution.tables["theta"] for s in (td, tdc))
    np.testing.assert_allclose(one, two)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_lstd_with_a_feature_for_each_state_is_exact_where_nothing_is_drawn(lam):
    found = solve(Exact(solver=LSTD(lam=lam, ridge=1e-10, **SHORT)), cycle()).solution
    # v0 = 1 + v1/2, v1 = 2 + v2/2, v2 = 4 + v0/2: v0 = (1 + 1 + 1) / (1 - 1/8)
    np.testing.assert_allclose(found.tables["values"], np.array([24, 34, 40]) / 7, rtol=1e-6)
    assert found.numbers["error"] < 1e-6 and found.numbers["value"] == pytest.approx(24 / 7)


def test_lstd_with_groups_of_states_by_hand():
    # groups {0, 1} and {2}, each state as often: sum phi (phi - phi'/2)' = [[2 - 1/2, -1/2], [-1/2, 1]], r = (3, 4)
    found = solve(Exact(solver=LSTD(features=2, episodes=1, length=3000, batches=1)), cycle()).solution
    np.testing.assert_allclose(found.tables["theta"], np.linalg.solve([[1.5, -0.5], [-0.5, 1.0]], [3, 4]), rtol=1e-6)
    assert np.array_equal(found.tables["values"], found.tables["theta"][[0, 0, 1]])


@pytest.mark.parametrize(
    ("solver", "near"),
    [(TD(lr=0.5, decay=0.0), 1e-6), (TD(lam=0.9, lr=0.2, decay=0.0), 1e-6), (GTD2(lr=0.3), 0.02), (TDC(lr=0.3), 0.02)],
)
def test_all_come_to_the_values_of_a_ring(solver, near):
    found = solve(Exact(solver=solver.but(episodes=2, length=60, batches=60)), cycle()).solution
    assert found.numbers["error"] < near


def test_values_of_another_policy_than_the_one_that_acts():
    mdp = random_process(3)
    for solver in (LSTD(lam=0.5), LSTD()):
        wanted = solver.but(policy="best", behaviour="uniform", episodes=200, length=40, batches=10)
        found = solve(Exact(solver=wanted), mdp, 5).solution
        exact = mdp.evaluate(best(mdp))
        assert found.numbers["error"] < 0.35 < np.abs(exact - mdp.evaluate(evenly(mdp))).max()


@pytest.mark.parametrize("solver", [LSTD(lam=0.4, **SHORT), TD(**SHORT), GTD2(lr=0.2, **SHORT), TDC(lr=0.2, **SHORT)])
def test_scaled_rewards_scale_values_and_lstd_shifts_with_them(solver):
    mdp = random_process(4)
    values, scaled, shifted = (
        solve(Exact(solver=solver), m, 2).solution.tables["values"]
        for m in (mdp, mdp.but(reward=2 * mdp.reward), mdp.but(reward=mdp.reward + 3))
    )
    np.testing.assert_allclose(scaled, 2 * values)
    if isinstance(solver, LSTD):
        np.testing.assert_allclose(shifted, values + 30, rtol=1e-4)


def test_trajectories_follow_the_tables():
    outcomes = [(0, 0, 0, 0.25, 1.0), (0, 0, 1, 0.75, 2.0), (1, 1, 0, 1.0, 3.0)]  # one action in each state
    mdp = assembled(outcomes, 2, 2, [1.0, 0.0], discount=0.9)
    policy = evenly(mdp)
    assert policy.tolist() == [[1, 0], [0, 1]]
    states, actions, reward = trajectories(mdp, policy, 4000, 3, np.random.default_rng(0))
    assert (actions == states[:-1]).all() and set(states[0]) == {0}
    paid = np.where(states[:-1] == 1, 3.0, np.where(states[1:] == 0, 1.0, 2.0))
    assert np.array_equal(reward, paid) and np.mean(states[1]) == pytest.approx(0.75, abs=0.03)


def test_sparse_and_dense_tables_give_the_same_episodes():
    mdp = random_process(1)
    thin = mdp.but(transitions=sparse.csr_array(mdp.transitions))
    one, two = (trajectories(m, evenly(m), 50, 30, np.random.default_rng(0)) for m in (mdp, thin))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    pairs = one[0][:-1] * 3 + one[1]
    seen = np.bincount(pairs.ravel() * 6 + one[0][1:].ravel(), minlength=108).reshape(18, 6)
    gap = np.abs(seen - seen.sum(1, keepdims=True) * mdp.transitions).sum() / seen.sum()
    assert gap < 0.2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TD(lam=1.5), "solver.lam: expected a number from 0 to 1, got 1.5"),
        (lambda: TD(lr=0.0), "solver.lr: expected a number above 0, got 0.0"),
        (lambda: TD(decay=-1.0), "solver.decay: expected 0 or more"),
        (lambda: GTD2(fast=0.0), "solver.fast: expected a number above 0"),
        (lambda: LSTD(ridge=0.0), "solver.ridge: expected a number above 0"),
        (lambda: TDC(policy="worst"), "solver.policy: expected uniform or best, got 'worst'"),
        (lambda: TD(behaviour="best"), "solver.behaviour: expected policy or uniform"),
        (lambda: TD(episodes=0), "solver.episodes: expected 1 or more, got 0"),
        (lambda: TD(features=0), "solver.features: expected 1 or more, got 0"),
        (lambda: solve(Exact(solver=TD()), cycle(horizon=4)), "it ends after 4 decisions; give --discount"),
        (lambda: solve(Exact(solver=TD(features=4)), cycle()), "it has 3 states, for 4 features"),
    ],
)
def test_refusals(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_steps_that_diverge_are_told_in_a_line(recwarn):
    with pytest.raises(UserError, match=r"sweep \d+: value is not a number"):
        solve(Exact(solver=GTD2(lr=50.0)), RiverSwim().process)
    assert not recwarn.list
