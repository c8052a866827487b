"""R2PVI: one decision by hand, exact robust values from data as due, and its neighbours as special cases."""

import json

import numpy as np
import pytest

from partita.cli import main
from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.papers.robust.r2pvi import (
    DRPVI,
    PEVI,
    R2PVI,
    cost_slope,
    due,
    random_process,
    ridge,
    robust_values,
    tabular_gap,
    under_shift,
)  # fmt: skip
from partita.parts.robust import RobustValueIteration
from partita.tasks.finite.linear import LinearMDP, Logged, SimulatedLinear, one_hot

KINDS = ("total_variation", "kl", "chi_squared")


def column(*values):
    return np.array(values)[:, None]


def last(solver, problem, data=None, seed=0):
    found = solver(problem, np.random.default_rng(seed)) if data is None else solver.learn(problem, data)
    *_, solution = found
    return solution


# one state, two actions with features (1, 0) and (.5, .5)
ONE = LinearMDP([[[1, 0], [0.5, 0.5]]], [[[1.0], [1.0]]], [[0.4, 0.8]], [1.0])


def test_ridge_and_both_bonuses_by_hand():
    data = Logged(column(0, 0), column(0, 1), column(0, 0))
    # Lambda = [[1 + .25 + .75, .25], [.25, .25 + .75]] = [[2, .25], [.25, 1]], of determinant 31/16
    inverse, factors = ridge(ONE, data, 0, 0.75)
    np.testing.assert_allclose(inverse, np.array([[16, -4], [-4, 32]]) / 31)
    np.testing.assert_allclose(factors, inverse @ [[1.5], [0.5]])
    ours = R2PVI().spread(ONE.features, inverse)
    np.testing.assert_allclose(ours, [[np.sqrt(16 / 31), (np.sqrt(16 / 31) + np.sqrt(32 / 31)) / 2]])
    theirs = PEVI().spread(ONE.features, inverse)
    np.testing.assert_allclose(theirs, [[np.sqrt(16 / 31), np.sqrt(10 / 31)]])
    # one decision: Q = reward - bonus; that of action 1 is .6 - .1 (.867), of action 0 .4 - .1 (.718)
    found = last(R2PVI(beta=0.1, gamma=0.75), ONE, data)
    assert found.numbers["value"] == pytest.approx(0.6 - 0.1 * ours[0, 1])
    assert found.tables["policy"].tolist() == [[1]] and found.numbers["return"] == pytest.approx(0.6)
    # its rewards are regressed: theta - gamma Lambda^-1 theta
    worth = np.array([0.4, 0.8]) - 0.75 * inverse @ [0.4, 0.8]
    assert last(PEVI(beta=0.0, gamma=0.75), ONE, data).numbers["value"] == pytest.approx(worth[0])


def test_values_stay_between_0_and_what_is_left():
    assert last(R2PVI(beta=100.0), SimulatedLinear().linear).tables["values"].tolist() == [0] * 5
    linear = SimulatedLinear().linear.but(weights=np.ones((3, 4)))
    assert last(PEVI(beta=0.0, gamma=1e-6, episodes=500), linear).tables["values"].max() == 3


def test_duals_on_estimates_by_hand():
    factors, v = np.array([[0.5, 0.3]]), np.array([1.0, 2.0])
    assert R2PVI(lam=0.5).factor_values(factors, v, 3) == pytest.approx([0.5 + 0.3 * 1.5])
    mean = 0.5 * np.exp(-1) + 0.3 * np.exp(-2)
    assert R2PVI(divergence="kl", lam=1.0).factor_values(factors, v, 3) == pytest.approx([-np.log(mean)])
    assert R2PVI(divergence="kl", lam=1.0).factor_values(-factors, v, 3).tolist() == [3]
    assert DRPVI(rho=0.1).factor_values(factors, v, 3) == pytest.approx([1.0])


@pytest.mark.parametrize("seed", range(3))
def test_with_one_hot_features_and_data_as_due_values_are_the_exact_robust_ones(seed):
    assert tabular_gap(seed) < 1e-8 and tabular_gap(seed, lam=0.05) < 1e-8
    mdp = random_process(seed)
    exact = solve(Exact(solver=RobustValueIteration(radius=0.2)), mdp).solution.tables
    found = last(DRPVI(beta=0.0, gamma=0.0, rho=0.2), one_hot(mdp), due(mdp)).tables
    np.testing.assert_allclose(found["values"], exact["values"], atol=1e-8)
    assert (found["policy"] == exact["policy"]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_many_samples_come_near_the_exact_values(kind):
    mdp = random_process(5)
    found = last(R2PVI(beta=0.0, divergence=kind, lam=0.3, episodes=50_000), one_hot(mdp)).tables["values"]
    np.testing.assert_allclose(found, robust_values(mdp, kind, 0.3), atol=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_at_a_high_price_it_is_pevi_with_known_rewards(seed):
    """Where features are one-hot both bonuses are the same; elsewhere without one."""
    for problem, beta in ((one_hot(random_process(seed)), 0.5), (SimulatedLinear().linear, 0.0)):
        plain = last(PEVI(beta=beta, rewards="known"), problem, seed=seed)
        robust = last(R2PVI(beta=beta, lam=4.0), problem, seed=seed)
        np.testing.assert_allclose(robust.tables["values"], plain.tables["values"], atol=1e-12)
        for kind in ("kl", "chi_squared"):
            data = due(random_process(seed))
            free = R2PVI(beta=beta, gamma=0.0, lam=1e6, divergence=kind)
            if beta:
                near = last(PEVI(beta=beta, gamma=0.0), problem, data).tables["values"]
                np.testing.assert_allclose(last(free, problem, data).tables["values"], near, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_lower_prices_and_larger_bonuses_promise_less(kind):
    mdp = random_process(1)
    linear, data = one_hot(mdp), due(mdp)

    def value(lam, beta):
        return last(R2PVI(beta=beta, gamma=0.0, divergence=kind, lam=lam), linear, data).numbers["value"]

    prices, bonuses = [value(lam, 0.1) for lam in (0.1, 0.3, 1.0)], [value(0.3, beta) for beta in (0.3, 0.1, 0.0)]
    assert prices == sorted(prices) and bonuses == sorted(bonuses) and len({*prices, *bonuses}) == 5


@pytest.mark.parametrize("solver", [R2PVI(), R2PVI(divergence="kl"), R2PVI(divergence="chi_squared"), DRPVI(), PEVI()])
def test_names_of_states_and_features_do_not_matter(solver):
    linear, rng = SimulatedLinear(norm=0.1).linear, np.random.default_rng(0)
    data = linear.sample(200, rng)
    s, d = rng.permutation(5), rng.permutation(4)
    moved = LinearMDP(linear.features[s][:, :, d], linear.factors[:, d][:, :, s], linear.weights[:, d], linear.start[s])
    back = np.argsort(s)
    renamed = Logged(back[data.states], data.actions, back[data.following])
    expected, found = last(solver, linear, data).tables["values"], last(solver, moved, renamed).tables["values"]
    np.testing.assert_allclose(found, expected[s], atol=1e-10)


def test_what_pessimism_costs_falls_as_the_root():
    assert cost_slope(1000) == pytest.approx(-0.5, abs=0.05)


def test_under_shift_returns_are_exact_and_optimisations_are_counted():
    robust, plain = (under_shift(arm, 1000, beta=0.1) for arm in ("treatment", "control"))
    assert robust["value"] > plain["value"] and robust["nominal"] < plain["nominal"]
    assert robust["optimisations"] == 0 and under_shift("control", 1000, control="drpvi")["optimisations"] == 12


@pytest.mark.parametrize("name", ["r2pvi", "r2pvi_kl", "r2pvi_chi_squared", "drpvi", "pevi"])
def test_recipes_are_solved(name, capsys):
    main(["solve", name, "--task.shift", "0.8", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["finished"] and found["sweeps"] == 3 and np.shape(found["tables"]["policy"]) == (3, 5)
    assert 0 <= found["numbers"]["shifted"] <= found["numbers"]["return"] <= 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: R2PVI(lam=0.0), "solver.lam: expected a number above 0, got 0.0"),
        (lambda: R2PVI(divergence="wasserstein"), "solver.divergence: expected total_variation, kl or chi_squared"),
        (lambda: R2PVI(beta=-1.0), "solver.beta: expected 0 or more, got -1.0"),
        (lambda: R2PVI(episodes=0), "solver.episodes: expected 1 or more, got 0"),
        (lambda: DRPVI(rho=1.5), "solver.rho: expected a number from 0 to 1, got 1.5"),
        (lambda: PEVI(rewards="guessed"), "solver.rewards: expected estimated or known"),
        (lambda: last(R2PVI(gamma=0.0), SimulatedLinear().linear), "solver.gamma: got 0.0, and the data lack"),
        (
            lambda: solve(Exact(solver=R2PVI()), SimulatedLinear().linear.but(weights=2 * np.ones((3, 4)))),
            "from 0 to 1",
        ),
    ],
)
def test_refusals(make, said):
    with pytest.raises(UserError, match=said):
        make()
