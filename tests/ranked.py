"""Short runs by several processes on this machine, and what is left of them: weights before and after, and metrics."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from partita.lab.config import Config
from partita.lab.run import CLOCK
from partita.lab.train import build_policy
from partita.loops.run import Run
from partita.policies.spread import spread


class Left(NamedTuple):
    """before, after: every weight in one vector. metrics: of every step."""

    before: np.ndarray
    after: np.ndarray
    metrics: list[dict[str, float]]


def run(config: Config) -> Left:
    """Train in this process, as one of the ranks if there are any."""
    policy = spread(build_policy(config))
    task = config.task.met(policy)
    recipe = config.recipe.settle(task, policy)
    recipe.check(task, policy)

    def weights() -> np.ndarray:
        return torch.cat([x.detach().double().flatten() for x in policy.state_dict().values()]).numpy()

    before, left = weights(), Run(config.settings.seed)
    importlib.import_module(f"partita.loops.{recipe.loop}").train(recipe, policy, task, left)
    return Left(before, weights(), [{k: v for k, v in row.items() if k not in CLOCK} for row in left.metrics])


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
            out[name] = Left(held["before"], held["after"], json.loads((folder / f"{name}.metrics.json").read_text()))
    return out


def main(folder: Path, world: int, rank: int, names: list[str]) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    for name in names:
        left = run(Config.read(folder / f"{name}.json"))
        if rank == 0:
            np.savez(folder / f"{name}.npz", before=left.before, after=left.after)
            (folder / f"{name}.metrics.json").write_text(json.dumps(left.metrics))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
