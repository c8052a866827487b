"""LinUCB, UCB1 and Exp3 from the command line, and what is claimed of the first."""

import json

import numpy as np
import pytest

from partita.cli import main
from partita.papers.baselines.linucb import RECIPES, outside
from partita.parts.bandits import Ridge
from partita.tasks.finite.bandits import LinearBandit


def test_recipes_run(capsys, tmp_path):
    for name in RECIPES:
        out = tmp_path / f"{name}.json"
        main(["solve", name, "--task", "sphere_bandit", "--solver.rounds", "300", "--out", str(out)])
        table = json.loads(out.read_text())
        assert f"{name} on sphere_bandit" in capsys.readouterr().out and table["finished"]
        assert table["numbers"]["round"] == 300 and len(table["curves"]["regret"]) == table["sweeps"]


def test_optimism_by_hand():
    """From nothing, the longest arm; after its reward, whichever bound is higher."""
    made = LinearBandit(np.array([[2.0, 0.0], [0.0, 1.0]]), [0.0, 0.0])
    learner = Ridge(made, 1, 1.0, lambda t, grown: 1.0)
    assert learner.choose(0).tolist() == [0]  # bounds 2 and 1
    learner.see(np.array([0]), np.array([0.5]))  # V = diag(5, 1), hhat = (0.2, 0)
    np.testing.assert_allclose(learner.estimate, [[0.2, 0.0]])
    assert learner.choose(1).tolist() == [0]  # 0.4 + 2 / sqrt 5 = 1.294 against 1
    learner.see(np.array([0]), np.array([-0.5]))  # V = diag(9, 1), hhat = 0: 2 / 3 against 1
    assert learner.choose(2).tolist() == [1]


def test_the_set_is_not_left():
    assert outside(1000, runs=40, rounds=300) <= 0.1


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_another_problem_is_refused(name):
    with pytest.raises(SystemExit):
        main(["solve", name, "--task", "river_swim"])
