"""Distributional dynamic programming: laws by hand, brute force, bounds, and what it is without risk or stock."""

import json

import numpy as np
import pytest

from partita.cli import main
from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.papers.theory.distributional_dp import (
    DistributionalPolicyIteration,
    DistributionalValueIteration,
    StocklessDp,
    StockValueIteration,
    cvar_gap,
    drawn,
    excess,
    target_gap,
)
from partita.papers.theory.stock_tree import brute_force, lower_tail, unfold
from partita.parts.planning import ValueIteration
from partita.tasks.control.stocked import Kinked
from partita.tasks.finite.mdp import FiniteMDP, assembled
from partita.tasks.finite.risk import BettingTable, Body, Windfall
from processes import random_process

VI, PI = DistributionalValueIteration, DistributionalPolicyIteration
WINDFALL, BALANCE = Windfall().process, Windfall(prize=1, sure=0, win=1, odds=1.0).process


def answer(solver, mdp):
    return solve(Exact(solver=solver), mdp).solution


def drip(discount):
    """One state, actions that pay 0 and 1, for ever."""
    return FiniteMDP(np.ones((2, 1)), np.array([[0.0, 1.0]]), np.ones(1), discount)


def test_lower_tail_by_hand():
    x, law = np.array([4.0, 0.0, 10.0]), np.array([0.25, 0.25, 0.5])
    assert lower_tail(x, law, 0.25) == 0 and lower_tail(x, law, 0.5) == 2
    assert lower_tail(x, law, 0.75) == pytest.approx((0 + 1 + 2.5) / 0.75)
    assert lower_tail(x, np.stack((law, law[::-1])), 1.0).tolist() == [6.0, 4.5]
    grid = -x  # Rockafellar and Uryasev: the best over first stocks
    assert max(-c + law @ np.minimum(c + x, 0) / 0.3 for c in grid) == pytest.approx(lower_tail(x, law, 0.3))


def test_the_tree_merges_equal_stocks():
    tree = unfold(WINDFALL, 2)
    # after one decision: table with 10, table with 0, and the two ends that every state is a root for
    nodes = sorted(zip(tree.state[1].tolist(), tree.earned[1].tolist(), strict=True))
    assert nodes == [(2, 0), (2, 10), (3, 0), (3, 4), (4, 0), (4, 1)]
    assert tree.outcomes.tolist() == [0, 1, 4, 10, 11, 14]
    for t, move in enumerate(tree.moves):
        np.testing.assert_allclose(np.asarray(move.sum(1)), 1)
        assert move.shape == (2 * len(tree.state[t]), len(tree.state[t + 1]))


@pytest.mark.parametrize("kind", [VI, PI])
def test_a_windfall_by_hand(kind):
    found = answer(kind(share=0.5), WINDFALL)
    assert found.numbers["value"] == pytest.approx(3.75)
    assert (found.numbers["mean"], found.numbers["lower_tail"]) == (6.5, 1.0)
    assert found.tables["law"].tolist() == [0, 0.5, 0, 0.25, 0, 0.25]
    here = found.tables["plan"]
    stock = found.numbers["stock"]  # -VaR is -1
    assert stock == -1 and here[here[:, 1] == 2].tolist() == [[1, 2, -1, 0], [1, 2, 9, 1]]
    less = answer(StocklessDp(share=0.5), WINDFALL)
    assert less.numbers["value"] == pytest.approx(3.5)
    assert answer(kind(), WINDFALL).numbers["value"] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [VI, PI])
def test_a_balance_by_hand(kind):
    assert answer(kind(objective="target", target=1.0), BALANCE).numbers["value"] == 0
    assert answer(StocklessDp(objective="target", target=1.0), BALANCE).numbers["value"] == -0.5


@pytest.mark.parametrize("seed", range(1000, 1003))
def test_both_are_brute_force(seed):
    assert cvar_gap(seed) < 1e-9 and target_gap(seed) < 1e-9 and excess(seed, most=5) < 1e-12
    for discount in (1.0, 0.8):
        mdp = drawn(seed, discount, 3)
        returns, chances = brute_force(mdp, 3)
        assert len(returns) == 2**7 and np.allclose(chances.sum(1), 1)
        for settings in ({"tau": 0.4, "share": 0.3}, {"objective": "target", "target": -0.3}):
            best = VI(**settings).measured(returns, chances).max()
            found = answer(VI(**settings), mdp).numbers
            assert found["value"] == pytest.approx(best) == pytest.approx(answer(PI(**settings), mdp).numbers["value"])
            assert answer(StocklessDp(**settings), mdp).numbers["value"] <= best + 1e-12


@pytest.mark.parametrize("settings", [{"share": 1.0}, {"tau": 1.0}])
@pytest.mark.parametrize("kind", [VI, PI, StocklessDp])
def test_without_risk_it_is_backward_induction(kind, settings):
    for mdp in (drawn(1000, 0.9, 4), BettingTable(rounds=3).process):
        best = mdp.start @ mdp.induced()[0][-1]
        assert answer(kind(**settings), mdp).numbers["value"] == pytest.approx(best, abs=1e-9)


def test_without_risk_and_end_it_is_value_iteration():
    mdp = random_process(0, discount=0.8)
    best = answer(ValueIteration(), mdp).tables["values"]
    found = answer(StockValueIteration(share=1.0, grid=21), mdp)
    np.testing.assert_allclose(found.tables["values"], found.tables["stocks"] + best[:, None], atol=1e-7)
    assert found.numbers["value"] == pytest.approx(mdp.start @ best, abs=1e-7)


def test_a_set_point_for_ever_by_hand():
    # every return in [0, 1 / (1 - discount)] can be had if discount >= 1/2; with 0.4 none in (2/3, 1), 5/6 is the worst
    for goal in (0.0, 0.3, 1.1, 2.0):
        assert abs(answer(StockValueIteration(objective="target", target=goal), drip(0.5)).numbers["value"]) < 1e-2
    found = answer(StockValueIteration(objective="target", target=5 / 6, grid=4001), drip(0.4)).numbers
    assert found["value"] == pytest.approx(-1 / 6, abs=1e-3) and found["error"] < 2e-3


@pytest.mark.parametrize("settings", [{"tau": 0.3}, {"objective": "target", "target": 0.6}, {"tau": 0.2, "share": 0.4}])
def test_the_grid_is_as_near_as_it_says(settings):
    mdp = drawn(1001, 0.5)
    exact, near = (answer(s, mdp).numbers for s in (VI(horizon=5, **settings), StockValueIteration(**settings)))
    assert abs(exact["value"] - near["value"]) <= exact["error"] + near["error"]
    assert exact["error"] == pytest.approx(VI(**settings).utility.lipschitz * 0.5**5 / 0.5)


def test_a_discount_and_another_utility_do_not_go_together():
    """exp is not left as it is by scales: greedy laws miss the best where there is a discount, and only there."""

    def f(x):
        return -np.exp(-4 * x)

    def missing(seed, discount):
        mdp = drawn(seed, discount, 3)
        returns, chances = brute_force(mdp, 3)
        tree = unfold(mdp, 3)
        laws, _ = tree.backup(f, 0.0)
        return float((chances * f(returns)).sum(1).max() - mdp.start @ laws @ f(tree.outcomes))

    assert max(abs(missing(seed, 1.0)) for seed in range(1000, 1010)) < 1e-9
    assert max(missing(seed, 0.5) for seed in range(1000, 1010)) > 1e-3


@pytest.mark.parametrize("seed", range(1000, 1003))
def test_shifts_scales_and_names(seed):
    mdp = drawn(seed, 1.0, 3)
    for kind in (VI, StocklessDp):
        solver = kind(tau=0.3, share=0.2)
        value = answer(solver, mdp).numbers["value"]
        assert answer(solver, mdp.but(gains=3 * mdp.gains + 2)).numbers["value"] == pytest.approx(3 * value + 3 * 2)
        turned = mdp.but(
            transitions=mdp.transitions.reshape(2, 2, 2)[::-1, :, ::-1].reshape(4, 2), start=mdp.start[::-1],
            gains=mdp.gains.reshape(2, 2, 2)[::-1, :, ::-1].reshape(4, 2),
        )  # fmt: skip
        assert answer(solver, turned).numbers["value"] == pytest.approx(value)
    near = VI(objective="target", target=0.5)
    moved = answer(near.but(target=0.5 + 3 * 2), mdp.but(gains=mdp.gains + 2))
    assert moved.numbers["value"] == pytest.approx(answer(near, mdp).numbers["value"])


def test_actions_that_do_not_exist_are_not_taken():
    rows = [(0, 0, 1, 1.0, 1.0), (1, 0, 1, 0.5, 0.0), (1, 0, 0, 0.5, 2.0), (0, 1, 0, 1.0, 0.0)]
    mdp = assembled(rows, 2, 2, discount=1.0, horizon=3)
    for solver in (VI(), PI(), StocklessDp(), VI(objective="target", target=1.0)):
        found = answer(solver, mdp)
        assert found.tables["law"].sum() == pytest.approx(1)
    assert all(a == 0 for _, s, _, a in answer(VI(), mdp).tables["plan"] if s == 1)


def test_a_laws_utility_has_the_slopes_of_its_objective():
    assert VI(tau=0.25, share=0.5).utility == Kinked(2.5, 0.5) and VI(share=1.0).utility == Kinked(1, 1)
    assert VI(objective="target").utility == Kinked(1, -1)


def test_recipes_solve_from_the_command_line(capsys):
    for name in ("distributional_vi", "distributional_pi", "stockless_dp"):
        main(["solve", name, "--task", "windfall", "--solver.share", "0.5", "--json"])
        found = json.loads(capsys.readouterr().out)
        assert found["numbers"]["value"] == pytest.approx(3.5 if name == "stockless_dp" else 3.75)
    main(["solve", "stock_vi", "--task", "river_swim", "--solver.grid", "21", "--solver.tolerance", "0.1", "--json"])
    assert json.loads(capsys.readouterr().out)["finished"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: VI(objective="mode"), "solver.objective: expected cvar or target"),
        (lambda: VI(tau=0.0), "solver.tau: expected a number above 0"),
        (lambda: PI(share=2.0), "solver.share: expected a number from 0 to 1"),
        (lambda: VI(target=float("inf")), "solver.target: expected a finite number"),
        (lambda: StocklessDp(horizon=0), "solver.horizon: expected 1 or more"),
        (lambda: StockValueIteration(grid=2), "solver.grid: expected 3 stocks or more"),
        (lambda: StockValueIteration(tolerance=0.0), "solver.tolerance"),
        (lambda: answer(VI(), drip(0.9)), "it has no end; give --solver.horizon"),
        (lambda: answer(VI(horizon=2), drip(0.0)), "its discount is 0"),
        (lambda: answer(StockValueIteration(), Body().process), "it ends, or is not discounted"),
        (lambda: answer(VI(horizon=40), random_process(0)), "solver.horizon: so many different returns"),
        (lambda: brute_force(random_process(0), 3), "too many to try"),
    ],
)
def test_refusals(make, said):
    with pytest.raises(UserError, match=said):
        make()
