"""N-PG-IGT and HARPG: estimates by hand and on average, their baselines as special cases, and trajectories saved."""

import itertools
import json

import numpy as np
import pytest

from partita.cli import main
from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.papers.theory.npg_igt_harpg import (
    METHODS,
    HessianAided,
    ImplicitTransport,
    Quadratic,
    SampledGradient,
    Sampler,
    biased,
    expected,
    path,
    reached,
    sampled_gradient,
    sampled_product,
    strayed,
    unit,
)
from partita.tasks.finite.regulator import LinearRegulator, Regulator

PROBLEM = LinearRegulator().regulator
ONE = Regulator(np.array([[2.0]]), np.array([[1.0]]), 0.5, 0.5)


def path_of(solver, count=12, seed=0):
    solver = solver.but(updates=1, runs=3, length=5)
    return np.stack([f.tables["theta"] for f in itertools.islice(solver(PROBLEM, np.random.default_rng(seed)), count)])


def test_a_trajectory_by_hand():
    # x = 1; u = -1 + 2 * 1 = 1, pays -(1 + 1/2); x = 2 + 1 = 3; u = -3 - 2 = -5, pays -(9 + 25/2), of which half
    theta = np.full((1, 1, 1), -1.0)
    drawn = path(ONE, theta, 2.0, np.ones((1, 1)), np.array([1.0, -1.0])[:, None, None])
    states, scores, togo = (x.ravel().tolist() for x in drawn)
    assert states == [1, 3] and scores == [0.5, -0.5] and togo == [-1.5 - 10.75, -10.75]
    # G = -12.25 * 0.5 * 1 - 10.75 * -0.5 * 3
    g = -6.125 + 16.125
    assert sampled_gradient(*drawn).item() == pytest.approx(g)
    # v = 3: <sum of scores x, v> = 3 (0.5 - 1.5); -sum togo v x^2 / sigma^2 = 3 (12.25 + 10.75 * 9) / 4
    product = sampled_product(*drawn, 2.0, np.full((1, 1, 1), 3.0)).item()
    assert product == pytest.approx(-3 * g + 0.75 * (12.25 + 96.75))


def test_estimates_are_right_on_average():
    for seed in (1000, 1001):
        assert biased(seed) < 1e-7
    # one step from E x^2 = 1: J = -(1 + price (theta^2 + sigma^2))
    gradient, product = expected(ONE, np.full((1, 1), -0.7), 0.6, 1, np.full((1, 1), 2.0))
    assert gradient.item() == pytest.approx(-2 * 0.5 * -0.7) and product.item() == pytest.approx(-2 * 0.5 * 2.0)


def test_many_trajectories_climb_the_closed_form():
    theta = np.broadcast_to(np.array([[-0.6, -0.3], [0.1, -0.7]]), (20_000, 2, 2))
    sampler = Sampler(PROBLEM, 1.0, 40, tuple(np.random.default_rng(0).spawn(2)))
    drawn, slopes = sampler.gradient(theta), np.empty((2, 2))
    for i, j in itertools.product(range(2), range(2)):
        nudge = np.zeros((2, 2))
        nudge[i, j] = 1e-5
        up, down = PROBLEM.values(np.stack((theta[0] + nudge, theta[0] - nudge)), 1.0)
        slopes[i, j] = (up - down) / 2e-5
    assert (np.abs(drawn.mean(0) - slopes) < 4 * drawn.std(0) / np.sqrt(len(drawn))).all()


def test_changes_are_of_a_point_between_along_the_way():
    before, theta = np.random.default_rng(1).normal(size=(2, 3, 2, 2))
    streams, same = np.random.default_rng(0).spawn(2), np.random.default_rng(0).spawn(2)
    found = Sampler(PROBLEM, 0.7, 4, tuple(streams)).change(before, theta)
    q = same[1].random((3, 1, 1))
    place = before + q * (theta - before)
    drawn = path(PROBLEM, place, 0.7, same[1].standard_normal((3, 2)), same[1].standard_normal((4, 3, 2)))
    np.testing.assert_allclose(found, sampled_product(*drawn, 0.7, theta - before))
    assert (Sampler(PROBLEM, 0.7, 4, tuple(streams)).change(theta, theta) == 0).all()


def test_corrections_cancel_on_a_quadratic_and_only_they():
    assert strayed(1000) < 1e-12
    oracle, start = Quadratic(np.diag([1.0, 3.0]), np.ones(2)), np.zeros((1, 1, 2))
    theta, off = start, 0.0
    for following, d in itertools.islice(ImplicitTransport(transport=False).climb(start, oracle), 20):
        off, theta = max(off, np.abs(d - oracle.gradient(theta)).max()), following
    assert off > 0.01


def test_two_updates_by_hand():
    # J = -theta^2 / 2 + theta, gradient 1 - theta; eta_1 = 2/3 to the power, gamma 1, 2/3
    oracle, start = Quadratic(np.eye(1), np.ones(1)), np.zeros((1, 1, 1))
    plain = HessianAided(gamma_0=0.5, eta_power=1.0, normalised=False)
    (first, d0), (second, d1) = itertools.islice(plain.climb(start, oracle), 2)
    assert first.item() == 0.5 and d0.item() == 1 and d1.item() == pytest.approx(0.5)
    assert second.item() == pytest.approx(0.5 + 0.5 * 2 / 3 * 0.5)
    lag = ImplicitTransport(gamma_0=0.5, eta_power=1.0, transport=False)
    assert list(itertools.islice(lag.climb(start, oracle), 2))[1][1].item() == pytest.approx(1 / 3 + 2 / 3 * 0.5)


def test_with_eta_1_they_are_reinforce():
    reinforce = SampledGradient(gamma_0=0.2, gamma_power=1.0, normalised=True)
    for solver in (ImplicitTransport(gamma_0=0.2, eta_power=0.0), HessianAided(gamma_0=0.2, eta_power=0.0)):
        np.testing.assert_array_equal(path_of(solver), path_of(reinforce))
    harpg = HessianAided(gamma_0=0.01, gamma_power=0.5, eta_power=0.0, normalised=False)
    vanilla = SampledGradient(gamma_0=0.01, gamma_power=0.5)
    np.testing.assert_array_equal(path_of(harpg), path_of(vanilla))
    assert not np.allclose(path_of(harpg.but(eta_power=1.0)), path_of(vanilla))


@pytest.mark.parametrize("solver", [ImplicitTransport(), HessianAided(), SampledGradient(normalised=True)])
def test_normalised_steps_are_as_long_as_gamma(solver):
    moved = np.diff(path_of(solver), axis=0, prepend=0)
    steps = solver.gamma_0 * (2 / (np.arange(12) + 2)) ** solver.gamma_power
    np.testing.assert_allclose(np.sqrt((moved**2).sum((2, 3))), np.repeat(steps[:, None], 3, 1))


def test_scaled_rewards_change_no_normalised_path():
    doubled = path(ONE, np.zeros((1, 1, 1)), 1.0, np.ones((1, 1)), np.ones((4, 1, 1)))
    d = sampled_gradient(*doubled)
    np.testing.assert_allclose(unit(d), unit(7 * d))
    assert unit(np.zeros((1, 2, 2))).tolist() == np.zeros((1, 2, 2)).tolist()


def test_numbers_of_a_solution():
    found = solve(Exact(solver=HessianAided(updates=10, runs=4), sweeps=3), PROBLEM, 0).solution
    theta = found.tables["theta"]
    values = PROBLEM.values(theta, 1.0)
    top = PROBLEM.values(PROBLEM.best()[None], 1.0)[0]
    start = PROBLEM.values(np.zeros((1, 2, 2)), 1.0)[0]
    assert found.numbers["trajectories"] == 60 and found.numbers["value"] == pytest.approx(values[-1])
    assert found.numbers["gap"] == pytest.approx(top - np.maximum(values, start).mean())
    lost = solve(Exact(solver=SampledGradient(gamma_0=10.0, updates=5), sweeps=1), PROBLEM, 0).solution.numbers
    assert lost["lost"] == 1 and lost["gap"] == pytest.approx(top - start)


def test_transport_saves_trajectories():
    few, many = reached("treatment", 1000, 1.0, gamma_0=0.3), reached("control", 1000, 1.0, budget=2000, gamma_0=0.004)
    assert 2 * few["value"] < many["value"] and few["gap"] <= 1
    assert reached("treatment", 1000, 0.0, budget=100, runs=2)["value"] == 100


@pytest.mark.parametrize(
    ("bad", "field"),
    [({"gamma_0": 0.0}, "gamma_0"), ({"eta_0": 1.5}, "eta_0"), ({"eta_0": 0.0}, "eta_0"), ({"runs": 0}, "runs"),
     ({"gamma_power": 2.0}, "gamma_power"), ({"eta_power": -1.0}, "eta_power"), ({"sigma": -1.0}, "sigma"),
     ({"length": 0}, "length")],
)  # fmt: skip
def test_refusals(bad, field):
    with pytest.raises(UserError, match=rf"solver\.{field}: expected"):
        ImplicitTransport(**bad)


@pytest.mark.parametrize("recipe", METHODS)
def test_recipes_run(recipe, capsys):
    main(["solve", recipe, "--sweeps", "3", "--solver.updates", "4", "--solver.runs", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["sweeps"] == 3 and found["numbers"]["gap"] > 0
    with pytest.raises(SystemExit):
        main(["solve", recipe, "--task", "river_swim"])
    assert "it has no regulator" in capsys.readouterr().err
