"""Small Gymnasium environments, registered as PartitaCounter-v0, -v1 and PartitaEcho-v0, and what drives them."""

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from partita.tasks.control.gym import Gym


class Counter(gymnasium.Env):
    """Observation (episode's random tag, step); ends at step `last`; the reward is the step."""

    observation_space = spaces.Box(-1e9, 1e9, (2,), np.float64)
    action_space = spaces.Discrete(3, start=5)

    def __init__(self, last=3, fault="", at=2):
        self.last, self.fault, self.at = last, fault, at
        self.episode = 0
        if fault == "make":
            raise RuntimeError("broken at birth")

    def _obs(self):
        return np.array([self.tag, self.time], np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.tag, self.time = self.np_random.integers(1_000_000), 0
        self.episode += 1
        if self.fault == "reset" and self.episode == 2:
            raise ValueError("no second life")
        return self._obs(), {"final_obs": "an info that must not confuse", "lives": self.episode}

    def step(self, action):
        assert action in (5, 6, 7)
        self.time += 1
        obs, reward = self._obs(), float(self.time)
        if self.time == self.at:
            if self.fault == "raise":
                raise RuntimeError("out of\nballs")
            bad = {"nan": np.array([1.0, np.nan]), "inf": np.array([np.inf, 0.0]), "huge": np.array([0.0, 1e300]),
                   "shape": np.zeros(3), "text": "hello"}  # fmt: skip
            obs = bad.get(self.fault, obs)
            reward = {"reward": float("nan"), "rewards": np.zeros(2), "none": None}.get(self.fault, reward)
        return obs, reward, self.time >= self.last, False, {}


class Echo(gymnasium.Env):
    """Any spaces; observes what `observe` gives and remembers the actions it got."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, action=None, observation=None, observe=None, render_mode=None):
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(2) if action is None else action
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32) if observation is None else observation
        self.observe, self.got = observe, []

    def _obs(self):
        return np.zeros(1, np.float32) if self.observe is None else self.observe(len(self.got))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action):
        self.got.append(action)
        return self._obs(), 0.5, False, False, {}

    def render(self):
        return np.full((4, 6, 3), len(self.got), np.uint8)


gymnasium.register("PartitaCounter-v0", entry_point=Counter)
gymnasium.register("PartitaCounter-v1", entry_point=Counter, max_episode_steps=4)
gymnasium.register("PartitaEcho-v0", entry_point=Echo)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def counters(n=3, auto_reset=True, seeds=None, generator=None, vectorisation="sync", id="PartitaCounter-v0", **kwargs):
    task = Gym(id=id, kwargs=kwargs, vectorisation=vectorisation)
    generator = generator or seeded()
    return task.envs(seeds or task.problems(n, generator), generator, auto_reset)


def go(envs):
    return envs.step(torch.zeros(envs.n, dtype=torch.int64))
