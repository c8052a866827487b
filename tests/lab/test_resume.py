"""A run killed at any moment and resumed equals the run that was never stopped, to the bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from partita.core.errors import UserError
from partita.lab import checkpoint
from partita.lab.run import CLOCK

STEPS = 6

# A process that has everything imported and forks a child for each line it reads: FOLDER, CONFIG, MOMENT, COUNT,
# RESUME. The child runs the configuration and kills itself, as kill -9 does, when MOMENT comes for the COUNT-th time.
ZYGOTE = """
import json, os, signal, sys
from pathlib import Path
import partita.lab.checkpoint, partita.lab.run, partita.loops.on_policy, partita.loops.preference
import partita.policies.actor_critic, scipy.stats, torch
from partita.lab.config import Config
from partita.lab.train import launch
from partita.parts.contrast import Direct
from partita.parts.objective import ClippedSurrogate
from partita.policies.language import Language
from partita.tasks.preferences.lab import Lab

torch.set_num_threads(1)
Language().build(None, False, torch.Generator())  # imported and read once, for all children
Lab(size=8, judge="proxy").proxy

def die_inside(owner, name, moment, count):
    held = getattr(owner, name)
    seen = 0
    def wrapped(*args, **kwargs):
        nonlocal seen
        seen += 1
        if seen == count:
            if moment == "checkpoint":
                held(*args, **kwargs)  # tensors written, the folder not yet renamed
            os.kill(os.getpid(), signal.SIGKILL)
        return held(*args, **kwargs)
    setattr(owner, name, wrapped)

def arm(moment, count):
    if moment == "rollout":
        die_inside(partita.loops.on_policy, "gather", moment, count)
        die_inside(partita.loops.preference, "gather", moment, count)
    elif moment == "update":
        die_inside(ClippedSurrogate, "ratio", moment, count)
        die_inside(Direct, "ratio", moment, count)
    elif moment == "checkpoint":
        die_inside(partita.lab.checkpoint, "save_file", moment, count)
    elif moment == "rename":
        die_inside(partita.lab.run, "_remove", moment, count)
    elif moment == "metrics":
        real = partita.lab.run.FolderRun.log
        def log(self, step, metrics, batch=None):
            if step == count:
                with open(self.folder / "metrics.jsonl", "a") as file:
                    file.write('{"step": %d, "loss": 0.1' % step)
                os.kill(os.getpid(), signal.SIGKILL)
            real(self, step, metrics, batch)
        partita.lab.run.FolderRun.log = log

for line in sys.stdin:
    folder, config, moment, count, resume = json.loads(line)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            arm(moment, count)
            launch(Config.read(Path(config)), Path(folder), resume)
            code = 0
        finally:
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Zygote:
    """Starts children fast."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, folder: Path, config: Path, moment: str = "never", count: int = 1, resume: bool = False) -> int:
        """The process number of a new child."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(folder), str(config), moment, count, resume]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """The exit code of the child started last; negative: the signal that ended it."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def zygote():
    held = Zygote()
    yield held
    held.process.kill()
    held.process.wait()


@pytest.fixture(scope="module")
def run(zygote):
    """Run a configuration in a child; its exit code."""

    def go(*args, **kwargs) -> int:
        zygote.start(*args, **kwargs)
        return zygote.wait()

    return go


def config_for(domain: str, folder: Path) -> Path:
    """A small run that has every kind of state: stateful parts, moving references, several epochs."""
    if domain == "control":
        words = [
            "ppo", "--task", "cartpole", "--batch-size", "8", "--rollout.steps", "16", "--reward", "scaled_by_return",
            "--regularisers", "value_loss,entropy,kl", "--reference", "ema", "--policy.normalise", "--minibatches", "2",
        ]  # fmt: skip
    elif domain == "gymnasium":
        words = [
            "ppo", "--env", "gym:CartPole-v1", "--batch-size", "3", "--rollout.steps", "16", "--reward",
            "scaled_by_return", "--policy.normalise", "--minibatches", "2",
        ]  # fmt: skip
    elif domain == "preferences":  # given responses, and what the reference said of them
        words = ["dpo", "--task.size", "8", "--batch-size", "3", "--epochs", "2", "--minibatches", "2"]
    elif domain == "iterated":  # responses that wait for their step, and a reference that moves
        words = [
            "iterated_dpo", "--task.size", "8", "--task.judge", "proxy", "--batch-size", "4", "--resample.every", "3",
            "--reference.every", "3", "--resample.max-tokens", "8", "--minibatches", "2", "--eval-sampled",
        ]  # fmt: skip
    else:
        words = [
            "grpo_kl", "--task", "arithmetic", "--model", "tiny-0.3m", "--batch-size", "3", "--group-size", "3",
            "--rollout.max-tokens", "8", "--epochs", "2", "--reference", "reset", "--reference.every", "2",
        ]  # fmt: skip
    words += ["--steps", str(STEPS), "--save-every", "2", "--eval-size", "4", "--eval-every", "3", "--threads", "1"]
    from partita.lab.flags import parse

    config, _ = parse(words)
    path = folder / "config.json"
    path.write_text(json.dumps(config.to_json()))
    return path


def outcome(folder: Path):
    """What a run leaves, without its clocks and times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]
    evaluations = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    state = checkpoint.load(folder / "checkpoints" / f"step_{STEPS:08d}")
    state["run"].pop("seconds")
    return rows, evaluations, state


@pytest.fixture(scope="module", params=["control", "gymnasium", "language", "preferences", "iterated"])
def whole(request, run, tmp_path_factory):
    """A domain, its configuration, and what the run that was never stopped left."""
    folder = tmp_path_factory.mktemp(request.param)
    config = config_for(request.param, folder)
    assert run(folder / "whole", config) == 0
    return request.param, config, outcome(folder / "whole")


@pytest.mark.parametrize(
    ("moment", "count"),
    [("rollout", 4), ("update", 7), ("checkpoint", 2), ("rename", 1), ("metrics", 4), ("rollout", 1)],
)
def test_killed_inside_and_resumed_is_the_same_run(whole, run, moment, count, tmp_path):
    _, config, expected = whole
    folder = tmp_path / "run"
    assert run(folder, config, moment, count) == -signal.SIGKILL
    assert run(folder, config, resume=True) == 0
    rows, evaluations, state = outcome(folder)
    assert rows == expected[0]
    assert evaluations == expected[1]
    assert checkpoint.same(state, expected[2])


def test_killed_at_random_moments_again_and_again(whole, run, zygote, tmp_path):
    domain, config, expected = whole
    folder, resume = tmp_path / "run", False
    dice = random.Random(f"kill {domain}")
    for _ in range(6):
        child = zygote.start(folder, config, resume=resume)
        time.sleep(dice.uniform(0.05, 0.8))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        zygote.wait()
        resume = (folder / "config.json").exists()
    assert run(folder, config, resume=resume) == 0
    assert checkpoint.same(outcome(folder), expected)


def test_interrupt_saves_and_resumes_to_the_same_run(whole, run, tmp_path):
    domain, config, expected = whole
    if domain == "gymnasium":
        pytest.skip("these environments restart at every checkpoint, and the interrupt makes one more")
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "partita", "train", "--config", str(config), "--out", str(folder), "--quiet"]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    path = folder / "metrics.jsonl"
    started = time.monotonic()
    while not (path.exists() and path.read_text().count("\n") >= 1) and time.monotonic() - started < 60:
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 0, said
    assert run(folder, config, resume=True) == 0
    assert checkpoint.same(outcome(folder), expected)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_serves(whole, run, tmp_path):
    _, config, expected = whole
    folder = tmp_path / "run"
    assert run(folder, config, "rollout", 5) == -signal.SIGKILL
    last = folder / "checkpoints" / "step_00000004" / "state.safetensors"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    words = [sys.executable, "-m", "partita", "train", "--resume", str(folder), "--quiet"]
    refused = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "step_00000004: damaged checkpoint" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    import shutil

    shutil.rmtree(last.parent)
    assert run(folder, config, resume=True) == 0
    assert checkpoint.same(outcome(folder), expected)


def test_a_checkpoint_of_another_recipe_is_refused(whole, run, tmp_path):
    domain, config, _ = whole
    if domain != "control":
        pytest.skip("one domain is enough")
    folder = tmp_path / "run"
    assert run(folder, config, "rollout", 5) == -signal.SIGKILL
    held = json.loads((folder / "config.json").read_text())
    held["reward"] = [{"part": "outcome", "scale": 1.0}]
    (folder / "config.json").write_text(json.dumps(held))
    words = [sys.executable, "-m", "partita", "train", "--resume", str(folder), "--quiet"]
    refused = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "made by another recipe" in refused.stderr
    assert (folder / "checkpoints" / "step_00000004").is_dir()


def test_two_processes_in_one_folder(tmp_path):
    from partita.lab.run import FolderRun

    first = FolderRun(tmp_path / "run", 0, None)
    first.open({"a": 1})
    second = FolderRun(tmp_path / "run", 0, None)
    with pytest.raises(UserError, match="another process is running in it"):
        second.open(None)
    first.close()
    with pytest.raises(UserError, match="holds a run; continue it with --resume"):
        second.open({"a": 1})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(tmp_path):
    from partita.lab.run import FolderRun

    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        FolderRun(tmp_path / "closed" / "run", 0, None).open({})


def test_a_full_disk_names_the_folder_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    from partita.lab.run import FolderRun

    class Holds:
        def state_dict(self):
            return {"x": torch.ones(3)}

        def load_state_dict(self, state): ...

    folder = FolderRun(tmp_path / "run", 0, save_every=1)
    folder.open({})
    steps = folder.steps(3, {"x": Holds()})
    next(steps)
    next(steps)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left on device; free some space and --resume"):
        next(steps)
    assert [p.name for p in folder.checkpoints()] == ["step_00000001"]
    assert not list((tmp_path / "run" / "checkpoints").glob(".step*"))


def test_nested_state_round_trip_and_bit_equality(tmp_path):
    state = {"a": [torch.arange(3), {"b": 1.5, "c": None}], "d": {"e": torch.ones(2, 2).T, "f": "x"}, "g": []}
    checkpoint.save(tmp_path / "c", state)
    loaded = checkpoint.load(tmp_path / "c")
    assert checkpoint.same(loaded, state)
    loaded["a"][0][1] = 7
    assert not checkpoint.same(loaded, state)
    with pytest.raises(TypeError, match="cannot save a set"):
        checkpoint.save(tmp_path / "d", {"x": {1, 2}})
    assert not (tmp_path / "d").exists()
