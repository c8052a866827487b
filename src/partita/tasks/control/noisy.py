"""Any control task seen through Gaussian noise."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from partita.core.errors import UserError
from partita.core.spaces import Space
from partita.tasks.control._checks import refuse
from partita.tasks.control._draws import normal
from partita.tasks.control.base import Control, Envs, Transition
from partita.tasks.control.gym import Setting
from partita.tasks.offline import recording


@dataclass(frozen=True)
class Noisy(Control):
    """Another task whose observations carry noise, drawn once a step, in training and in evaluation alike.

        o~_t = o_t + sigma z_t,    z_t ~ N(0, I) anew at every step

    States, rewards and dynamics are untouched. What is stored as the next observation is what is acted on next. At
    sigma = 0 it is the other task to the bit.

    env: a native environment by name, or gym:ID; its observations must be vectors (D,). env_settings: its fields.
    """

    env: str = "cartpole"
    env_settings: dict[str, Setting] = field(default_factory=dict)
    sigma: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise refuse(self, "sigma", self.sigma, "give a number of at least 0")

    @functools.cached_property
    def environment(self) -> Control:
        """The task without noise; UserError for what is none, or shows pictures."""
        env = recording.environment(self.env, self.env_settings)
        if len(env.observation_shape) != 1:
            raise UserError(
                f"task.env: {self.env} gives pictures {env.observation_shape}; noise is added to observations (D,)"
            )
        return env

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self.environment.observation_shape

    @property
    def action_space(self) -> Space:
        return self.environment.action_space

    @property
    def horizon(self) -> int:
        return self.environment.horizon

    def problems(self, n: int, generator: torch.Generator) -> Any:
        return self.environment.problems(n, generator)

    def envs(self, problems: Any, generator: torch.Generator, auto_reset: bool = True, device: str = "cpu") -> Envs:
        inner = self.environment.envs(problems, generator, auto_reset, device)
        return inner if self.sigma == 0 else NoisyEnvs(self, inner, generator)


class NoisyEnvs(Envs):
    """Environments whose observations carry noise. Where one starts anew, its last and its first observation share
    a draw: only one of them is acted on."""

    def __init__(self, env: Noisy, inner: Envs, generator: torch.Generator) -> None:
        self.env, self.inner, self.generator = env, inner, generator
        self.n, self.restarts = inner.n, inner.restarts  # type: ignore[misc]  # as the task within
        self.noise = self._drawn()
        self.obs = inner.obs + self.noise

    def _drawn(self) -> Tensor:
        return normal((self.n, *self.env.observation_shape), self.env.sigma, self.generator, self.inner.obs.device)

    def step(self, action: Tensor) -> Transition:
        after = self.inner.step(action)
        self.noise = self._drawn()
        self.obs = after.obs + self.noise
        final = None if after.final_obs is None else after.final_obs + self.noise
        return Transition(self.obs, after.reward, after.terminated, after.truncated, final)

    def state_dict(self) -> dict[str, Any]:
        held = {"inner": self.inner.state_dict(), "noise": self.noise}
        self.obs = self.inner.obs + self.noise  # a simulator that cannot be saved has started anew
        return held

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.noise = state["noise"].to(self.inner.obs.device)
        self.obs = self.inner.obs + self.noise

    def close(self) -> None:
        self.inner.close()
