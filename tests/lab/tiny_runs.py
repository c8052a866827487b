"""Runs of a second for the tests of what reads run folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from partita.core import registry
from partita.lab.config import Config, Settings
from partita.lab.train import Result, launch
from partita.parts.credit import LeaveOneOut
from partita.parts.rollout import Segments
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.classic import Cartpole

STEPS = 3


def ppo(**changes: Any) -> Config:
    """PPO on cart-pole, cut down."""
    recipe = registry.recipe("ppo").but(
        rollout=Segments(steps=32), steps=STEPS, batch_size=4, minibatches=2, epochs=1, **changes
    )
    settings = Settings(seed=1, eval_size=6, eval_every=1, save_every=1)
    return Config("ppo", recipe, Cartpole(max_steps=20), ActorCritic(hidden=(8,)), settings)


def grpo(**changes: Any) -> Config:
    """GRPO on the same."""
    recipe = registry.recipe("grpo").but(steps=STEPS, batch_size=2, group_size=2, **changes)
    return replace(ppo(), name="grpo", recipe=recipe)


def three(root: Path) -> list[Path]:
    """The folders of GRPO, GRPO with another credit, and PPO."""
    configs = {"grpo": grpo(), "grpo-loo": grpo(credit=LeaveOneOut()), "ppo": ppo()}
    for name, config in configs.items():
        launch(config, root / name)
    return [root / name for name in configs]


def run(config: Config, folder: Path, watchers: tuple[Any, ...] = ()) -> Result:
    """Train in `folder`."""
    return launch(config, folder, watchers=watchers)


def language(folder: Path, samples: dict[int, list[dict[str, Any]]], metrics: int = 3) -> Path:
    """The folder of a run on arithmetic, written by hand: what the model answered is what the test says."""
    folder.mkdir(parents=True)
    config = replace(grpo(), task=registry.part_class("task", "arithmetic")()).to_json()
    config["policy"] = {"part": "language", "model": "tiny"}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"step": i, "success": i / 10, "return": i / 10, "seconds": float(i)} for i in range(1, metrics + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = [
        {"step": step, "metric": "success", "mean": 0.125 + step, "low": 0.0, "high": 1.0, "count": 8, "length": 2.0,
         "samples": held}
        for step, held in samples.items()
    ]  # fmt: skip
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found))
    return folder
