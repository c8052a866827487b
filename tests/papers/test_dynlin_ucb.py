"""DynLin-UCB: epochs and widths by hand, LinUCB as the special case, sublinear regret where LinUCB's is not."""

import json
import math

import numpy as np
import pytest

from partita.cli import main
from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.papers.theory.dynlin_ucb import DynLinUCB, outside, regret, slope, unequal
from partita.parts.bandits import LinUCB
from partita.tasks.finite.bandits import DynamicalBandit, LinearBandit, MemoryBandit

PAIR = LinearBandit(np.eye(2), [0.1, 0.4], [[0.5]], [[1.0, 0.0]], [0.3], sigma=0.2)


def test_choices_are_held_until_the_state_has_settled():
    # floor(log m / log 2) for m = 1 ... 8 is 0 1 1 2 2 2 2 3
    assert [DynLinUCB().lasts(PAIR, m) for m in range(1, 9)] == [1, 2, 2, 3, 3, 3, 3, 4]
    assert DynLinUCB(rho_bar=0.0).lasts(PAIR, 1000) == 1
    assert DynLinUCB(rho_bar=0.9).lasts(PAIR, 10) == 1 + math.floor(math.log(10) / math.log(1 / 0.9))


def test_the_width_by_hand():
    # of PAIR: U = b = phi = 1, omega = 0.3, rho = 0.5, X = 2: c1 = 0.3 (2 + 2) = 1.2, c2 = |theta| + 0.6
    solver = DynLinUCB(lam=4.0, delta=0.1)
    noise = 0.2 * math.sqrt(1 + 0.09 / 0.75)
    wide = 1.2 / 2 * math.log(math.e * 8) + 2 * (math.hypot(0.1, 0.4) + 0.6)
    wide += noise * math.sqrt(2 * math.log(10) + 2 * math.log(1 + 7 / 8))
    assert solver.width(PAIR)(7, np.zeros(1)) == pytest.approx(wide)
    bound = solver.but(rho_bar=0.9).width(PAIR)(0, np.zeros(1))  # c1 = 0.3 (10 + 10), c2 = |theta| + 3
    level = 6 / 2 + 2 * (math.hypot(0.1, 0.4) + 3) + 0.2 * math.sqrt(1 + 0.09 / 0.19) * math.sqrt(2 * math.log(10))
    assert bound == pytest.approx(level)


def test_only_the_last_reward_of_a_choice_is_learnt_from():
    """Without noise, choices and estimates are those of a plain loop over rounds."""
    made, solver = (
        LinearBandit(PAIR.arms, PAIR.theta, PAIR.A, PAIR.B, PAIR.omega, sigma=0.0),
        DynLinUCB(rounds=60, runs=1),
    )
    found = solve(Exact(solver=solver), made).solution.tables
    x, t, m, v, b, plays = np.zeros(1), 0, 1, np.eye(2) * math.log(60), np.zeros(2), np.zeros(2)
    while t < 60:
        inverse = np.linalg.inv(v)
        arm = int((inverse @ b + solver.width(made)(t, np.zeros(1)) * np.sqrt(np.diag(inverse))).argmax())
        u = made.arms[arm]
        for _ in range(min(1 + math.floor(math.log(m) / math.log(2)), 60 - t)):
            reward = made.omega @ x + made.theta @ u
            x, t = made.A @ x + made.B @ u, t + 1
            plays[arm] += 1
        v, b, m = v + np.outer(u, u), b + u * reward, m + 1
    assert found["plays"][0].tolist() == plays.tolist()
    np.testing.assert_allclose(found["estimate"][0], np.linalg.solve(v, b), rtol=1e-9)


def test_without_an_effect_of_the_state_it_is_linucb():
    assert unequal(1000) == 0
    still = MemoryBandit(radius=0.0).bandit  # and where there is no memory
    both = [solve(Exact(solver=s(rounds=500, growth="trace")), still, 3).solution.tables for s in (DynLinUCB, LinUCB)]
    assert all((both[0][name] == both[1][name]).all() for name in ("plays", "estimate", "regret"))


def test_with_an_effect_it_is_not():
    made, short = DynamicalBandit().bandit, {"rounds": 500, "growth": "trace"}
    plays = [solve(Exact(solver=s(**short)), made, 3).solution.tables["plays"] for s in (DynLinUCB, LinUCB)]
    assert (plays[0] != plays[1]).any()


def test_the_order_of_arms_does_not_matter():
    made = DynamicalBandit().bandit
    turned = LinearBandit(made.arms[::-1], made.theta, made.A, made.B, made.omega, made.sigma)
    one, two = (solve(Exact(solver=DynLinUCB(rounds=5000)), b, 0).solution.numbers["regret"] for b in (made, turned))
    assert one == pytest.approx(two, rel=0.05)


def test_regret_slows_and_the_best_choice_is_found():
    found = solve(Exact(solver=DynLinUCB(rounds=10_000)), DynamicalBandit().bandit, 1000)
    late = found.curves["round"] >= 1000
    assert 0.4 < slope(found.curves["round"][late], found.curves["regret"][late]) < 0.85
    assert found.solution.numbers["held"] == 1
    np.testing.assert_allclose(found.solution.tables["estimate"][:, 0], 0.5625, atol=0.03)


def test_what_the_statements_measure():
    assert regret("treatment", 1000, rounds=2000) < 300
    assert {regret(arm, 1000, radius=0.0, rounds=500) for arm in ("treatment", "control")} == {
        regret("control", 1000, radius=0.0, rounds=500)
    }
    assert regret("control", 1000, rival="exp3", rounds=200, gamma=0.1) > 0
    assert slope([1, 10, 100], [2, 2 * 10**0.5, 20]) == pytest.approx(0.5)
    assert outside(1000, runs=20, rounds=1000) <= 0.1


def test_the_recipe_runs(capsys, tmp_path):
    out = tmp_path / "found.json"
    main(["solve", "dynlin_ucb", "--solver.rounds", "2000", "--solver.lam", "1", "--out", str(out)])
    table = json.loads(out.read_text())
    assert "dynlin_ucb on dynamical_bandit" in capsys.readouterr().out
    assert table["numbers"]["round"] == 2000 and np.shape(table["tables"]["estimate"]) == (8, 3)
    main(["solve", "dynlin_ucb", "--task", "memory_bandit", "--task.radius", "0.5", "--solver.rounds", "300", "--json"])
    assert json.loads(capsys.readouterr().out)["finished"]


@pytest.mark.parametrize("rho", [-0.1, 1.0, math.nan])
def test_refusals(rho):
    with pytest.raises(UserError, match=r"solver\.rho_bar: expected a number of at least 0, below 1"):
        DynLinUCB(rho_bar=rho)
