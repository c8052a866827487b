"""Gymnasium environments of every kind of space, trained end to end: images, several choices, real actions."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from partita.core.registry import recipe
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.parts.regularisers import Entropy, ValueLoss
from partita.parts.reward import ScaledByReturn
from partita.parts.rollout import Segments
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.gym import Gym

LENGTH = 4


class Side(gymnasium.Env):
    """Which half is bright? One reward a step for the right answer, in the form that `kind` asks for."""

    def __init__(self, kind: str = "pixels") -> None:
        self.kind = kind
        shape = (12, 12, 1)
        self.observation_space = (
            spaces.Box(0, 255, shape, np.uint8) if kind == "pixels" else spaces.Box(-100.0, 100.0, (2,), np.float32)
        )
        self.action_space = {
            "pixels": spaces.Discrete(2),
            "choices": spaces.MultiDiscrete([2, 3]),
            "box": spaces.Box(-1.0, 1.0, (1,), np.float32),
        }[kind]

    def _see(self):
        self.right = int(self.np_random.integers(2))
        if self.kind != "pixels":
            return np.array([50.0 + 20 * self.right, -30.0], np.float32)  # far from standardised on purpose
        image = np.zeros((12, 12, 1), np.uint8)
        image[:, 6 * self.right : 6 * self.right + 6] = 255
        return image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._see(), {}

    def step(self, action):
        if self.kind == "pixels":
            reward = float(action == self.right)
        elif self.kind == "choices":
            reward = 0.5 * float(action[0] == self.right) + 0.5 * float(action[1] == 2)
        else:
            reward = 1.0 - abs(float(action[0]) - (0.5 if self.right else -0.5))
        self.steps += 1
        return self._see(), reward, self.steps == LENGTH, False, {}


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("PartitaSide-v0", Side)
    yield
    gymnasium.registry.pop("PartitaSide-v0")


@pytest.mark.parametrize(("kind", "steps"), [("pixels", 25), ("choices", 25), ("box", 40)])
def test_ppo_learns_what_to_do(kind, steps):
    task = Gym(id="PartitaSide-v0", kwargs={"kind": kind})
    run = Run(0)
    chosen = recipe("ppo").but(
        steps=steps, batch_size=8, rollout=Segments(16), minibatches=2, lr=3e-3, reward=(ScaledByReturn(),),
        regularisers=(ValueLoss(), Entropy(weight=0.0)),
    )  # fmt: skip
    settings = ActorCritic(hidden=(32,), normalise=kind != "pixels", log_std=-1.0)
    policy = settings.build(task, True, run.generators["init"])
    train(chosen, policy, task, run)
    assert run.metrics[0]["return"] < 0.75 * LENGTH
    assert run.metrics[-1]["return"] > 0.8 * LENGTH
    if kind != "pixels":
        assert torch.allclose(policy.module.normaliser.mean, torch.tensor([60.0, -30.0]), atol=3.0)
