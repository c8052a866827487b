"""The linear regulator: values in closed form against cases by hand, simulation and a search."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from partita.core.errors import UserError
from partita.tasks.finite.regulator import LinearRegulator, Regulator


def one(a, b, price=0.5, discount=0.5):
    return Regulator(np.array([[a]]), np.array([[b]]), price, discount)


def test_values_by_hand():
    # M = 1 + 1 (-1/2) = 1/2; P = (1 + 1/2 * 1/4) / (1 - 1/2 * 1/4) = 9/7
    theta = np.full((1, 1, 1), -0.5)
    assert one(1.0, 1.0).values(theta, 0.0)[0] == pytest.approx(-9 / 7)
    # each step's noise costs price sigma^2 at once and discount sigma^2 P later, and there are 1 / (1 - discount) of it
    assert one(1.0, 1.0).values(theta, 2.0)[0] == pytest.approx(-9 / 7 - 4 * (0.5 + 0.5 * 9 / 7) * 2)


def test_values_without_bound():
    problem = one(1.0, 1.0)
    theta = np.array([-0.5, 0.5, np.nan, np.inf])[:, None, None]  # |M| below sqrt 2 is held by the discount
    assert np.isinf(problem.values(theta, 1.0)).tolist() == [False, True, True, True]
    assert problem.values(np.full((1, 1, 1), 0.41), 1.0)[0] < -50


def test_the_best_policy_is_that_of_a_search():
    problem = LinearRegulator().regulator
    for sigma in (0.0, 1.0):
        found = minimize(lambda x, s=sigma: -problem.values(x.reshape(1, 2, 2), s)[0], np.zeros(4), tol=1e-12)
        np.testing.assert_allclose(problem.best().ravel(), found.x, atol=1e-4)


def test_turning_the_axes_changes_no_value():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    a, b, theta = 0.3 * rng.normal(size=(3, 3)), rng.normal(size=(3, 2)), 0.1 * rng.normal(size=(4, 2, 3))
    here = Regulator(a, b, 0.2, 0.8).values(theta, 0.7)
    there = Regulator(turn @ a @ turn.T, turn @ b, 0.2, 0.8).values(theta @ turn.T, 0.7)
    np.testing.assert_allclose(here, there)


def test_the_environment_pays_what_the_closed_form_says():
    task, g = LinearRegulator(max_steps=60), torch.Generator().manual_seed(0)
    theta = torch.tensor([[-0.6, -0.3], [0.1, -0.7]])
    envs = task.envs(task.problems(40_000, g), g, auto_reset=False)
    total = torch.zeros(40_000)
    for t in range(60):
        total += task.discount**t * envs.step(envs.obs @ theta.T + 0.5 * torch.randn(40_000, 2, generator=g)).reward
    value = task.regulator.values(theta.double().numpy()[None], 0.5)[0]
    assert float(total.mean()) == pytest.approx(value, abs=4 * float(total.std()) / 200)


@pytest.mark.parametrize("bad", [{"discount": 1.0}, {"discount": 0.0}, {"decay": 1.2}, {"gain": 0.0}, {"price": -1.0}])
def test_refusals(bad):
    with pytest.raises(UserError, match=r"task\."):
        LinearRegulator(**bad)
