"""Control tasks: environments in batches, native (pure tensor functions) or from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from partita.core.errors import UserError
from partita.core.part import Domain
from partita.core.spaces import Space
from partita.core.task import Task


@dataclass(frozen=True)
class Transition:
    """What one step of n environments gave. All (n, ...).

    obs: observation to act on next (of the new episode where one ended and auto-reset is on).
    reward: float32 (n,). terminated, truncated: bool (n,).
    final_obs: the true next observation, before any reset; None when no episode ended at this step.
    """

    obs: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_obs: Tensor | None


class Ahead(NamedTuple):
    """Where one step of n native environments leads: state, obs (n, ...), steps so far, reward, and what it ended."""

    state: Tensor
    elapsed: Tensor
    obs: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


class Envs:
    """n live environments. `obs` (n, ...) is what to act on; `step` moves all of them.

    With `auto_reset`, finished ones start a new episode at once; without it they stay finished (their
    reward is 0, `terminated` and `truncated` stay as they ended) until all are.

    restarts: whether `state_dict` and `load_state_dict` start new episodes at once, because the simulator's
    inner state cannot be saved. The loop then marks the cut as a truncation.
    """

    restarts: ClassVar[bool] = False
    n: int
    obs: Tensor

    def step(self, action: Tensor) -> Transition:
        """Move all environments by one step; `action` is (n,) or (n, ...) as the action space says."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on from here."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the environments hold."""


class Control(Task):
    """Base of control tasks."""

    domain: ClassVar[Domain] = "control"
    domains: ClassVar[tuple[Domain, ...]] = ("control",)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation; (C, H, W) uint8 for pixels, (D,) float32 otherwise."""
        raise NotImplementedError

    @property
    def action_space(self) -> Space:
        """What an action is: `Discrete`, `MultiDiscrete` or `Box`."""
        raise NotImplementedError

    @property
    def horizon(self) -> int:
        """Steps after which an episode is truncated."""
        raise NotImplementedError

    def problems(self, n: int, generator: torch.Generator) -> Any:
        """n starting points: initial states (native) or seeds (others); indexable, repeatable."""
        raise NotImplementedError

    def envs(self, problems: Any, generator: torch.Generator, auto_reset: bool = True, device: str = "cpu") -> Envs:
        """Environments that start from `problems`; later episodes draw from `generator`."""
        raise NotImplementedError


class Native(Control):
    """An environment written as pure tensor functions over a batch, on any device.

    A subclass is a frozen dataclass of its physical constants that implements `reset`, `step` and, when
    the observation is not the state, `observe`. No Python per environment; nothing in place.
    """

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """n initial states, (n, ...)."""
        raise NotImplementedError

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Next state (n, ...), reward (n,) float32, terminated (n,) bool."""
        raise NotImplementedError

    def observe(self, state: Tensor) -> Tensor:
        """Observation of each state, (n, ...)."""
        return state

    def problems(self, n: int, generator: torch.Generator) -> Tensor:
        return self.reset(n, generator)

    def envs(self, problems: Tensor, generator: torch.Generator, auto_reset: bool = True, device: str = "cpu") -> Envs:
        return NativeEnvs(self, problems.to(device), generator, auto_reset)


class NativeEnvs(Envs):
    """n copies of a native environment, auto-reset, with truncation told apart from termination."""

    def __init__(self, env: Native, state: Tensor, generator: torch.Generator, auto_reset: bool) -> None:
        self.env, self.state, self.generator, self.auto_reset = env, state, generator, auto_reset
        self.n = state.shape[0]
        self.elapsed = torch.zeros(self.n, dtype=torch.int64, device=state.device)
        self.obs = env.observe(state)
        self.over = torch.zeros(self.n, dtype=torch.bool, device=state.device)  # only without auto-reset
        self.cut = torch.zeros_like(self.over)
        self.checked = False
        _fits(env, "observe: observation", self.obs, (self.n, *env.observation_shape))

    def step(self, action: Tensor) -> Transition:
        return self.arrive(self.ahead(self.state, self.elapsed, action))

    def ahead(self, state: Tensor, elapsed: Tensor, action: Tensor) -> Ahead:
        """What one step leads to, before any episode starts anew; changes nothing but the generator."""
        env = self.env
        try:
            state, reward, terminated = env.step(state, action, self.generator)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"task {env.part_name()}: step raised {type(error).__name__}: {error}; repair the environment"
            ) from error
        if not self.checked:
            _fits(env, "step: state", state, tuple(self.state.shape), self.state.dtype)
            _fits(env, "step: reward", reward, (self.n,), torch.float32)
            _fits(env, "step: terminated", terminated, (self.n,), torch.bool)
            self.checked = True
        elapsed = elapsed + 1
        return Ahead(state, elapsed, env.observe(state), reward, terminated, elapsed >= env.horizon)

    def arrive(self, ahead: Ahead) -> Transition:
        """Be there, and start anew what has ended."""
        if not self.auto_reset:
            return self._finish(ahead)
        final_obs = None
        if bool((ahead.terminated | ahead.truncated).any()):
            final_obs, ahead = ahead.obs, self.renewed(ahead)
        self.state, self.elapsed, self.obs = ahead.state, ahead.elapsed, ahead.obs
        return Transition(ahead.obs, ahead.reward, ahead.terminated, ahead.truncated, final_obs)

    def renewed(self, ahead: Ahead) -> Ahead:
        """The same with new episodes in the place of those that ended; what terminated was not truncated."""
        env, (state, elapsed, _, reward, terminated, truncated) = self.env, ahead
        done = terminated | truncated
        fresh = env.reset(self.n, self.generator, str(state.device))
        state = torch.where(done.view(-1, *[1] * (state.dim() - 1)), fresh, state)
        elapsed = torch.where(done, 0, elapsed)
        return Ahead(state, elapsed, env.observe(state), reward, terminated, truncated & ~terminated)

    def _finish(self, ahead: Ahead) -> Transition:
        state, elapsed, _, reward, terminated, truncated = ahead
        was = self.over | self.cut
        keep = was.view(-1, *[1] * (state.dim() - 1))
        state = torch.where(keep, self.state, state)
        reward = torch.where(was, torch.zeros_like(reward), reward)
        self.over = torch.where(was, self.over, terminated)
        self.cut = torch.where(was, self.cut, truncated & ~terminated)
        self.state, self.elapsed, self.obs = state, torch.where(was, self.elapsed, elapsed), self.env.observe(state)
        ended = bool((self.over | self.cut).any())
        return Transition(self.obs, reward, self.over, self.cut, self.obs if ended else None)

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state, "elapsed": self.elapsed, "over": self.over, "cut": self.cut}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("state", "elapsed", "over", "cut"):
            setattr(self, name, state[name].to(self.obs.device))
        self.obs = self.env.observe(self.state)


def _fits(env: Native, name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    """Raise UserError unless what an environment gave has the shape and dtype that it promised (first step only)."""
    if tuple(value.shape) != shape or (dtype is not None and value.dtype != dtype):
        got, wanted = (tuple(value.shape), value.dtype), (shape, dtype or value.dtype)
        raise UserError(f"task {env.part_name()}: {name}: expected {wanted}, got {got}; repair the environment")
