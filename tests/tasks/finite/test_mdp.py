"""Finite processes: what follows from the tables, and what is refused."""

import numpy as np
import pytest
from scipy import sparse

from partita.core.errors import UserError
from partita.tasks.finite.mdp import FiniteMDP, assembled
from processes import forest, random_process

TWO = [(0, 0, 0, 0.5, 1.0), (0, 0, 1, 0.5, 3.0), (1, 0, 1, 1.0, 0.0), (1, 1, 0, 0.25, 0.0), (1, 1, 0, 0.25, 4.0),
       (1, 1, 1, 0.5, 0.0)]  # fmt: skip


def two(**about):
    return assembled(TWO, 2, 2, discount=0.9, **about)


def test_outcomes_become_tables():
    mdp = two()
    assert mdp.transitions.toarray().tolist() == [[0.5, 0.5], [0, 0], [0, 1], [0.5, 0.5]]
    assert mdp.reward.tolist() == [[2, 0], [0, 1]] and mdp.allowed.tolist() == [[True, False], [True, True]]
    assert mdp.gains.toarray()[0].tolist() == [1, 3] and mdp.gains.toarray()[3].tolist() == [2, 0]
    assert mdp.start.tolist() == [1, 0]


def test_one_step_by_hand():
    q = two().q(np.array([1.0, 2.0]))
    np.testing.assert_allclose(q, [[2 + 0.9 * 1.5, -np.inf], [0.9 * 2, 1 + 0.9 * 1.5]])


def test_values_of_a_policy_by_hand():
    # v1 = 1 + .45 v0 + .45 v1, v0 = 2 + .45 v0 + .45 v1
    np.testing.assert_allclose(two().evaluate(np.array([0, 1])), [15.5, 14.5])


def test_a_policy_of_chances_mixes_rows():
    chain, reward = two().under(np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert chain.toarray().tolist() == [[0.5, 0.5], [0.25, 0.75]] and reward.tolist() == [2, 0.5]


@pytest.mark.parametrize("seed", range(4))
def test_dense_and_sparse_are_the_same(seed):
    dense = random_process(seed)
    thin = dense.but(transitions=sparse.coo_array(dense.transitions))
    policy = np.random.default_rng(seed).dirichlet(np.ones(3), 6)
    np.testing.assert_allclose(thin.q(dense.start), dense.q(dense.start))
    for name in ("evaluate", "occupancy"):
        np.testing.assert_allclose(getattr(thin, name)(policy), getattr(dense, name)(policy))


@pytest.mark.parametrize("seed", range(4))
def test_occupancy_times_rewards_is_the_value(seed):
    mdp = random_process(seed)
    policy = np.random.default_rng(seed).dirichlet(np.ones(3), 6)
    occupancy = mdp.occupancy(policy)
    assert occupancy.sum() == pytest.approx(1)
    paid = (occupancy[:, None] * policy * mdp.reward).sum() / (1 - mdp.discount)
    assert paid == pytest.approx(mdp.start @ mdp.evaluate(policy))


def test_backward_induction_on_the_forest_by_hand():
    values, best = forest(discount=1.0).induced(2)
    # one decision left: 0, 1 (cut), 4 (wait); two left: .9 * 1 = .9 | .9 * 4 | 4 + .9 * 4
    np.testing.assert_allclose(values, [[0, 0, 0], [0, 1, 4], [0.9, 3.6, 7.6]])
    assert best.tolist() == [[0, 1, 0], [0, 0, 0]]


REFUSED = [
    (
        dict(transitions=[[0.5, 0.4], [0, 1], [0, 1], [1, 0]]),
        "transitions: state 0 (a), action 0 (x): .* to 0.9",
    ),
    (
        dict(transitions=[[1, 0], [0, 1], [1.5, -0.5], [1, 0]]),
        "state 1 (b), action 0 (x): .* state 1 (b) is below",
    ),
    (dict(transitions=[[1, 0], [0, 1], [np.nan, 1], [1, 0]]), "state 1 (b), action 0 (x): .* add up to nan"),
    (dict(transitions=np.eye(2)), r"transitions: expected shape \(4, 2\)"),
    (dict(reward=[[0, np.inf], [0, 0]]), "reward: state 0 (a), action 1 (y) pays inf"),
    (dict(reward=[0, 1]), "reward: expected a table"),
    (dict(discount=1.1), "discount: expected a number from 0 to 1, got 1.1"),
    (dict(horizon=0), "horizon: expected 1 or more decisions, got 0"),
    (dict(start=[0.5, 0.4]), "start: .* got a sum of 0.9"),
    (dict(allowed=np.array([[True, True], [False, False]])), "allowed: state 1 (b) has no action"),
    (dict(states=("a",)), "states: expected 2 names, got 1"),
]


@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_the_wrong_entry_is_named(changes, said, thin):
    right = dict(
        transitions=[[1, 0], [0, 1], [0, 1], [1, 0]], reward=[[0, 1], [2, 3]], start=[1, 0], discount=0.9,
        states=("a", "b"), actions=("x", "y"),
    )  # fmt: skip
    fields = {**right, **changes}
    fields = {k: np.array(v) if isinstance(v, list) else v for k, v in fields.items()}
    if thin:
        fields["transitions"] = sparse.coo_array(fields["transitions"])
    with pytest.raises(UserError, match=said.replace("(a)", r"\(a\)").replace("(b)", r"\(b\)").replace("(x)", r"\(x\)")
                       .replace("(y)", r"\(y\)")):  # fmt: skip
        FiniteMDP(**fields)


def test_values_without_bound_are_refused():
    with pytest.raises(UserError, match="discount: 1 leaves the values"):
        random_process(0, discount=1.0).evaluate(np.zeros(6, int))
