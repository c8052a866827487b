"""Finite processes as environments: what is sampled is what the tables say."""

import json

import numpy as np
import pytest
import torch

from partita.core.errors import UserError
from partita.tasks.control.grid import Gridworld
from partita.tasks.finite.file import FiniteFile, read, written
from partita.tasks.finite.mdp import assembled
from partita.tasks.finite.river_swim import RiverSwim
from partita.tasks.finite.task import Given
from processes import random_process


def test_steps_have_the_chances_and_rewards_of_the_tables():
    mdp = assembled(
        [(0, 0, 0, 0.2, 1.0), (0, 0, 1, 0.3, 2.0), (0, 0, 2, 0.5, 3.0), (1, 0, 1, 1, 0), (2, 0, 2, 1, 0)], 3, 1
    )
    env, g = Given(mdp), torch.Generator().manual_seed(0)
    state, reward, over = env.step(torch.zeros(20_000, dtype=torch.int64), torch.zeros(20_000, dtype=torch.int64), g)
    share = torch.bincount(state, minlength=3) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.2, 0.3, 0.5]), atol=0.02, rtol=0)
    assert torch.equal(reward, torch.tensor([1.0, 2.0, 3.0])[state]) and torch.equal(over, state > 0)


def test_starts_have_their_chances():
    mdp = random_process(0).but(start=np.array([0, 0.25, 0, 0.75, 0, 0]))
    state = Given(mdp).reset(10_000, torch.Generator().manual_seed(0))
    share = torch.bincount(state, minlength=6) / 10_000
    torch.testing.assert_close(share, torch.tensor([0, 0.25, 0, 0.75, 0, 0]), atol=0.02, rtol=0)


def test_an_action_that_does_not_exist_counts_as_the_first_that_does():
    env = Given(assembled([(0, 1, 1, 1, 5.0), (1, 0, 1, 1, 0), (1, 1, 1, 1, 0)], 2, 2))
    zeros = torch.zeros(3, dtype=torch.int64)
    state, reward, _ = env.step(zeros, zeros, torch.Generator())
    assert state.tolist() == [1, 1, 1] and reward.tolist() == [5, 5, 5]


@pytest.mark.parametrize("layout", ["corridor", "cliff", "key_door"])
@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_a_gridworld_as_a_process_has_its_best_return(layout, slip):
    env = Gridworld(layout=layout, slip=slip, max_steps=40)
    mdp = env.process
    assert mdp.start @ mdp.induced()[0][-1] == pytest.approx(env.optimal_return(), abs=1e-12)


def test_a_gridworld_there_and_back_steps_alike():
    env = Gridworld(layout="key_door", slip=0.0)
    back, g = Given(env.process), torch.Generator().manual_seed(0)
    state = torch.arange(env.process.size - 1).repeat_interleave(4)
    action = torch.arange(4).repeat(env.process.size - 1)
    mine, theirs = env.step(state, action, g), back.step(state, action, g)
    torch.testing.assert_close(mine[1], theirs[1])
    assert torch.equal(mine[2], theirs[2])
    assert torch.equal(torch.where(mine[2], env.process.size - 1, mine[0]), theirs[0]) and back.horizon == 100


def test_a_file_holds_what_was_written(tmp_path):
    for mdp in (RiverSwim().process, random_process(1), Gridworld(layout="corridor").process):
        (tmp_path / "p.json").write_text(json.dumps(written(mdp)))
        found = read(tmp_path / "p.json")
        values = np.arange(mdp.size, dtype=float)
        np.testing.assert_allclose(found.q(values), mdp.q(values))
        assert (found.discount, found.horizon, found.actions) == (mdp.discount, mdp.horizon, mdp.actions)
        np.testing.assert_allclose(found.start, mdp.start)


GOOD = {"states": ["low", "high"], "actions": 1, "outcomes": [["low", 0, "high", 1, 2.0], ["high", 0, "high", 1, 0]]}
BAD = [
    ("[1, 2", "not JSON"),
    ("[]", "expected an object"),
    ({**GOOD, "gamma": 0.9}, "gamma: no such field"),
    ({"states": 2, "actions": 1}, "outcomes: missing"),
    ({**GOOD, "states": ["a", "a"]}, "states: 'a' stands there twice"),
    ({**GOOD, "states": 0}, "states: expected a list of names"),
    ({**GOOD, "outcomes": [["low", 0, "high", 1]]}, r"outcomes\[0\]: expected \[state"),
    ({**GOOD, "outcomes": [["mid", 0, "high", 1, 0]]}, r"outcomes\[0\]: 'mid' is none of low, high"),
    ({**GOOD, "outcomes": [["low", 1, "high", 1, 0]]}, r"outcomes\[0\]: 1 is none of 1"),
    ({**GOOD, "outcomes": [["low", 0, "high", "all", 0]]}, r"outcomes\[0\]: expected a finite number, got 'all'"),
    ({**GOOD, "outcomes": [["low", 0, "high", 0.5, 0], ["high", 0, "high", 1, 0]]}, r"state 0 \(low\).* add up to 0.5"),
    ({**GOOD, "outcomes": [["low", 0, "high", 1, 0]]}, r"allowed: state 1 \(high\) has no action"),
    ({**GOOD, "discount": 2}, "discount: expected"),
    ({**GOOD, "horizon": 1.5}, "horizon: expected a number of decisions"),
    ({**GOOD, "start": "mid"}, "start: 'mid' is none"),
]


@pytest.mark.parametrize(("content", "said"), BAD)
def test_bad_files_are_refused_by_name_and_field(tmp_path, content, said):
    path = tmp_path / "bad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=f"bad.json: .*{said}"):
        FiniteFile(str(path)).process  # noqa: B018
