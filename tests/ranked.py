"""Short runs by several processes on this machine, and what is left of them: weights before and after, and metrics."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from partita.core.shards import own, whole
from partita.lab.config import Config
from partita.lab.run import CLOCK
from partita.lab.train import build_policy
from partita.loops.run import Run, Stateful
from partita.policies.spread import spread

KNIFE_EDGE = {"clip_fraction", "accuracy"}  # count what is on one side of a line on which it may lie


class Left(NamedTuple):
    """before, after: every weight in one vector. metrics: of every step.

    held: how many numbers this rank holds of each weight ("policy/NAME") and each moment ("learner/NAME/MOMENT").
    """

    before: np.ndarray
    after: np.ndarray
    metrics: list[dict[str, float]]
    held: dict[str, int]


class Watched(Run):
    """A run that shows what its loop would save."""

    def steps(self, count: int, state: Mapping[str, Stateful]) -> Iterator[int]:
        self.state = state
        yield from super().steps(count, state)

    def held(self) -> dict[str, int]:
        tensors: dict[str, Any] = {f"policy/{n}": x for n, x in self.state["policy"].state_dict().items()}
        if "learner" in self.state:
            for name, moments in self.state["learner"].state_dict().items():
                tensors |= {f"learner/{name}/{moment}": x for moment, x in moments.items()}
        return {name: own(x).numel() for name, x in tensors.items()}


def run(config: Config) -> Left:
    """Train in this process, as one of the ranks if there are any."""
    policy = spread(build_policy(config))
    task = config.task.met(policy)
    recipe = config.recipe.settle(task, policy)
    recipe.check(task, policy)

    def weights() -> np.ndarray:
        return torch.cat([whole(x).detach().double().flatten() for x in policy.state_dict().values()]).numpy()

    before, left = weights(), Watched(config.settings.seed)
    importlib.import_module(f"partita.loops.{recipe.loop}").train(recipe, policy, task, left)
    metrics = [{k: v for k, v in row.items() if k not in CLOCK} for row in left.metrics]
    return Left(before, weights(), metrics, left.held())


def ranked(configs: Mapping[str, Config], world: int, folder: Path, patience: float = 240.0) -> dict[str, Left]:
    """The same runs, each by `world` processes together; what the first of them is left with."""
    folder.mkdir(parents=True)
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config.to_json()))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, __file__, str(folder), str(world), *configs]
    ranks = [
        subprocess.Popen([*command[:4], str(r), *command[4:]], env=environment, stderr=subprocess.PIPE, text=True)
        for r in range(world)
    ]
    try:
        said = [rank.communicate(timeout=patience)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert not any(rank.returncode for rank in ranks), "\n".join(text[-2000:] for text in said)
    out = {}
    for name in configs:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as held:
            rest = [json.loads((folder / f"{name}.{part}.json").read_text()) for part in ("metrics", "held")]
            out[name] = Left(held["before"], held["after"], *rest)
    return out


def compare(found: Mapping[str, Left], configs: Mapping[str, Config]) -> dict[str, Left]:
    """Whether runs of several ranks have ended where this process does by itself; returns the runs of this process."""
    out = {}
    for name, left in found.items():
        alone = out[name] = run(configs[name])
        assert np.abs(alone.after - left.after).max() < 1e-5, name
        assert np.abs(alone.after - alone.before).max() > 1e-6, f"{name}: nothing was learnt, so nothing is compared"
        for one, several in zip(alone.metrics, left.metrics, strict=True):
            assert set(one) == set(several), name
            for key in set(one) - KNIFE_EDGE:
                np.testing.assert_allclose(several[key], one[key], rtol=1e-4, atol=1e-5, err_msg=f"{name}: {key}")
    return out


def reopen(folder: Path) -> None:
    """Let a run that has reached its `samples` go on, as if it had been stopped there."""
    config = json.loads((folder / "config.json").read_text())
    config["run"]["samples"] = None
    (folder / "config.json").write_text(json.dumps(config))
    about = max((folder / "checkpoints").glob("step_*")) / "state.json"
    about.write_text(about.read_text().replace('"reached": true', '"reached": false'))


def torchrun(count: int, *words: str) -> subprocess.CompletedProcess[str]:
    """`partita` as so many ranks.

    On a busy machine a rank has aborted twice, in C++, nobody knows where ("terminate called without an active
    exception"); it could not be repeated in fifty tries. A run that goes on from a checkpoint is then started once
    more, and the warning says where Python was.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "partita", *words]
    variables = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    for _ in range(2):
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240)
        if "--resume" not in words or "terminate called without an active exception" not in done.stderr:
            break
        warnings.warn(done.stderr[:4000], stacklevel=1)  # says where
    return done


def main(folder: Path, world: int, rank: int, names: list[str]) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    for name in names:
        left = run(Config.read(folder / f"{name}.json"))
        if rank == 0:
            np.savez(folder / f"{name}.npz", before=left.before, after=left.after)
            (folder / f"{name}.metrics.json").write_text(json.dumps(left.metrics))
            (folder / f"{name}.held.json").write_text(json.dumps(left.held))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
