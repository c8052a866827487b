"""Classic instances: their tables by hand, and their known values."""

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.parts.planning import ValueIteration
from partita.tasks.finite.chain import Chain
from partita.tasks.finite.combination_lock import CombinationLock
from partita.tasks.finite.frozen_lake import FrozenLake
from partita.tasks.finite.gambler import Gambler
from partita.tasks.finite.garnet import Garnet, subsets
from partita.tasks.finite.inventory import Inventory

ALL = [Chain, CombinationLock, FrozenLake, Gambler, Garnet, Inventory]


def answer(task):
    return solve(Exact(solver=ValueIteration(tolerance=1e-10)), task.process).solution.tables


@pytest.mark.parametrize(("discount", "value"), [(0.9, 25.499085), (0.95, 61.379482), (0.99, 354.768101)])
def test_chain(discount, value):
    found = answer(Chain(discount=discount))
    assert found["values"][0] == pytest.approx(value, abs=1e-6) and not found["policy"].any()


def test_chain_by_hand():
    mdp = Chain(length=2, slip=0.25, small=1.0, large=4.0).process
    assert mdp.transitions.toarray().tolist() == [[0.25, 0.75], [0.75, 0.25], [0.25, 0.75], [0.75, 0.25]]
    assert mdp.reward.tolist() == [[0.25, 0.75], [3.25, 1.75]]


def test_chain_without_slips_is_its_own_mirror():
    always, never = (Chain(slip=slip).process for slip in (1.0, 0.0))
    np.testing.assert_array_equal(always.reward[:, ::-1], never.reward)


@pytest.mark.parametrize("length", [2, 5, 9])
def test_locks_that_restart_pay_length_plus_two_in_twice_the_time(length):
    mdp = CombinationLock(length=length, seed=length, discount=1.0).process
    assert mdp.induced(2 * length)[0][-1][0] == length + 2


@pytest.mark.parametrize("actions", [2, 3])
def test_locks_that_fail_open_once_and_to_the_blind_by_chance(actions):
    lock = CombinationLock(length=4, actions=actions, wrong="fail", discount=1.0)
    mdp, right = lock.process, lock.right
    values, best = mdp.induced(3)
    assert values[-1][0] == 1 and best[::-1][range(3), range(3)].tolist() == right[:3].tolist()
    blind = np.full(mdp.reward.shape, 1 / actions)
    chain, reward = mdp.under(blind)
    assert sum(np.linalg.matrix_power(chain.toarray(), t)[0] @ reward for t in range(3)) == pytest.approx(actions**-3)
    assert np.linalg.matrix_power(chain.toarray(), 3)[0, 4] == pytest.approx(1 - actions**-3)


def test_right_actions_are_drawn_by_the_seed():
    drawn = [tuple(CombinationLock(length=8, seed=seed).right) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1] and len(set(drawn)) == 3


@pytest.mark.parametrize(
    ("layout", "values", "steps", "within"),
    [("4x4", {0.95: 0.180472, 0.99: 0.542026, 1.0: 14 / 17}, 100, 0.744190),
     ("8x8", {0.95: 0.048250, 0.99: 0.414640, 1.0: 1.0}, 200, 0.913220)],
)  # fmt: skip
def test_lakes(layout, values, steps, within):
    for discount, value in values.items():
        assert answer(FrozenLake(layout=layout, discount=discount))["values"][0] == pytest.approx(value, abs=1e-6)
    mdp = FrozenLake(layout=layout, discount=1.0).process
    assert mdp.induced(steps)[0][-1][0] == pytest.approx(within, abs=1e-6)


def test_a_lake_by_hand():
    # left, at the upper left: up and down at right angles; two of three ways end at the wall
    mdp = FrozenLake(layout="SF/HG", success=0.5).process
    np.testing.assert_allclose(mdp.transitions.toarray()[0], [0.75, 0, 0.25, 0])
    np.testing.assert_allclose(mdp.transitions.toarray()[5], [0.25, 0.25, 0, 0.5])  # down, at the upper right
    np.testing.assert_allclose(mdp.reward[1], [0.25, 0.5, 0.25, 0])
    np.testing.assert_array_equal(mdp.transitions.toarray()[8:], np.repeat(np.eye(4)[2:], 4, 0))
    assert answer(FrozenLake(success=1.0))["values"][0] == pytest.approx(0.99**5)


def test_a_lake_with_two_starts():
    assert FrozenLake(layout="SFS/FFG").process.start.tolist() == [0.5, 0, 0.5, 0, 0, 0]


def test_gambler():
    found = answer(Gambler())["values"]
    known = {1: 0.00206562, 25: 0.16, 50: 0.4, 51: 0.403098, 75: 0.64, 99: 0.964333}
    np.testing.assert_allclose(found[list(known)], list(known.values()), atol=1e-6)
    mdp = Gambler(goal=4, capital=3).process
    assert mdp.allowed.tolist() == [[True, False], [True, False], [True, True], [True, False], [True, False]]
    assert mdp.start.tolist() == [0, 0, 0, 1, 0] and mdp.reward[3, 0] == 0.4


def test_inventory():
    mdp = Inventory(discount=1.0).process
    reward = [[0, -1, -2, -5], [5, 0, -3, 0], [6, -1, 0, 0], [5, 0, 0, 0]]
    np.testing.assert_allclose(mdp.reward, reward, atol=1e-12)
    assert mdp.allowed.tolist() == [[s + a <= 3 for a in range(4)] for s in range(4)]
    np.testing.assert_allclose(mdp.transitions.toarray()[2], [0.25, 0.5, 0.25, 0])  # two ordered at once
    values, best = mdp.induced(3)
    np.testing.assert_allclose(values[-1], np.array([67, 129, 194, 227]) / 16)
    assert best[::-1].tolist() == [[3, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
    found = answer(Inventory())
    np.testing.assert_allclose(found["values"], [17.531810, 21.721254, 25.444156, 27.531810], atol=1e-5)
    assert found["policy"].tolist() == [3, 0, 0, 0]


def test_garnets_branch_as_often_as_they_should():
    mdp = Garnet(states=40, actions=3, branches=4, seed=1).process
    assert (np.diff(mdp.transitions.indptr) == 4).all()
    rows = mdp.transitions.indices.reshape(120, 4)
    assert all(len(set(row)) == 4 for row in rows.tolist())
    assert set(Garnet(branches=1).process.transitions.data) == {1.0}
    assert (Garnet(states=6, branches=6).process.transitions.toarray() > 0).all()


def test_subsets_are_alike_likely():
    drawn = np.sort(subsets(20_000, 2, 5, np.random.default_rng(0)), 1)
    count = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(count) == 10 and stats.chisquare(count).pvalue > 1e-3


def test_garnets_have_even_cuts_and_normal_rewards():
    mdp = Garnet(states=500, actions=4, branches=3, seed=0).process
    chance, gain = mdp.transitions.data.reshape(-1, 3), sparse.csr_array(mdp.gains).data
    assert stats.kstest(chance[:, 0], stats.beta(1, 2).cdf).pvalue > 1e-3
    assert stats.kstest(chance[:, 2], stats.beta(1, 2).cdf).pvalue > 1e-3
    assert stats.kstest(gain, "norm").pvalue > 1e-3
    np.testing.assert_allclose(mdp.reward.ravel(), (chance * gain.reshape(-1, 3)).sum(1))


def test_garnets_come_from_their_seed():
    one, same, other = (Garnet(seed=seed).process for seed in (3, 3, 4))
    assert (one.transitions != same.transitions).nnz == 0 and (one.reward == same.reward).all()
    assert (one.reward != other.reward).any()


def test_a_large_garnet_is_solved():
    task = Garnet(states=10_000, branches=5, discount=0.99)
    found = answer(task)["values"]
    np.testing.assert_allclose(task.process.q(found).max(1), found, atol=1e-8)


@pytest.mark.parametrize("kind", ALL)
def test_instances_are_environments(kind):
    env, g = kind(), torch.Generator().manual_seed(0)
    envs = env.envs(env.problems(16, g), g)
    for _ in range(5):
        step = envs.step(torch.randint(env.action_space.n, (16,), generator=g))
    assert step.obs.shape == (16, env.process.size) and torch.isfinite(step.reward).all() and env.horizon > 0


REFUSED = [
    (Chain, dict(length=1), "length", "2 states or more"),
    (Chain, dict(slip=1.5), "slip", "from 0 to 1"),
    (Chain, dict(large=float("inf")), "large", "finite"),
    (CombinationLock, dict(length=1), "length", "2 or more"),
    (CombinationLock, dict(actions=1), "actions", "2 or more"),
    (CombinationLock, dict(wrong="stay"), "wrong", "restart or fail"),
    (CombinationLock, dict(seed=-1), "seed", "0 or more"),
    (FrozenLake, dict(layout="5x5"), "layout", "`5` is not a map symbol; .* 4x4, 8x8"),
    (FrozenLake, dict(layout="SF/G"), "layout", "equal length"),
    (FrozenLake, dict(layout="FF/FG"), "layout", "a start with S"),
    (FrozenLake, dict(layout=""), "layout", "a start with S"),
    (FrozenLake, dict(layout="SF/FF"), "layout", "a goal with G"),
    (FrozenLake, dict(success=float("nan")), "success", "from 0 to 1"),
    (Gambler, dict(goal=1), "goal", "2 or more"),
    (Gambler, dict(capital=100), "capital", "1 to 99"),
    (Gambler, dict(heads=-0.1), "heads", "from 0 to 1"),
    (Garnet, dict(states=0), "states", "1 or more"),
    (Garnet, dict(branches=31), "branches", "at most the 30 states"),
    (Garnet, dict(seed=-1), "seed", "0 or more"),
    (Inventory, dict(capacity=0), "capacity", "above 0"),
    (Inventory, dict(demand=(0.5, 0.4)), "demand", "add up to 1"),
    (Inventory, dict(demand=()), "demand", "add up to 1"),
    (Inventory, dict(demand=(1.5, -0.5)), "demand", "add up to 1"),
    (Inventory, dict(price=float("nan")), "price", "finite"),
    *((kind, dict(discount=1.1), "discount", "from 0 to 1") for kind in ALL),
    *((kind, dict(max_steps=0), "max_steps", "above 0") for kind in ALL),
]


@pytest.mark.parametrize(("kind", "settings", "field", "fix"), REFUSED)
def test_bad_settings_are_refused_by_name(kind, settings, field, fix):
    with pytest.raises(UserError, match=f"task.{field}: {kind.part_name()} got .*{fix}"):
        kind(**settings)
