"""Planning: all solvers find the same answers, by hand and on random processes."""

import numpy as np
import pytest
from scipy import sparse

from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.parts.planning import (
    BackwardInduction,
    LinearProgramming,
    ModifiedPolicyIteration,
    PolicyIteration,
    ValueIteration,
    bounds,
)
from partita.tasks.finite.gambler import Gambler
from partita.tasks.finite.garnet import Garnet
from partita.tasks.finite.river_swim import RiverSwim
from processes import forest, random_process

ENDLESS = [ValueIteration(), ModifiedPolicyIteration(), ModifiedPolicyIteration(depth=0), PolicyIteration(),
           LinearProgramming()]  # fmt: skip


def answer(solver, mdp):
    found = solve(Exact(solver=solver), mdp)
    assert found.finished
    return found.solution


@pytest.mark.parametrize("solver", ENDLESS, ids=lambda s: f"{s.part_name()}-{getattr(s, 'depth', '')}")
class TestEndless:
    def test_the_forest(self, solver):
        found = answer(solver, forest())
        np.testing.assert_allclose(found.tables["values"], [26.244, 29.484, 33.484], atol=1e-7)
        assert found.tables["policy"].tolist() == [0, 0, 0] and found.numbers["value"] == pytest.approx(26.244)

    @pytest.mark.parametrize("seed", range(3))
    def test_values_satisfy_bellman(self, solver, seed):
        mdp = random_process(seed, discount=0.95)
        values = answer(solver, mdp).tables["values"]
        np.testing.assert_allclose(mdp.q(values).max(1), values, atol=1e-7)

    def test_actions_that_do_not_exist_are_not_taken(self, solver):
        mdp = random_process(0)
        best = mdp.evaluate(answer(solver, mdp).tables["policy"])
        allowed = np.ones((6, 3), bool)
        allowed[np.arange(6), answer(solver, mdp).tables["policy"]] = False
        found = answer(solver, mdp.but(allowed=allowed))
        assert allowed[np.arange(6), found.tables["policy"]].all() and (found.tables["values"] < best).all()

    def test_names_of_states_do_not_matter(self, solver):
        mdp, order = random_process(3), np.random.default_rng(0).permutation(6)
        table = mdp.transitions.reshape(6, 3, 6)[order][:, :, order].reshape(18, 6)
        moved = mdp.but(transitions=table, reward=mdp.reward[order], start=mdp.start[order])
        values = answer(solver, mdp).tables["values"]
        np.testing.assert_allclose(answer(solver, moved).tables["values"], values[order], atol=1e-7)

    def test_shifted_and_scaled_rewards_shift_and_scale_values(self, solver):
        mdp = random_process(4)
        values = answer(solver, mdp).tables["values"]
        found = answer(solver, mdp.but(reward=2 * mdp.reward + 3)).tables["values"]
        np.testing.assert_allclose(found, 2 * values + 30, atol=1e-6)

    def test_an_end_is_refused(self, solver):
        with pytest.raises(UserError, match=f"solver {solver.part_name()}: .* ends after 5 decisions"):
            answer(solver, random_process(0, horizon=5))

    def test_a_sparse_process(self, solver):
        mdp = random_process(2)
        thin = mdp.but(transitions=sparse.csr_array(mdp.transitions))
        values = answer(solver, mdp).tables["values"]
        np.testing.assert_allclose(answer(solver, thin).tables["values"], values, atol=1e-7)


def test_river_swim_has_its_known_values():
    assert answer(ValueIteration(), RiverSwim().process).numbers["value"] == pytest.approx(4.669300, abs=1e-6)
    assert answer(ValueIteration(), RiverSwim(discount=0.99).process).numbers["value"] == pytest.approx(37.854701)
    original = RiverSwim(kind="original").process
    assert answer(PolicyIteration(), original).tables["values"][0] == pytest.approx(20459.772, abs=1e-3)
    twenty = answer(BackwardInduction(horizon=20), RiverSwim(discount=1.0).process)
    known = [3.397264, 4.052651, 5.301868, 6.678367, 8.094000, 9.521445]
    np.testing.assert_allclose(twenty.tables["values"], known, atol=1e-6)
    assert twenty.tables["policy"].shape == (20, 6)


@pytest.mark.parametrize("solver", [ValueIteration(tolerance=1e-4), ModifiedPolicyIteration(tolerance=1e-4, depth=3)])
def test_the_tolerance_is_kept(solver):
    for seed in range(5):
        mdp = random_process(seed, discount=0.99)
        exact = answer(PolicyIteration(), mdp).tables["values"]
        assert np.abs(answer(solver, mdp).tables["values"] - exact).max() <= 1e-4


def test_bounds_hold_the_best_values_between_them():
    mdp = random_process(1, discount=0.9)
    best, values = answer(PolicyIteration(), mdp).tables["values"], np.zeros(6)
    for _ in range(5):
        found = mdp.q(values).max(1)
        low, high = bounds(mdp, found - values)
        values = found
        assert (values + low <= best + 1e-9).all() and (best <= values + high + 1e-9).all()


def test_values_of_modified_policy_iteration_only_rise():
    mdp = random_process(5)
    last = np.full(6, -np.inf)
    for solution in ModifiedPolicyIteration(depth=2)(mdp, np.random.default_rng(0)):
        assert (solution.tables["values"] >= last - 1e-7).all()
        last = solution.tables["values"]


def test_visits_of_the_program_are_those_of_its_policy():
    mdp = random_process(6).but(start=np.full(6, 1 / 6))
    found = answer(LinearProgramming(), mdp)
    visits = mdp.occupancy(found.tables["policy"]) / (1 - mdp.discount)
    np.testing.assert_allclose(found.tables["visits"].sum(1), visits, atol=1e-6)


def test_without_a_discount_states_that_are_never_left_and_pay_nothing_are_worth_nothing():
    found = answer(PolicyIteration(), Gambler().process).tables["values"]
    np.testing.assert_allclose(found[[0, 25, 50, 75, 100]], [0, 0.16, 0.4, 0.64, 0], atol=1e-9)


def test_large_sparse_systems_are_solved_too():
    mdp = Garnet(states=2000, branches=4, discount=0.99).process
    found = answer(PolicyIteration(), mdp).tables["values"]
    np.testing.assert_allclose(mdp.q(found).max(1), found, atol=1e-8)


def test_the_loop_counts_stops_and_records():
    mdp = random_process(0)
    short = solve(Exact(solver=ValueIteration(), sweeps=7, every=2), mdp)
    assert not short.finished and short.sweeps == 7 and short.curves["sweep"].tolist() == [2, 4, 6]
    seen = []
    solve(Exact(solver=PolicyIteration()), mdp, watch=lambda count, solution: seen.append(count))
    assert seen == list(range(1, len(seen) + 1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ValueIteration(tolerance=0), "solver.tolerance: expected a number above 0, got 0"),
        (lambda: ModifiedPolicyIteration(depth=-1), "solver.depth: expected 0 or more"),
        (lambda: BackwardInduction(horizon=0), "solver.horizon: expected 1 or more"),
        (lambda: Exact(solver=ValueIteration(), sweeps=0), "sweeps: expected 1 or more"),
        (lambda: answer(BackwardInduction(), random_process(0)), "it has no end; give --solver.horizon"),
        (lambda: answer(LinearProgramming(), random_process(0, discount=1.0)), "its discount is 1"),
    ],
)
def test_refusals(make, said):
    with pytest.raises(UserError, match=said):
        make()
