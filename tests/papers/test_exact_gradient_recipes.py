"""Exact policy gradients from the command line, and what theory says of them."""

import json

import pytest

from partita.cli import main
from partita.papers.baselines.exact_gradient import exceeded, fallen, garnet


@pytest.mark.parametrize("recipe", ["exact_policy_gradient", "exact_natural_policy_gradient"])
def test_recipes_run(recipe, capsys):
    main(["solve", recipe, "--task", "river_swim", "--task.length", "3", "--sweeps", "4", "--json"])
    found = json.loads(capsys.readouterr().out)
    curve = found["curves"]["value"]
    assert found["sweeps"] == 4 and curve[-1] > curve[0]


def test_the_bound_is_kept_and_values_only_rise():
    assert exceeded(1000, steps=50) == 0 and fallen(1000, sweeps=50) <= 1e-10


def test_rewards_are_between_0_and_1():
    reward = garnet(1000).reward
    assert reward.min() == 0 and reward.max() == 1
