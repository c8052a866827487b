"""IWOCS: minima of Q-functions by hand, its limits as baselines, certificates, and pendulums."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from partita.cli import main
from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.papers.robust.iwocs import (
    RECIPES,
    Iwocs,
    RectangularValueIteration,
    SingleProcess,
    along,
    least,
    missing,
    optimum,
    random_family,
    returns,
    shared,
    solves,
    violations,
)
from partita.parts.planning import ValueIteration
from partita.tasks.control.classic import Pendulum
from partita.tasks.control.random_pendulum import RandomPendulum
from partita.tasks.finite.families import FiniteFamily
from partita.tasks.finite.mdp import FiniteMDP
from partita.tasks.finite.windy_walk import WindyWalk
from processes import random_process


def test_the_figure_touches_the_best_at_the_worst_alpha():
    lines, best = along(0), optimum(WindyWalk(alpha=0.5).process)
    assert lines["the last policy"][-1] == pytest.approx(best[0], abs=1e-6) and lines["the first policy"][-1] < best[0]
    assert min(lines["the last policy"]) == lines["the last policy"][-1]


def run(problem, solver):
    return list(solver(problem, np.random.default_rng(0)))


def bandits(*rewards, start=(1.0, 0.0), discount=0.5):
    """One decision in state 0, then nothing in state 1: members differ in what the actions of state 0 pay."""
    count = len(rewards[0])
    table = np.zeros((2, count, 2))
    table[:, :, 1] = 1
    members = [FiniteMDP(table.reshape(-1, 2), np.array([r, [0] * count]), np.array(start), discount) for r in rewards]
    return FiniteFamily(tuple(members), np.arange(len(members))[:, None], ("u",))


class TestIwocs:
    def test_it_goes_from_worst_to_worst_by_hand(self):
        # member 0 says action 0 (3), whose worst is member 1 (0); min is (0, 2, 1): action 1, worst member 2 (1); min
        # is (0, 1, 1), action 1 again, 1 in member 2: certified
        first, second, third = run(bandits([3, 2, 1], [0, 2, 1], [3, 1, 1]), Iwocs())
        assert first.tables["policy"][0] == 0 and first.tables["q"][0].tolist() == [3, 2, 1]
        assert [first.numbers[n] for n in ("value", "bound", "gap", "worst_u", "solved")] == [0, 3, 3, 1, 1]
        assert second.tables["policy"][0] == 1 and second.tables["q"][0].tolist() == [0, 2, 1]
        assert [second.numbers[n] for n in ("value", "bound", "gap", "worst_u", "solved")] == [1, 2, 1, 2, 2]
        assert [third.numbers[n] for n in ("value", "gap", "certified", "stalled", "solved")] == [1, 0, 1, 0, 3]

    def test_it_stalls_where_the_worst_is_solved_already(self):
        # two steps: member 0 pays 1 for going by a, member 1 by b, and the first step binds; minima of optimal Q
        # promise what no policy has
        def member(paid):
            table, reward = np.zeros((3, 2, 3)), np.zeros((3, 2))
            table[0, :, 1] = table[1:, :, 2] = 1
            reward[1] = paid
            return FiniteMDP(table.reshape(6, 3), reward, np.eye(3)[0], 0.5)

        family = FiniteFamily((member([1, 0]), member([0, 1])), np.array([[0.0], [1.0]]), ("u",))
        last = run(family, Iwocs())[-1].numbers
        assert (last["stalled"], last["certified"], last["bound"], last["value"]) == (1, 0, 0.5, 0.0)

    def test_one_member_or_no_further_one_is_planning(self):
        mdp = random_process(0).but(start=np.eye(6)[0])
        alone = FiniteFamily((mdp,), np.zeros((1, 1)), ("u",))
        (found,) = run(alone, Iwocs())
        np.testing.assert_allclose(found.tables["q"].max(1), optimum(mdp))
        assert found.numbers["value"] == pytest.approx(optimum(mdp)[0]) and found.numbers["certified"] == 1
        rvi = run(alone, RectangularValueIteration())[-1]
        np.testing.assert_allclose(rvi.tables["values"], optimum(mdp), atol=1e-7)
        family = WindyWalk().family
        (only,) = run(family, Iwocs(iterations=0))
        (nominal,) = run(family, SingleProcess(model="nominal"))
        assert (only.tables["policy"] == nominal.tables["policy"]).all()
        (huge,) = run(family, Iwocs(tolerance=1e9))
        assert (huge.tables["policy"] == nominal.tables["policy"]).all()

    def test_value_iteration_inside_comes_to_the_same(self):
        for seed in range(3):
            family = random_family(seed, points=9)
            exact, near = (run(family, Iwocs(inner=i))[-1] for i in ("policy_iteration", "value_iteration"))
            np.testing.assert_allclose(exact.tables["q"], near.tables["q"], atol=1e-6)

    def test_a_random_start_has_a_bound_too(self):
        for seed in range(6):
            family = random_family(seed, 3, 2, points=5)
            members = tuple(m.but(start=np.array([0.3, 0.3, 0.4])) for m in family.members)
            family = FiniteFamily(members, family.parameters, family.names)
            best = max(family.worst(np.array(p))[1] for p in itertools.product(range(2), repeat=3))
            for solution in run(family, Iwocs()):
                assert solution.numbers["bound"] >= best - 1e-9 and solution.numbers["gap"] >= -1e-9

    def test_the_best_that_is_kept_never_falls(self):
        for seed in range(8):
            family = random_family(seed, groups=3, points=27)
            values = [s.numbers["value"] for s in run(family, Iwocs(keep="best"))]
            assert values == sorted(values) and values[-1] >= run(family, Iwocs())[-1].numbers["value"]

    def test_names_and_units_do_not_matter(self):
        order = np.random.default_rng(0).permutation(6)
        for seed in range(4):
            family = random_family(seed, points=9)
            moved = []
            for m in family.members:
                table = m.transitions.reshape(6, 3, 6)[order][:, :, order].reshape(18, 6)
                moved.append(m.but(transitions=table, reward=2 * m.reward[order] + 3, start=m.start[order]))
            other = FiniteFamily(tuple(moved), family.parameters, family.names)
            for solver in (Iwocs(), RectangularValueIteration(), SingleProcess()):
                mine, theirs = (run(f, solver)[-1].numbers["value"] for f in (family, other))
                assert theirs == pytest.approx(2 * mine + 30)


class TestRivals:
    def test_the_hull_takes_each_action_at_its_worst(self):
        last = run(bandits([3, 1], [0, 2]), RectangularValueIteration())[-1]
        assert last.numbers["hull"] == pytest.approx(1) and last.numbers["value"] == pytest.approx(1)
        assert last.tables["policy"][0] == 1

    def test_where_states_are_independent_the_hull_is_the_family(self):
        for seed in range(3):
            family = random_family(seed, 3, 2, groups=3, points=27)
            best = max(family.worst(np.array(p))[1] for p in itertools.product(range(2), repeat=3))
            last = run(family, RectangularValueIteration())[-1].numbers
            assert last["hull"] == pytest.approx(best, abs=1e-7) and last["value"] == pytest.approx(best, abs=1e-7)

    def test_the_mean_is_of_the_members(self):
        (found,) = run(bandits([4, 1], [0, 2]), SingleProcess())
        assert found.tables["policy"][0] == 0 and found.numbers["value"] == 0


class TestStatements:
    def test_the_windy_walk(self):
        assert solves(0) == 2 and abs(missing(0, points=49)) < 1e-6
        last = solve(RECIPES["iwocs"], WindyWalk().family).solution.numbers
        assert last["value"] == pytest.approx(-7.952147, abs=1e-6) and last["worst_alpha"] == 0.5

    def test_violations_and_trials_run(self):
        assert violations(1000, families=3) == 0
        both = [shared(arm, 1000, groups=2, families=2) for arm in ("treatment", "control")]
        assert both[0]["stalled"] >= 0 and both[1]["value"] > 0

    def test_random_families_lie_between_their_ends(self):
        family = random_family(0, groups=2, points=9)
        assert len(family) == 9 and family.parameters[5].tolist() == [0.5, 1.0]
        table = [m.transitions.reshape(6, 3, 6) for m in family.members]
        np.testing.assert_allclose(table[5][::2], (table[0] + table[8])[::2] / 2)
        np.testing.assert_allclose(table[5][1::2], table[8][1::2])


class TestDeep:
    def test_a_random_pendulum_steps_as_the_one_it_drew(self):
        task, g = RandomPendulum(), torch.Generator().manual_seed(0)
        state = task.reset(5, g)
        assert state.shape == (5, 4) and task.observe(state).shape == (5, 3)
        action = torch.linspace(-2, 2, 5)[:, None]
        after, reward, over = task.step(state, action, g)
        for i in range(5):
            single = Pendulum(mass=float(state[i, 2]), length=float(state[i, 3]))
            wanted, paid, _ = single.step(state[i : i + 1, :2], action[i : i + 1], g)
            torch.testing.assert_close(after[i : i + 1, :2], wanted)
            torch.testing.assert_close(reward[i : i + 1], paid)
        assert torch.equal(after[:, 2:], state[:, 2:]) and not over.any() and task.mass == 1.0

    def test_the_least_value_acts(self):
        def policy(act, values):
            return SimpleNamespace(
                head=lambda obs: torch.full((len(obs), 1), act), shape=SimpleNamespace(mode=lambda head: head),
                q=lambda obs, action: torch.tensor(values), choose=lambda head, noise: head,
            )  # fmt: skip

        one = policy(1.0, [[1.0, 5.0, 2.0], [9.0, 4.0, 9.0]])  # least of two critics: 1, 4, 2
        two = policy(2.0, [[0.0, 9.0, 3.0], [8.0, 6.0, 8.0]])  # 0, 6, 3
        assert least([one, two], torch.zeros(3, 3)).tolist() == [[2.0], [1.0], [1.0]]

    def test_returns_of_the_grid_are_those_of_single_pendulums(self):
        task, g = RandomPendulum(max_steps=3), torch.Generator().manual_seed(0)
        still = SimpleNamespace(
            head=lambda obs: torch.zeros(len(obs), 1), shape=SimpleNamespace(mode=lambda head: head),
            q=lambda obs, action: torch.zeros(1, len(obs)), choose=lambda head, noise: head,
        )  # fmt: skip
        found = returns([still], task, 2, 4, g)
        state = Pendulum().reset(4, torch.Generator().manual_seed(0))
        single, total = Pendulum(mass=0.5, length=1.5), 0.0
        for _ in range(3):
            state, reward, _ = single.step(state, torch.zeros(4, 1), g)
            total += reward.mean()
        assert found.shape == (4,) and float(found[1]) == pytest.approx(float(total), rel=1e-5)


ENDING = FiniteFamily((random_process(0, horizon=5),), np.zeros((1, 1)), ("u",))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_run(name, capsys):
    main(["solve", name, "--task.points", "5"])
    assert capsys.readouterr().out.startswith(f"{name} on windy_walk: ")


def test_gridworlds_are_families(capsys):
    words = "--task family --task.env-settings layout corridor --task.vary slip --task.low 0.1 --task.high 0.3"
    main(["solve", "iwocs", *words.split(), "--task.points", "3"])
    assert "certified" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Iwocs(tolerance=0), "solver.tolerance: expected a number above 0"),
        (lambda: Iwocs(iterations=-1), "solver.iterations: expected 0 or more"),
        (lambda: Iwocs(inner="sarsa"), "solver.inner: expected policy_iteration or value_iteration"),
        (lambda: Iwocs(keep="all"), "solver.keep: expected last or best"),
        (lambda: SingleProcess(model="median"), "solver.model: expected mean or nominal"),
        (lambda: RandomPendulum(masses=(2.0, 1.0)), "task.masses: expected a lower and a higher number"),
        (lambda: solve(Exact(solver=Iwocs()), ENDING), "it cannot solve this problem: its processes end after 5"),
    ],
)  # fmt: skip
def test_refusals(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_value_iteration_alone_is_the_hull_of_one():
    mdp = random_process(1)
    alone = FiniteFamily((mdp,), np.zeros((1, 1)), ("u",))
    plain, hull = run(mdp, ValueIteration()), run(alone, RectangularValueIteration())
    assert len(plain) == len(hull)
    np.testing.assert_allclose(hull[-1].tables["values"], plain[-1].tables["values"])
