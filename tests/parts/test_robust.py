"""Robust value iteration: its equation, nominal planning where nothing is uncertain, and what is refused."""

import numpy as np
import pytest
from scipy import sparse

from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.parts.planning import BackwardInduction, PolicyIteration
from partita.parts.robust import RobustValueIteration
from partita.tasks.finite.mdp import assembled
from partita.tasks.finite.uncertainty import SETS
from processes import random_process

EACH = pytest.mark.parametrize("name", list(SETS))


def answer(mdp, **settings):
    found = solve(Exact(solver=RobustValueIteration(**settings)), mdp)
    assert found.finished
    return found.solution


def test_two_states_by_hand():
    # state 1 pays 1 and stays, state 0 pays 0 and moves there; half of each row may move to 0, whose value is lower
    mdp = assembled([(0, 0, 1, 1, 0.0), (1, 0, 1, 1, 1.0)], 2, 1, discount=0.5)
    # v1 = 1 + .25 v1 + .25 v0, v0 = .25 v1 + .25 v0, so v0 = v1 / 3 and v1 = 1.5
    np.testing.assert_allclose(answer(mdp, radius=0.5).tables["values"], [0.5, 1.5], atol=1e-8)
    # at a price of .2 state 1 is worth v0 + .2: v0 = .5 (v0 + .2) = .2, v1 = 1 + .5 (.4)
    np.testing.assert_allclose(answer(mdp, price=0.2).tables["values"], [0.2, 1.2], atol=1e-8)


@EACH
@pytest.mark.parametrize("price", [None, 0.5])
def test_values_satisfy_the_equation_and_policies_are_held_to_it(name, price):
    mdp = random_process(1)
    found = answer(mdp, uncertainty=name, radius=0.2, price=price)
    values = found.tables["values"]
    among = SETS[name]
    after = (
        among.worst(mdp.transitions, values, 0.2) if price is None else among.penalised(mdp.transitions, values, price)
    )
    q = mdp.reward + mdp.discount * after.reshape(mdp.reward.shape)
    np.testing.assert_allclose(q.max(1), values, atol=1e-8)
    assert (found.tables["policy"] == q.argmax(1)).all()
    assert (values < answer(mdp, uncertainty=name, radius=0.0).tables["values"]).all()


@EACH
def test_nothing_uncertain_is_plain_planning(name):
    mdp = random_process(2)
    best = solve(Exact(solver=PolicyIteration()), mdp).solution.tables["values"]
    np.testing.assert_allclose(answer(mdp, uncertainty=name, radius=0.0).tables["values"], best, atol=1e-7)
    ends = mdp.but(horizon=4)
    short = solve(Exact(solver=BackwardInduction()), ends).solution.tables
    found = answer(ends, uncertainty=name, radius=0.0).tables
    np.testing.assert_allclose(found["values"], short["values"], atol=1e-10)
    assert (found["policy"] == short["policy"]).all() and found["policy"].shape == (4, 6)


@EACH
def test_sparse_shifted_scaled_and_with_actions_that_do_not_exist(name):
    mdp = random_process(3)
    values = answer(mdp, uncertainty=name).tables["values"]
    thin = mdp.but(transitions=sparse.csr_array(mdp.transitions))
    np.testing.assert_allclose(answer(thin, uncertainty=name).tables["values"], values, atol=1e-7)
    moved = answer(mdp.but(reward=2 * mdp.reward + 3), uncertainty=name).tables["values"]
    np.testing.assert_allclose(moved, 2 * values + 30, atol=1e-6)
    allowed = np.ones((6, 3), bool)
    allowed[:, 0] = False
    table = mdp.transitions.copy()
    table[::3] = 0
    found = answer(mdp.but(transitions=table, allowed=allowed), uncertainty=name).tables
    assert (found["policy"] > 0).all() and (found["values"] <= values + 1e-8).all()


def test_rewards_far_from_zero_cost_no_digits():
    mdp = random_process(4)
    near = answer(mdp, uncertainty="chi_squared", price=0.01).tables["values"]
    far = answer(mdp.but(reward=mdp.reward + 1e4), uncertainty="chi_squared", price=0.01).tables["values"]
    np.testing.assert_allclose(far - 1e5, near, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"uncertainty": "l2"}, "solver.uncertainty: expected one of"),
        ({"radius": -0.1}, "solver.radius: expected a number of 0 or more, got -0.1"),
        ({"radius": np.nan}, "solver.radius: expected"),
        ({"price": 0.0}, "solver.price: expected a number above 0, got 0.0"),
        ({"tolerance": 0.0}, "solver.tolerance: expected"),
    ],
)
def test_refusals(settings, said):
    with pytest.raises(UserError, match=said):
        RobustValueIteration(**settings)
