"""UCBVI: bonuses by hand, optimism, and what both come to on RiverSwim."""

import json
import math

import numpy as np
import pytest

from partita.cli import main
from partita.core.errors import UserError
from partita.loops.exact import Exact, solve
from partita.papers.baselines.ucbvi import FIGURES, PLACES, RECIPES, UCBVI, regrets
from partita.parts.exploration import Seen
from partita.tasks.finite.mdp import assembled
from partita.tasks.finite.river_swim import RiverSwim
from processes import random_process

# state 0: action 0 stays, action 1 leads to 1, where there is only staying, which pays
PROCESS = assembled([(0, 0, 0, 1, 0.1), (0, 1, 1, 1, 0), (1, 0, 1, 1, 0.5), (1, 1, 1, 1, 0.25)], 2, 2, discount=1.0)
HORIZON = 2


def counted(visits, following, reached):
    seen = Seen(2, 2, HORIZON)
    seen.visits[:] = visits
    seen.counts[:] = following
    seen.chance[:] = seen.counts / np.maximum(seen.visits, 1)[:, None]
    seen.reached[:] = reached
    return seen


SEEN = counted([4, 4, 2, 0], [[3, 1], [0, 4], [0, 2], [0, 0]], [[5, 0], [3, 2]])


def first():
    return np.full((HORIZON, 2, 2), float(HORIZON))


def log(solver, episodes):
    return math.log(5 * 2 * 2 * episodes * HORIZON / solver.delta)


def test_hoeffding_by_hand():
    solver = UCBVI(bonus="hoeffding", scale=0.001, episodes=10, horizon=HORIZON)
    b = 0.001 * 7 * HORIZON * log(solver, 10)
    last = [[0.1 + b / 2, b / 2], [0.5 + b / math.sqrt(2), 2.0]]
    v = [max(last[0]), 2.0]
    step = [[0.1 + 0.75 * v[0] + 0.25 * v[1] + b / 2, 2.0], [2.0, 2.0]]  # 2 + b / 2, 2.5 + ...: no more than H
    np.testing.assert_allclose(solver.plan(PROCESS, SEEN, first()), [step, last])


def test_bernstein_by_hand():
    solver = UCBVI(scale=0.01, episodes=10, horizon=HORIZON)
    logs = log(solver, 10)

    def fixed(n):
        return 14 * HORIZON * logs / (3 * n)

    last = [[0.1 + 0.01 * fixed(4), 0.01 * fixed(4)], [0.5 + 0.01 * fixed(2), 2.0]]  # after the last step: nothing
    v = [max(last[0]), 2.0]
    mean = 0.75 * v[0] + 0.25 * v[1]
    variance = 0.75 * (v[0] - mean) ** 2 + 0.25 * (v[1] - mean) ** 2
    third = math.sqrt(8 / 4 * HORIZON**2)  # 100^2 H^3 S^2 A L^2 / N is above H^2 for every N here
    b = math.sqrt(8 * logs * variance / 4) + fixed(4) + third
    step = [[0.1 + mean + 0.01 * b, 2.0], [2.0, 2.0]]
    np.testing.assert_allclose(solver.plan(PROCESS, SEEN, first()), [step, last])


def test_what_is_often_reached_next_needs_less():
    # without uncertainty of values alone the third term is left: sqrt(8 / n sum_y P(y) min(c / N_2(y), H^2))
    solver = UCBVI(scale=1e-4, episodes=10, horizon=HORIZON)
    n, often = 1e6, np.array([1e9, 1e10])
    seen = counted([n] * 4, [[n / 2, n / 2]] * 4, [[0, 0], often])
    plain = PROCESS.but(reward=np.zeros((2, 2)), gains=None)
    logs = log(solver, 10)
    c = 1e4 * HORIZON**3 * 2**2 * 2 * logs**2
    assert (c / often < HORIZON**2).all()
    lower = 14 * HORIZON * logs / (3 * n)
    third = math.sqrt(8 / n * (c / often).mean())
    found = solver.plan(plain, seen, first())
    np.testing.assert_allclose(found[1], 1e-4 * lower, rtol=1e-9)
    np.testing.assert_allclose(found[0], 1e-4 * (2 * lower + third), rtol=1e-9)


def test_without_a_bonus_it_plans_with_what_was_counted():
    mdp = random_process(0, discount=1.0)
    mdp = mdp.but(reward=1 / (1 + np.exp(mdp.reward)))
    seen = Seen(6, 3, 4)
    seen.chance[:], seen.visits[:] = mdp.transitions, 1.0
    for bonus in ("bernstein", "hoeffding"):
        found = UCBVI(bonus=bonus, scale=0.0).plan(mdp, seen, np.full((4, 6, 3), 4.0))
        expected = [mdp.q(v) for v in mdp.induced(4)[0][:-1][::-1]]
        np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("bonus", ["bernstein", "hoeffding"])
class TestBoth:
    def test_nothing_seen_nothing_known(self, bonus):
        assert (UCBVI(bonus=bonus).plan(PROCESS, Seen(2, 2, HORIZON), first()) == HORIZON).all()

    def test_plans_only_come_down_and_leave_the_last_alone(self, bonus):
        low, last = first() / 20, first()
        found = UCBVI(bonus=bonus, scale=0.001).plan(PROCESS, SEEN, low)
        assert (found <= low).all() and (found == low).any()
        UCBVI(bonus=bonus, scale=0.0).plan(PROCESS, SEEN, last)
        assert (last == HORIZON).all()

    def test_names_of_states_and_actions_do_not_matter(self, bonus):
        solver, order = UCBVI(bonus=bonus, scale=0.001, episodes=10), [1, 0]
        moved = PROCESS.but(
            transitions=PROCESS.transitions.toarray().reshape(2, 2, 2)[::-1, ::-1, ::-1].reshape(4, 2),
            reward=PROCESS.reward[::-1, ::-1], gains=None,
        )  # fmt: skip
        seen = counted(SEEN.visits[::-1], SEEN.counts[::-1, ::-1], SEEN.reached[:, order])
        found = solver.plan(moved, seen, first())
        np.testing.assert_allclose(found[:, ::-1, ::-1], solver.plan(PROCESS, SEEN, first()))

    def test_river_swim_is_learnt_and_stays_below_its_estimate(self, bonus):
        solver = UCBVI(bonus=bonus, scale=0.001, horizon=20, episodes=300)
        found = solve(Exact(solver=solver), RiverSwim(discount=1.0).process, seed=1000)
        curve = found.curves["regret"]
        assert found.solution.numbers["value"] == pytest.approx(3.397264, abs=0.1)
        assert (np.diff(curve) >= -1e-12).all() and curve[-1] - curve[199] < curve[99] / 4

    def test_at_scale_one_every_value_stays_open(self, bonus):
        solver = UCBVI(bonus=bonus, horizon=20, episodes=30)
        found = solve(Exact(solver=solver), RiverSwim(discount=1.0).process, seed=1000)
        assert (found.curves["estimate"] == 20).all()


def test_greed_does_not_find_the_upper_end():
    solver = UCBVI(scale=0.0, horizon=20, episodes=100)
    found = solve(Exact(solver=solver), RiverSwim(discount=1.0).process, seed=1000)
    assert found.curves["regret"][-1] > 300


def test_the_figure_has_a_line_for_each_bonus():
    lines = regrets(1000)
    assert set(lines) == {"Bernstein", "Hoeffding", "no bonus"} and FIGURES[0].measure is regrets
    assert all(len(line) == len(PLACES) and (np.diff(line) >= 0).all() for line in lines.values())
    assert lines["Bernstein"][-1] < lines["Hoeffding"][-1] < lines["no bonus"][-1]


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_from_the_command_line(recipe, tmp_path, capsys):
    target = tmp_path / "found.json"
    main(["solve", recipe, "--solver.episodes", "40", "--solver.horizon", "6", "--out", str(target)])
    found = json.loads(target.read_text())
    assert found["finished"] and len(found["curves"]["regret"]) == 40 and "regret" in capsys.readouterr().out
    assert np.array(found["tables"]["policy"]).shape == (6, 6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(bonus="chernoff"), "solver.bonus: expected bernstein or hoeffding, got 'chernoff'"),
        (dict(scale=-1.0), "solver.scale: expected 0 or more"),
        (dict(scale=math.nan), "solver.scale"),
        (dict(delta=0.0), "solver.delta: expected a number between 0 and 1"),
        (dict(delta=1.0), "solver.delta"),
        (dict(episodes=0), "solver.episodes"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        UCBVI(**settings)
