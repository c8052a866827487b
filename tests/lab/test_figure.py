"""`partita figure`: lines over seeds, the theory's beside them, and how a page draws both."""

import json
import types

import numpy as np
import pytest

from partita.cli import main
from partita.core import registry
from partita.core.paper import Figure
from partita.lab.figure import measured
from partita.lab.site import theory

FIGURE = Figure(
    title="Errors over samples", x_name="samples", y_name="error", x=(10.0, 100.0, 1000.0),
    measure=lambda seed: {"ours": [1.0 + seed, 0.1, 0.01], "theirs": np.array([1.0, 0.5, 0.2])},
    theory={"1 / n": lambda x: 10 / x}, log=True, seeds=3,
)  # fmt: skip


def test_lines_are_means_in_their_bands():
    found = measured(FIGURE, 3)
    assert found["lines"]["ours"] == {"mean": [2, 0.1, 0.01], "low": [1, 0.1, 0.01], "high": [3, 0.1, 0.01]}
    assert found["theory"] == {"1 / n": [1, 0.1, 0.01]} and found["seeds"] == 3


def test_a_line_must_be_told_at_every_place():
    short = Figure("t", "x", "y", (1.0, 2.0), lambda seed: {"ours": [1.0]}, seeds=1)
    with pytest.raises(registry.UserError, match=r"line 'ours' has .* values at 2 places"):
        measured(short, 1)


def test_the_command_writes_what_the_page_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "paper_module", lambda key: types.SimpleNamespace(FIGURES=(FIGURE,)))
    (tmp_path / "figures").mkdir()
    main(["figure", "sac", "--seeds", "2", "--out", str(tmp_path / "figures" / "sac.json")])
    assert "Errors over samples: ours, theirs; 2 seeds" in capsys.readouterr().out
    held = theory.read(tmp_path, "sac")
    assert held[0]["seeds"] == 2 and json.loads((tmp_path / "figures" / "sac.json").read_text())["date"]
    drawn = str(theory.drawing(held[0], "figure-1"))
    assert drawn.count('class="area') == 2 and drawn.count('class="curve theory') == 2  # the line and its mark
    assert "1 / n, theory" in drawn and "theory, 1 / n, from 1 to 0.01" in drawn and ">100<" in drawn


def test_axes_without_logarithms_are_linear():
    plain = measured(Figure("t", "x", "y", (0.0, 1.0), lambda seed: {"ours": [0.0, -2.0]}, seeds=1), 1)
    assert "0 to -2" in str(theory.drawing(plain, "f")) and "means over" not in str(theory.drawing(plain, "f"))


def test_a_work_without_figures_says_so(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["figure", "sac"])
    assert stopped.value.code == 2 and "this work has no figures" in capsys.readouterr().err


def test_a_file_that_is_no_figures_is_refused(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "sac.json").write_text("[1]")
    with pytest.raises(registry.UserError, match=r"sac\.json: no figures .* write it again with partita figure sac"):
        theory.read(tmp_path, "sac")
