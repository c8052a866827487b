"""What fits verl and what does not, what is registered there, and how verl comes by it."""

# ruff: noqa: E402  (what needs verl is imported after the skip)

import os
import subprocess
import sys
from pathlib import Path

import pytest

from partita.core import registry
from partita.core.registry import part_class
from partita.parts.contrast import Contrast

ROOT = Path(__file__).resolve().parents[2]


pytest.importorskip("verl", reason="verl is not installed; `make peers` runs these")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY

import partita.engines.verl.plugin
from partita.engines.verl.fits import fits

REGISTRIES = {"credit": ADV_ESTIMATOR_REGISTRY, "objective": POLICY_LOSS_REGISTRY}
each = pytest.mark.parametrize("fit", fits(), ids=lambda fit: f"{fit.slot}-{fit.name}")


@pytest.mark.parametrize("slot", REGISTRIES)
def test_every_registered_part_is_classified_once(slot):
    listed = [fit.name for fit in fits() if fit.slot == slot]
    assert sorted(listed) == sorted(registry.index()["parts"][slot])


@each
def test_what_fits_is_registered_and_nothing_else(fit):
    for name in fit.names:
        assert (name in REGISTRIES[fit.slot]) == (fit.way != "none")
        assert part_class(fit.slot, name.removeprefix("partita/")) is part_class(fit.slot, fit.name)
    assert fit.why and "\n" not in fit.why and not fit.why.endswith(".")


def test_names_of_ours_are_no_more_than_those():
    for slot, known in REGISTRIES.items():
        ours = {name for fit in fits() if fit.slot == slot and fit.way != "none" for name in fit.names}
        assert {name for name in known if name.startswith("partita/")} == ours


@each
def test_what_is_in_a_signature_is_all_that_a_part_asks_for(fit):
    part = part_class(fit.slot, fit.name)()
    asks = bool(part.needs) or part.unit == "group" or isinstance(part, Contrast)
    assert not (asks and fit.way == "signature")
    assert isinstance(part, Contrast) == (fit.why.startswith("a loss of comparisons"))


def test_the_page_lists_the_same():
    page = (ROOT / "docs/engines/verl.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(("| credit |", "| objective |"))]
    names = {fit: ", ".join(f"`{name.removeprefix('partita/')}`" for name in fit.names) for fit in fits()}
    assert rows == [f"| {fit.slot} | {names[fit]} | {fit.way} | {fit.why} |" for fit in fits()]


# How verl comes by it --------------------------------------------------------------------------------------------

LOOK = """
import verl
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
print("partita/bnpo" in ADV_ESTIMATOR_REGISTRY, "partita/bapo" in POLICY_LOSS_REGISTRY)
"""


def told(program, folder, **env):
    """Output and errors of a Python of its own, in which Partita is installed as far as verl can see."""
    about = folder / "partita-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: partita\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[verl.plugins]\npartita = partita.engines.verl.plugin\n")
    path = os.pathsep.join([str(folder), str(ROOT / "src")])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip


def test_verl_finds_the_plugin_by_its_entry_point(tmp_path):
    ended = told(LOOK, tmp_path)
    assert ended.stdout.splitlines()[-1] == "True True"
    assert "partita" not in ended.stderr


def test_verl_hides_what_goes_wrong_and_the_plugin_tells_it(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['transfer_queue'] = None\n")
    ended = told(LOOK, tmp_path)
    assert ended.stdout.splitlines()[-1] == "True True"
    lines = [line for line in ended.stderr.splitlines() if "partita" in line]
    assert len(lines) == 1 and "no trainers are registered in verl, parts are: ModuleNotFoundError: " in lines[0]


def test_what_cannot_be_registered_is_told_in_a_line(monkeypatch, caplog):
    def broken():
        raise ImportError("cannot import name 'register_adv_est'")

    monkeypatch.setattr(partita.engines.verl.plugin, "register", broken)
    partita.engines.verl.plugin.attempt()
    told = "partita: nothing is registered in verl: ImportError: cannot import name 'register_adv_est'"
    assert [record.getMessage() for record in caplog.records] == [told]


def test_the_list_is_printed():
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "partita.engines.verl"], env=env, capture_output=True, text=True,
        timeout=300, check=True,
    )  # fmt: skip
    lines = ended.stdout.splitlines()
    assert len(lines) == len(fits()) and lines[0].split()[:3] == ["credit", "beta_normalised", "signature"]
