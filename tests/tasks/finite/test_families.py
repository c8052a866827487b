"""Families of finite processes: grids, worst members, and the windy walk by hand."""

import numpy as np
import pytest
import torch

from partita.core.errors import UserError
from partita.tasks.control.grid import Gridworld
from partita.tasks.finite.families import Family, FiniteFamily, sampled
from partita.tasks.finite.windy_walk import WindyWalk
from processes import random_process


def family_of(*members, **about):
    return FiniteFamily(members, np.arange(len(members), dtype=float)[:, None], ("u",), **about)


def chance(mdp, cell, action):
    """Where an action leads from a cell of a windy walk: names of cells and probabilities."""
    row = mdp.states.index(cell) * 4 + mdp.actions.index(action)
    dense = mdp.transitions.toarray()[row]
    return {mdp.states[i]: pytest.approx(dense[i]) for i in np.flatnonzero(dense)}


class TestFamily:
    def test_values_and_steps_are_those_of_every_member(self):
        members = [random_process(s).but(start=np.eye(6)[0]) for s in range(4)]
        family, policy = family_of(*members), np.array([0, 2, 1, 0, 1, 2])
        spread = np.random.default_rng(0).dirichlet(np.ones(3), 6)
        for choice in (policy, spread):
            np.testing.assert_allclose(family.values(choice), [m.evaluate(choice) for m in members])
        v = np.random.default_rng(1).normal(size=(4, 6))
        np.testing.assert_allclose(family.q(v), [m.q(x) for m, x in zip(members, v, strict=True)])
        np.testing.assert_allclose(family.q(v[0]), [m.q(v[0]) for m in members])
        returns = [m.evaluate(policy)[0] for m in members]
        assert family.worst(policy) == (int(np.argmin(returns)), pytest.approx(min(returns)))

    def test_the_mean(self):
        a, b = random_process(0), random_process(1).but(start=random_process(0).start)
        mean = family_of(a, b).mean
        np.testing.assert_allclose(mean.transitions, (a.transitions + b.transitions) / 2)
        np.testing.assert_allclose(mean.reward, (a.reward + b.reward) / 2)
        assert family_of(a, a).mean.q(np.arange(6.0)) == pytest.approx(a.q(np.arange(6.0)))

    def test_actions_that_do_not_exist_stay_away(self):
        allowed = np.ones((6, 3), bool)
        allowed[2, 1] = False
        mdp = random_process(0).but(allowed=allowed)
        assert np.isneginf(family_of(mdp, mdp).q(np.zeros(6))[:, 2, 1]).all()

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda a, b: FiniteFamily((), np.zeros((0, 1)), ("u",)), "members: expected one process or more"),
            (lambda a, b: FiniteFamily((a,), np.zeros((2, 1)), ("u",)), r"parameters: expected shape \(1, 1\)"),
            (lambda a, b: family_of(a, nominal=1), "nominal: expected one of 1 members, got 1"),
            (lambda a, b: family_of(a, b), r"members\[1\]: its start differs"),
            (lambda a, b: family_of(a, a.but(discount=0.5)), r"members\[1\]: its discount differs"),
            (lambda a, b: family_of(a, random_process(0, size=3)), r"members\[1\]: expected 6 states and 3 actions"),
        ],
    )
    def test_refusals(self, make, said):
        with pytest.raises(UserError, match=said):
            make(random_process(0), random_process(1))


class TestSampled:
    def test_the_grid_has_its_ends_and_its_nominal_point(self):
        task = Gridworld(layout="corridor", slip=0.2, step_reward=-0.1)
        family = sampled(task, {"slip": (0.0, 0.5), "step_reward": (-0.2, 0.0)}, 3, 0.9)
        wanted = [[a, b] for a in (0, 0.25, 0.5) for b in (-0.2, -0.1, 0)]
        np.testing.assert_allclose(family.parameters, wanted)
        assert family.names == ("slip", "step_reward") and family.nominal == 4
        process = Gridworld(layout="corridor", slip=0.5, step_reward=-0.2).process
        last = family.members[6]
        np.testing.assert_allclose(last.q(np.arange(10.0)), process.but(discount=0.9).q(np.arange(10.0)))
        assert last.discount == 0.9 and last.horizon is None

    @pytest.mark.parametrize(
        ("ranges", "points", "said"),
        [
            ({}, 3, "task.vary: expected a field or more"),
            ({"slipp": (0, 1)}, 3, "gridworld has no real field 'slipp'; did you mean slip"),
            ({"max_steps": (1, 5)}, 3, "no real field 'max_steps'"),
            ({"slip": (0.5, 0.5)}, 3, "task.low, task.high: slip: expected a lower and a higher number"),
            ({"slip": (0.0, 2.0)}, 3, "task.slip: gridworld got 2.0"),
            ({"slip": (0.0, 1.0)}, 1, "task.points: expected 2 or more, got 1"),
        ],
    )
    def test_refusals(self, ranges, points, said):
        with pytest.raises(UserError, match=said):
            sampled(Gridworld(layout="corridor"), ranges, points)

    def test_the_task(self):
        task = Family(env_settings={"layout": "corridor", "slip": 0.1}, points=6)
        assert len(task.family) == 6 and task.family.nominal == 1 and task.process.horizon is None
        np.testing.assert_allclose(task.process.q(np.arange(10.0)), task.family.members[1].q(np.arange(10.0)))
        assert task.horizon == 100 and task.reset(2, torch.Generator()).tolist() == [0, 0]
        with pytest.raises(UserError, match=r"task.env: family got 'pendulum'; name a task that is a finite process"):
            Family(env="pendulum")
        with pytest.raises(UserError, match=r"task.env_settings: .* gridworld has other fields"):
            Family(env_settings={"map": "corridor"}).family  # noqa: B018
        with pytest.raises(UserError, match=r"task.high: family got \(\); give a number for each of slip"):
            Family(high=())


class TestWindyWalk:
    def test_winds_by_hand(self):
        mdp = WindyWalk(alpha=0.5).process
        assert mdp.size == 30 and mdp.states[int(mdp.start.argmax())] == "0,0"
        assert chance(mdp, "0,2", "east") == {"0,3": 0.5, "0,1": 0.5}
        assert chance(mdp, "0,2", "south") == {"0,2": 0.5, "0,1": 0.5}
        assert chance(mdp, "2,3", "north") == {"2,3": 0.875, "2,2": 0.125}
        assert chance(mdp, "5,3", "north") == {"4,3": 1 - 1 / 64, "5,2": 1 / 64}
        assert chance(mdp, "5,3", "south") == {"5,3": 1 - 1 / 64, "5,2": 1 / 64}
        assert chance(mdp, "0,2", "west") == {"0,1": 1.0} and chance(mdp, "3,1", "east") == {"3,1": 1.0}
        assert chance(mdp, "0,5", "west") == {"0,5": 1.0}
        goal = mdp.states.index("0,5")
        assert (mdp.reward[goal] == 0).all() and (np.delete(mdp.reward, goal, 0) == -1).all()

    def test_without_wind_it_is_five_steps(self):
        mdp = WindyWalk().process
        east = mdp.evaluate(np.full(30, mdp.actions.index("east")))
        assert mdp.start @ east == pytest.approx(-(1 - 0.95**5) / 0.05)

    def test_the_family(self):
        family = WindyWalk(alpha=0.26).family
        np.testing.assert_allclose(family.parameters[:, 0], np.linspace(0, 0.5, 25))
        assert family.nominal == 12 and family.names == ("alpha",)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"alpha": 1.5}, "task.alpha: windy_walk got 1.5; give a number from 0 to 1"),
            ({"high": 0.0}, "task.high"),
            ({"layout": "S0G"}, "`0` is not a map symbol"),
            ({"layout": "S.G/.."}, "give rows of equal length"),
            ({"layout": "S..S"}, "mark one start with S"),
            ({"max_steps": 0}, "task.max_steps"),
        ],
    )
    def test_refusals(self, settings, said):
        with pytest.raises(UserError, match=said):
            WindyWalk(**settings)
