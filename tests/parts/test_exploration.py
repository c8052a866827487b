"""Exploration: episodes are what the process gives, counts are what was seen, regret is exact."""

import numpy as np
import pytest

from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.parts.exploration import Explorer, Seen, by_lot, episode, returns
from partita.tasks.finite.chain import Chain
from partita.tasks.finite.mdp import assembled
from partita.tasks.finite.task import tables
from processes import random_process


class Same(Explorer):
    """Keeps the first plan, in which everything is equal."""

    def plan(self, problem, seen, last):
        return last


class Knowing(Explorer):
    """Plans with the process itself."""

    def plan(self, problem, seen, last):
        values = problem.induced(len(last))[0][:-1]
        return np.stack([problem.q(v) for v in values[::-1]])


def paying(seed=0, **about):
    """A random process with rewards from 0 to 1."""
    mdp = random_process(seed, discount=1.0)
    return mdp.but(reward=1 / (1 + np.exp(mdp.reward)), **about)


def test_counts_by_hand():
    seen = Seen(3, 2, 3)
    seen.add(np.array([0, 1, 0, 2]), np.array([1, 0, 1]))
    seen.add(np.array([0, 1, 1, 1]), np.array([1, 0, 0]))
    assert seen.visits.tolist() == [0, 3, 3, 0, 0, 0]
    np.testing.assert_allclose(seen.chance[[0, 1, 2]], [[0, 0, 0], [0, 2 / 3, 1 / 3], [1 / 3, 2 / 3, 0]])
    assert seen.reached.tolist() == [[2, 0, 0], [0, 2, 0], [1, 1, 0]]


def test_episodes_have_the_chances_of_the_process():
    mdp, rng = paying(start=np.array([0, 0.25, 0, 0.75, 0, 0])), np.random.default_rng(0)
    policy, seen = np.array([[0] * 6, [1] * 6, [2] * 6]), Seen(6, 3, 3)
    table = tables(mdp)
    for _ in range(4000):
        seen.add(*episode(table, policy, rng))
    np.testing.assert_allclose(seen.reached[0] / 4000, mdp.start, atol=0.03)
    second = mdp.start @ mdp.under(policy[0])[0]
    np.testing.assert_allclose(seen.reached[1] / 4000, second, atol=0.03)
    np.testing.assert_allclose(seen.chance[[3, 9]], mdp.transitions[[3, 9]], atol=0.04)
    assert seen.visits.sum() == 12_000 and seen.counts.sum() == 12_000


def test_returns_are_those_of_the_chain_of_a_policy():
    mdp, policy = paying(discount=0.9), np.random.default_rng(1).integers(0, 3, (3, 6))
    value, reach = 0.0, mdp.start
    for h in range(3):
        chain, reward = mdp.under(policy[h])
        value, reach = value + 0.9**h * reach @ reward, reach @ chain
    assert mdp.start @ returns(mdp, policy) == pytest.approx(value)


def test_equal_actions_are_drawn_evenly():
    drawn = by_lot(np.tile([1.0, 2.0, 2.0, -np.inf], (10_000, 1)), np.random.default_rng(0))
    assert set(drawn) == {1, 2} and 4700 < (drawn == 1).sum() < 5300


def test_one_who_knows_regrets_nothing():
    found = solve(Exact(solver=Knowing(episodes=5, horizon=4)), paying())
    np.testing.assert_allclose(found.curves["regret"], 0, atol=1e-12)
    assert found.solution.numbers["estimate"] == pytest.approx(found.solution.numbers["value"])


def test_regret_adds_up_what_each_policy_lacks():
    mdp = paying()
    best = mdp.start @ mdp.induced(4)[0][-1]
    found = solve(Exact(solver=Same(episodes=20, horizon=4)), mdp)
    assert found.finished and found.sweeps == 20 and len(set(found.curves["value"])) > 1
    np.testing.assert_allclose(found.curves["regret"], np.cumsum(best - found.curves["value"]))
    assert (np.diff(found.curves["regret"]) > 0).all() and found.solution.numbers["estimate"] == 4
    assert found.solution.tables["visits"].sum() == 19 * 4


def test_actions_that_do_not_exist_are_not_taken():
    allowed = np.random.default_rng(0).random((6, 3)) < 0.6
    allowed[:, 0] |= ~allowed.any(1)
    last = solve(Exact(solver=Same(episodes=50, horizon=3)), paying(allowed=allowed)).solution.tables
    assert (last["visits"][~allowed] == 0).all() and allowed[np.arange(6), last["policy"]].all()


def test_the_end_of_the_process_is_taken_where_none_is_given():
    found = solve(Exact(solver=Same(episodes=1)), paying(horizon=7))
    assert found.solution.tables["policy"].shape == (7, 6)


@pytest.mark.parametrize(
    ("problem", "settings", "said"),
    [
        (paying(), {}, "solver same: .* no end; give --solver.horizon"),
        (random_process(0), dict(horizon=3), "rewards must be from 0 to 1, here they are -"),
        (Chain().process, dict(horizon=3), "here they are 0.4 to 8.4"),
    ],
)
def test_problems_that_it_is_not_made_for(problem, settings, said):
    with pytest.raises(UserError, match=said):
        solve(Exact(solver=Same(**settings)), problem)


def test_rewards_of_actions_that_do_not_exist_are_not_read():
    mdp = assembled([(0, 0, 1, 1, 1.0), (1, 0, 1, 1, 0), (1, 1, 0, 1, 0)], 2, 2, horizon=2)
    mdp = mdp.but(reward=np.array([[1, 9.0], [0, 0]]), gains=None)
    assert solve(Exact(solver=Same(episodes=3)), mdp).finished


@pytest.mark.parametrize("field", ["episodes", "horizon"])
def test_bad_settings_are_refused(field):
    with pytest.raises(UserError, match=f"solver.{field}: expected 1 or more, got 0"):
        Same(**{field: 0})
