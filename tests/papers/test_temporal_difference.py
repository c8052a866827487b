"""The baselines of policy evaluation, from the command line."""

import json

import pytest

from partita.cli import main


@pytest.mark.parametrize("name", ["td", "lstd", "gtd2", "tdc"])
def test_a_short_run_says_values(name, tmp_path):
    target = tmp_path / "found.json"
    small = ["--solver.batches", "10", "--solver.length", "20", "--solver.policy", "best"]
    main(["solve", name, *small, "--out", str(target)])
    found = json.loads(target.read_text())
    assert found["finished"] and found["sweeps"] == 10 and len(found["tables"]["values"]) == 6
    errors = found["curves"]["error"]
    assert errors[-1] < errors[0] or name == "lstd"


def test_a_finite_end_is_refused_in_a_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["solve", "td", "--task", "gridworld"])
    assert stopped.value.code == 2 and "give --discount, without end" in capsys.readouterr().err
