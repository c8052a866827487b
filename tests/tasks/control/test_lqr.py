"""The regulator: the closed forms against rollouts, recursions and each other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.tasks.control.lqr import Lqr


def rolled(task, state, gain, steps, discount, seed=0):
    """Discounted return of u = -gain x, (n,) float64."""
    generator = torch.Generator().manual_seed(seed)
    total, weight = torch.zeros(len(state), dtype=torch.float64), 1.0
    for _ in range(steps):
        state, reward, terminated = task.step(state, -state @ gain.T, generator)
        assert not terminated.any()
        total, weight = total + weight * reward, weight * discount
    return total


def test_one_step_by_hand():
    task = Lqr(q=(1.0, 2.0), r=(0.5,))
    state, reward, terminated = task.step(
        torch.tensor([[1.0, -2.0]], dtype=torch.float64), torch.tensor([[3.0]]), torch.Generator()
    )
    np.testing.assert_allclose(state.numpy(), [[1.0 - 0.2, -2.0 + 0.3]], atol=1e-12)
    assert reward.tolist() == [-(1.0 + 2.0 * 4.0 + 0.5 * 9.0)]
    assert terminated.tolist() == [False]


def test_scalar_system_against_its_quadratic():
    """One state: P solves the scalar Riccati equation, a quadratic."""
    a, b, q, r, d = 1.2, 0.5, 1.0, 0.3, 0.9
    task = Lqr(states=1, a=(a,), b=(b,), q=(q,), r=(r,))
    # P = q + d a^2 P - (d a b P)^2 / (r + d b^2 P)  <=>  d b^2 P^2 + (r - q d b^2 - d a^2 r) P - q r = 0
    linear = r - q * d * b**2 - d * a**2 * r
    p = (-linear + math.sqrt(linear**2 + 4 * d * b**2 * q * r)) / (2 * d * b**2)
    assert task.cost_to_go(d).item() == pytest.approx(p, rel=1e-10)
    assert task.optimal_gain(d).item() == pytest.approx(d * a * b * p / (r + d * b**2 * p), rel=1e-10)
    state = torch.tensor([[2.0]])
    assert task.optimal_value(state, d).item() == pytest.approx(-4.0 * p, rel=1e-10)


def test_the_best_gain_earns_the_best_value_and_others_less():
    task, d = Lqr(), 0.95
    state = torch.tensor([[1.0, 0.0], [0.3, -0.8], [-1.0, 1.0]], dtype=torch.float64)
    gain, value = task.optimal_gain(d), task.optimal_value(state, d)
    torch.testing.assert_close(rolled(task, state, gain, 800, d), value, rtol=1e-10, atol=1e-10)
    for change in (0.9, 1.1):
        assert (rolled(task, state, gain * change, 800, d) < value).all()
    assert float(task.optimal_value(discount=d)) == pytest.approx(-np.trace(task.cost_to_go(d)) / 3.0)


def test_noise_costs_what_the_formula_says():
    task, d = Lqr(noise=0.2), 0.9
    state = torch.tensor([[0.5, -0.5]], dtype=torch.float64).expand(4000, 2)
    returns = rolled(task, state, task.optimal_gain(d), 150, d)
    error = float(returns.mean() - task.optimal_value(state[:1], d))
    assert abs(error) < 4 * float(returns.std()) / math.sqrt(4000)
    noiseless = float(Lqr().optimal_value(state[:1], d))
    assert float(returns.mean()) < noiseless - 0.1


def test_noise_is_added_with_its_standard_deviation():
    state = torch.ones(20_000, 2)
    task = Lqr(noise=0.2)
    new, _, _ = task.step(state, torch.zeros(20_000, 1), torch.Generator().manual_seed(0))
    torch.testing.assert_close(new.mean(0), torch.tensor([1.1, 1.0]), rtol=0, atol=0.01)
    torch.testing.assert_close(new.std(0), torch.tensor([0.2, 0.2]), rtol=0.03, atol=0)


def test_finite_horizon_return_by_brute_force():
    """Two steps: the last control is 0; the first minimises q-cost one step on. Worked out directly."""
    task = Lqr(states=1, a=(1.5,), b=(1.0,), q=(2.0,), r=(0.5,), max_steps=2, start=1.0, noise=0.3)
    # min_u q x^2 + r u^2 + q ((a x + b u)^2 + noise^2): u = -a b q x / (r + b^2 q)
    u = -1.5 * 2.0 / 2.5
    cost = 2.0 + 0.5 * u**2 + 2.0 * (1.5 + u) ** 2
    assert task.optimal_return() == pytest.approx(-cost / 3.0 - 2.0 * 0.09, rel=1e-12)
    assert Lqr(max_steps=3000).optimal_return() == pytest.approx(-np.trace(Lqr().cost_to_go(1.0)) / 3.0, rel=1e-9)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1.2, 1.2), min_size=4, max_size=4),
    st.lists(st.floats(0.2, 2.0), min_size=2, max_size=2),
    st.floats(0.5, 0.99),
)
def test_value_solves_the_bellman_equation(a, b, discount):
    task = Lqr(a=tuple(a), b=tuple(b), q=(1.0, 0.5), r=(0.2,))
    state = torch.tensor([[1.0, -0.5], [0.2, 0.9]], dtype=torch.float64)
    best = -state @ task.optimal_gain(discount).T
    value = task.optimal_value(state, discount)

    def backup(action):
        new, reward, _ = task.step(state, action, torch.Generator())
        return reward + discount * task.optimal_value(new, discount)

    torch.testing.assert_close(backup(best), value, rtol=1e-7, atol=1e-7)
    for change in (-0.1, 0.1):
        assert (backup(best + change) < value).all()


def test_shapes_with_two_controls():
    task = Lqr(states=2, a=(1.0, 0.0, 0.0, 1.0), b=(1.0, 0.0, 0.0, 1.0), r=(0.1, 0.2))
    assert task.controls == task.action_space.size == 2
    generator = torch.Generator().manual_seed(0)
    envs = task.envs(task.problems(5, generator), generator)
    assert envs.step(torch.zeros(5, 2)).obs.shape == (5, 2)
    assert float(envs.obs.abs().max()) <= 1.0


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"a": (1.0, 2.0)}, "task.a"), ({"b": (1.0, 2.0, 3.0)}, "task.b"), ({"q": (1.0, 1.0, 1.0)}, "task.q"),
        ({"r": (0.0,)}, "task.r"), ({"q": (-1.0,)}, "task.q"), ({"noise": -0.1}, "task.noise"),
        ({"a": (float("nan"), 0.0, 0.0, 1.0)}, "task.a"), ({"states": 0}, "task.states"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(settings, field):
    with pytest.raises(UserError, match=field):
        Lqr(**settings)


def test_a_system_that_cannot_be_stabilised_is_refused():
    with pytest.raises(UserError, match="no stabilising control"):
        Lqr(a=(2.0, 0.0, 0.0, 2.0), b=(0.0, 0.0)).optimal_gain(0.99)
