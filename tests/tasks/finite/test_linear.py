"""Linear processes: the simulated one by hand, samples, one-hot features, and what is refused."""

import numpy as np
import pytest

from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.parts.planning import BackwardInduction
from partita.tasks.finite.linear import LinearMDP, SimulatedLinear, one_hot
from partita.tasks.finite.mdp import assembled
from processes import random_process


def small(**changes):
    """Two states, one action, two features, two decisions."""
    fields = dict(
        features=[[[1, 0]], [[0.5, 0.5]]], factors=[[[0.2, 0.8], [1, 0]], [[1, 0], [0, 1]]], weights=[[0, 1], [0.5, 1]],
        start=[1, 0],
    )  # fmt: skip
    return LinearMDP(**{**fields, **changes})


def test_one_step_and_values_by_hand():
    linear = small()
    # last decision: .5 and .75; first: .2 * .5 + .8 * .75, and .5 + .5 * .7 + .5 * .5
    np.testing.assert_allclose(linear.evaluate(np.zeros((2, 2), int)), [[0.7, 1.1], [0.5, 0.75], [0, 0]])
    np.testing.assert_allclose(linear.q(0, np.array([0.5, 0.75])), [[0.7], [1.1]])


@pytest.mark.parametrize(("norm", "q"), [(0.2, 0.0), (0.2, 1.0), (0.1, 0.5), (0.3, 0.9)])
@pytest.mark.parametrize("first", [0, 15])
def test_the_simulated_process_by_hand(norm, q, first):
    task = SimulatedLinear(norm=norm, shift=q)
    best, chosen = 0.3 + norm, 0.3 + norm * (1 if first else -1)
    leak = 1e-3 if q == 0 else 0.0
    v2 = 2 * best + (1 - best) * (1 - 1e-3) * best
    policy = np.full((3, 5), 15)
    policy[0] = first
    later = task.linear.later()
    assert later.start @ later.evaluate(policy)[0] == pytest.approx(
        (1 - chosen) * (1 - leak) * v2 + 2 * chosen * (1 - q)
    )
    chances = np.eye(16)[policy]
    np.testing.assert_allclose(later.evaluate(chances), later.evaluate(policy))


def test_samples_are_those_of_the_process():
    linear = SimulatedLinear(leak=0.3).linear
    data = linear.sample(20_000, np.random.default_rng(0))
    assert (data.states[:, 0] == 0).all() and (data.states[:, 1:] == data.following[:, :-1]).all()
    share = np.bincount(data.following[:, 0], minlength=5) / 20_000
    np.testing.assert_allclose(share, [0, 0.7 * 0.7, 0, 0.7 * 0.3, 0.3], atol=0.015)
    assert np.bincount(data.actions.ravel(), minlength=16).min() > 3000
    last = linear.sample(10, np.random.default_rng(0), np.eye(16)[np.full((3, 5), 15)])
    assert (last.actions == 15).all()


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_unrolled_it_is_the_same_process(shift):
    task = SimulatedLinear(shift=shift)
    found = solve(Exact(solver=BackwardInduction()), task.process).solution
    later, values = task.linear.later(), np.zeros(5)
    for h in reversed(range(3)):
        values = later.q(h, values).max(1)
    assert found.numbers["value"] == pytest.approx(later.start @ values) and task.process.size == 16
    assert task.horizon == 3 and task.observation_shape == (16,)


def test_one_hot_features_are_the_finite_process():
    mdp = random_process(0, horizon=3, discount=1.0)
    linear = one_hot(mdp)
    values, best = mdp.induced()
    np.testing.assert_allclose(linear.evaluate(best[::-1])[0], values[-1])
    assert linear.features.shape == (6, 3, 18) and one_hot(mdp, 5).horizon == 5
    gaps = assembled([(0, 1, 1, 1, 5.0), (1, 0, 1, 1, 0), (1, 1, 1, 1, 0)], 2, 2, discount=1.0, horizon=1)
    np.testing.assert_allclose(one_hot(gaps).q(0, np.zeros(2)), [[5, 5], [0, 0]])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: small(features=[[1, 0]]), "features: expected states x actions x features, got shape"),
        (lambda: small(factors=[[1, 0]]), "factors: expected decisions x features x states, got shape"),
        (lambda: small(weights=[[0, 1]]), r"weights: expected shape \(2, 2\) for 2 states and 2 features"),
        (lambda: small(weights=[[0, 1], [0, np.inf]]), "weights: expected finite"),
        (lambda: small(features=[[[1, 0]], [[0.5, 0.6]]]), r"features: state 1, action 0: .* got \[0.5, 0.6\]"),
        (lambda: small(shifted=[[[1, 0], [0, 1]], [[1, 0], [2, -1]]]), "shifted: decision 1, feature 1: expected"),
        (lambda: small(start=[0.5, 0.4]), r"start: expected probabilities that add up to 1, got \[0.5, 0.4\]"),
        (lambda: one_hot(random_process(0, discount=1.0)), "horizon: the process has no end"),
        (lambda: one_hot(random_process(0, horizon=2)), "discount: a linear process is not discounted, got 0.9"),
        (lambda: SimulatedLinear(norm=0.4), "task.norm: simulated_linear got 0.4"),
        (lambda: SimulatedLinear(shift=1.5), "task.shift: simulated_linear got 1.5"),
    ],
)
def test_refusals(make, said):
    with pytest.raises(UserError, match=said):
        make()
