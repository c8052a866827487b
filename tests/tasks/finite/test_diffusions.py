"""Diffusions: values in closed form satisfy what defines them, transitions compose, families hold what they promise."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.integrate import quad

from partita.core.errors import UserError
from partita.tasks.finite.diffusions import (
    BlackScholes,
    Brownian,
    LinearQuadratic,
    OrnsteinUhlenbeck,
    call_price,
    saturated,
)

TASKS = [Brownian(), Brownian("square", horizon=2.0), Brownian("misfit"), OrnsteinUhlenbeck(), LinearQuadratic(),
         OrnsteinUhlenbeck(discount=0.0, noise=0.0), LinearQuadratic(drift=2.0, discount=0.3), BlackScholes(),
         LinearQuadratic(drift=1.0, discount=0.3)]  # fmt: skip
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@pytest.mark.parametrize("task", TASKS, ids=repr)
class TestAll:
    def test_the_value_is_what_a_short_time_pays_and_what_is_left(self, task):
        problem, dt = task.diffusion, 1e-4
        t, x = np.meshgrid([0.0, 0.3, 0.6 * problem.horizon], [0.7, 1.0, 1.4], indexing="ij")
        later = problem.value(t[..., None] + dt, problem.move(dt)(x[..., None], NODES)) @ WEIGHTS
        rate = (math.exp(-problem.discount * dt) * later - problem.value(t, x)) / dt + problem.reward(t, x)
        np.testing.assert_allclose(rate, 0, atol=2e-3)

    def test_two_moves_have_the_law_of_one(self, task):
        move = task.diffusion.move
        for power in (1, 2):
            twice = move(0.3)(move(0.2)(0.8, NODES)[:, None], NODES) ** power
            assert WEIGHTS @ twice @ WEIGHTS == pytest.approx(move(0.5)(0.8, NODES) ** power @ WEIGHTS)

    def test_the_family_has_the_value_where_it_says_so(self, task):
        problem = task.diffusion
        x, t = problem.paths(3, 8, np.random.default_rng(0)), problem.times(8)[:, None]
        assert problem.features(t, x).shape == (9, 3, problem.size) and x.shape == (9, 3)
        np.testing.assert_allclose(problem.features(t, x)[-1], 0, atol=1e-12)
        np.testing.assert_allclose(problem.base(t, x)[-1], problem.value(t, x)[-1], atol=1e-12)
        if problem.best is not None:
            found = problem.approximate(np.array(problem.best), t, x)
            np.testing.assert_allclose(found, problem.value(t, x), atol=1e-12)

    def test_paths_come_from_the_generator_alone(self, task):
        one, two, other = (task.diffusion.paths(4, 5, np.random.default_rng(seed)) for seed in (0, 0, 1))
        assert np.array_equal(one, two) and (getattr(task, "noise", 1) == 0 or not np.array_equal(one, other))


def test_values_by_hand():
    assert Brownian().diffusion.value(0.25, 2.0) == 1.5
    assert Brownian("square").diffusion.value(0.5, 2.0) == 2.0 + 0.125
    assert Brownian("misfit").diffusion.value(0.5, 2.0) == 4.5
    # m = 2.5, A = (1 - e^-2.5) / 2.5, B = int_0^1 e^{-(1 - u) / 2} A(u) du
    mean = quad(lambda u: math.exp(-0.5 * (1 - u)) * (1 - math.exp(-2.5 * u)) / 2.5, 0, 1)[0]
    value = OrnsteinUhlenbeck(noise=0.5).diffusion.value(0.0, 2.0)
    assert value == pytest.approx(-4 * (1 - math.exp(-2.5)) / 2.5 - 0.25 * mean)
    assert call_price(1.0, 100.0, 100.0, 0.05, 0.2) == pytest.approx(10.450584, abs=1e-6)
    assert call_price(0.0, np.array([0.5, 1.0, 3.0]), 1.0, 0.05, 0.2).tolist() == pytest.approx([0.0, 0.0, 2.0])
    assert saturated(0.0, 3.0) == 3.0 and saturated(2.0, 1.0) == pytest.approx((1 - math.exp(-2)) / 2)


def test_an_ornstein_uhlenbeck_process_is_a_linear_system_without_control():
    one = OrnsteinUhlenbeck(pull=0.7, noise=0.4, discount=0.2).diffusion
    two = LinearQuadratic(drift=-0.7, gain=0.0, noise=0.4, discount=0.2, final_cost=0.0).diffusion
    t, x = np.array([0.0, 0.4, 1.0]), np.array([0.3, -1.0, 2.0])
    np.testing.assert_allclose(one.value(t, x), two.value(t, x))
    np.testing.assert_allclose(one.features(t, x), two.features(t, x))


def test_a_basis_without_the_volatility_has_no_best_weights():
    assert BlackScholes(basis=(0.1, 0.4)).diffusion.best is None
    assert BlackScholes().diffusion.best == (1.0, 0.0)
    assert BlackScholes(basis=(0.2, 0.4)).diffusion.best is None or BlackScholes(basis=(0.2, 0.4)).diffusion.best == (
        0,
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Brownian("cubic"), "task.case: brownian got 'cubic'; choose linear, square, misfit"),
        (lambda: Brownian(horizon=0.0), "task.horizon: brownian got 0.0"),
        (lambda: OrnsteinUhlenbeck(noise=-1.0), "task.noise: ornstein_uhlenbeck got -1.0"),
        (lambda: OrnsteinUhlenbeck(start=math.nan), "task.start: .* give a finite number"),
        (lambda: LinearQuadratic(drift=1.0), "task.gain: linear_quadratic got 1.0; .* change it a little"),
        (lambda: BlackScholes(basis=(0.2,)), "task.basis: .* two or more different volatilities"),
        (lambda: BlackScholes(volatility=0.0), "task.volatility"),
        (lambda: dataclasses.replace(Brownian().diffusion, horizon=0.0), "horizon: expected a time above 0"),
        (lambda: dataclasses.replace(Brownian().diffusion, discount=-1.0), "discount: expected a rate"),
        (lambda: dataclasses.replace(Brownian().diffusion, base=lambda t, x: x), "base: expected the value at the hor"),
        (
            lambda: dataclasses.replace(Brownian().diffusion, features=lambda t, x: np.ones((*np.shape(x), 1))),
            "features: expected 0 at the horizon",
        ),
    ],
)
def test_refusals(make, said):
    with pytest.raises(UserError, match=said):
        make()
