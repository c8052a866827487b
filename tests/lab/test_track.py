"""Trackers: the same numbers arrive elsewhere, and what is missing is named before training."""

from __future__ import annotations

import json
import sys
import types

import pytest
import tiny_runs

from partita.core.errors import UserError
from partita.lab.track import tracker
from partita.lab.train import launch


class FakeRun:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict]] = []
        self.code: int | None = None

    def log(self, row, step):
        self.rows.append((step, row))

    def finish(self, exit_code):
        self.code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the wandb package that keeps what it is told."""
    fake = types.ModuleType("wandb")
    fake.started, fake.runs = [], []

    def init(**settings):
        fake.started.append(settings)
        fake.runs.append(FakeRun())
        return fake.runs[-1]

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_every_step_and_both_evaluations(tmp_path, wandb):
    result = tiny_runs.run(tiny_runs.ppo(), tmp_path / "run", (tracker("wandb"),))
    started, run = wandb.started[0], wandb.runs[0]
    assert (started["project"], started["name"], started["resume"]) == ("partita", "run", "allow")
    assert started["config"]["recipe"] == "ppo"
    assert started["id"] == (tmp_path / "run" / "wandb_id").read_text().strip()
    steps = [(s, row) for s, row in run.rows if "loss" in row]
    assert [s for s, _ in steps] == [1, 2, 3]
    for row, kept in zip((r for _, r in steps), result.metrics, strict=True):
        assert row == {k: v for k, v in kept.items() if k != "step"}
    measured = [(s, row["evaluation/return"]) for s, row in run.rows if "evaluation/return" in row]
    assert measured == [(0, result.before.mean), (3, result.after.mean)]
    assert run.code == 0


def test_wandb_continues_the_same_run(tmp_path, wandb):
    config = tiny_runs.ppo()
    tiny_runs.run(config, tmp_path / "run", (tracker("wandb"),))
    launch(config, tmp_path / "run", resume=True, watchers=(tracker("wandb"),))
    assert wandb.started[0]["id"] == wandb.started[1]["id"]
    tiny_runs.run(config, tmp_path / "other", (tracker("wandb"),))
    assert wandb.started[2]["id"] != wandb.started[0]["id"]


def test_tensorboard_holds_the_metrics(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra `track`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = tiny_runs.run(tiny_runs.ppo(), tmp_path / "run", (tracker("tensorboard"),))
    held = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    held.Reload()
    loss = held.Scalars("loss")
    assert [e.step for e in loss] == [1, 2, 3]
    assert [e.value for e in loss] == pytest.approx([row["loss"] for row in result.metrics], rel=1e-6)
    measured = held.Scalars("evaluation/return")
    assert [e.step for e in measured] == [0, 3]
    assert measured[1].value == pytest.approx(result.after.mean, rel=1e-6)
    text = held.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert json.loads(text.replace("\n    ", "\n"))["recipe"] == "ppo"


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_names_the_extra(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"--track {name}: not installed; pip install \"partita\[track\]\""):
        tracker(name)


def test_unknown_names_get_the_nearest():
    with pytest.raises(UserError, match="--track tensorbord: no such tracker; did you mean tensorboard"):
        tracker("tensorbord")
