"""Robust value iteration from the command line."""

import json

import pytest

from partita.cli import main


def numbers(capsys, *words):
    main(["solve", "robust_value_iteration", "--task", "river_swim", "--json", *words])
    return json.loads(capsys.readouterr().out)["numbers"]


def test_the_more_is_uncertain_the_less_river_swim_is_worth(capsys):
    assert numbers(capsys, "--solver.radius", "0")["value"] == pytest.approx(4.669300, abs=1e-6)
    values = [numbers(capsys, "--solver.radius", radius)["value"] for radius in ("0.01", "0.05", "0.2")]
    # with enough to move the swimmer never leaves the left end, .005 / (1 - .95); with all, it is where nothing pays
    assert 4.66 > values[0] > values[1] > values[2] == pytest.approx(0.1, abs=1e-6)
    assert numbers(capsys, "--solver.radius", "1")["value"] == pytest.approx(0.005)


@pytest.mark.parametrize("name", ["kl", "chi_squared", "wasserstein", "contamination"])
def test_every_set_by_its_name(name, capsys):
    assert 0.1 <= numbers(capsys, "--solver.uncertainty", name)["value"] < 4.6693
    assert 0.1 <= numbers(capsys, "--solver.uncertainty", name, "--solver.price", "0.1")["value"] < 4.6693
