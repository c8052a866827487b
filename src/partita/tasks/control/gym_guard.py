"""One Gymnasium environment, made from its id and guarded: what it gives is checked, what it raises is told.

A fault does not raise in here. It travels in the step's `info` as one line of text, so that it reads the same
whether the environment runs in this process or in another; `GymEnvs` turns it into a UserError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from partita.core.errors import UserError, nearest
from partita.tasks.control.gym_spaces import Misfit, actions, observations

DEFAULT_LIMIT = 27_000  # steps, where an environment declares no limit: the custom of Atari (108,000 frames)


def make(id: str, kwargs: Mapping[str, Any], max_steps: int | None) -> gymnasium.Env:
    """The environment of that id with its time limit; UserError that says what to do when it cannot be made."""
    name = f"gym:{id}"
    try:
        env = gymnasium.make(id, max_episode_steps=max_steps, disable_env_checker=True, **kwargs)
    except gymnasium.error.UnregisteredEnv as error:
        raise UserError(f"{name}: no such environment; {_suggest(id)}") from error
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise UserError(f"{name}: needs a package that is not installed ({_line(error)}); {_extra(id)}") from error
    except gymnasium.error.DeprecatedEnv as error:
        raise UserError(f"{name}: no longer supported; {_line(error)}") from error
    except Exception as error:
        raise UserError(
            f"{name}: could not be made with {dict(kwargs)} ({type(error).__name__}: {_line(error)}); "
            "check the id and the keyword arguments"
        ) from error
    if env.spec is None or env.spec.max_episode_steps is None:
        env = gymnasium.wrappers.TimeLimit(env, DEFAULT_LIMIT)
    return env


def _line(error: BaseException) -> str:
    """The message on one line, with that of its cause (a package that is installed but does not import)."""
    text = " ".join(str(error).split())[:300]
    return text if error.__cause__ is None else f"{text}, because {_line(error.__cause__)}"


def _suggest(id: str) -> str:
    if ":" in id or "/" in id:
        package = id.split(":")[0].split("/")[0]
        known = [n for n in gymnasium.registry if n.startswith(package)]
        if not known:
            return f"install the package that registers `{package}`, or give module:Id so that it is imported"
    return nearest(id, gymnasium.registry)


def _extra(id: str) -> str:
    spec = gymnasium.registry.get(id.split(":")[-1])
    entry = str(spec.entry_point) if spec is not None else ""
    newest = f"{id.rpartition('-v')[0]}-v5"
    if "mujoco" in entry and id != newest and newest in gymnasium.registry:
        return f"use {newest}"
    if "mujoco" in entry:
        return 'install it with pip install "partita[mujoco]"'
    for group, extra in (("box2d", "box2d"), ("toy_text", "toy-text"), ("classic_control", "classic-control")):
        if group in entry:
            return f'install it with pip install "gymnasium[{extra}]"'
    return "install it, and check that its module imports"


class Guard(gymnasium.Wrapper):
    """An environment with encoded observations and decoded actions, checked at every step.

    once: after its first episode the environment stays as it ended (reward 0, same flags, same observation).
    `reset(options={"later": seeds})` gives, for each environment, the seed of its second episode; those after it
    go on with the environment's own random numbers.
    """

    def __init__(self, env: gymnasium.Env, name: str, index: int, once: bool) -> None:
        super().__init__(env)
        self.name, self.index, self.once = name, index, once
        self.codec = observations(env.observation_space, name)
        self.acts = actions(env.action_space, name)
        self.observation_space = self.codec.space
        self.action_space = self.acts.space
        self.episode = self.elapsed = 0
        self.later: int | None = None
        self.ended: tuple[bool, bool] | None = None
        self.last = self._blank()

    def _blank(self) -> np.ndarray:
        return np.zeros(self.codec.shape, self.observation_space.dtype)

    def _fault(self, what: str, fix: str) -> dict[str, Any]:
        place = f"environment {self.index}, episode {self.episode}, step {self.elapsed}"
        return {"fault": f"{self.name}: {place}: {what}; {fix}"}

    def _raised(self, doing: str, error: Exception) -> dict[str, Any]:
        return self._fault(f"{doing} raised {type(error).__name__}: {_line(error)}", "repair the environment")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """A new episode; with `once`, only a seed starts one."""
        if seed is not None:
            self.later = None if options is None else int(options["later"][self.index])
            self.episode = 0
        elif self.once and self.ended is not None:
            return self.last, {}
        else:
            seed, self.later = self.later, None
        self.ended, self.elapsed, self.episode = None, 0, self.episode + 1
        try:
            obs, _ = self.env.reset(seed=seed)
        except Exception as error:
            return self._blank(), self._raised("reset", error)
        try:
            self.last = self.codec.encode(obs)
        except Misfit as misfit:
            return self._blank(), self._misfit(misfit)
        return self.last, {}

    def _misfit(self, misfit: Misfit) -> dict[str, Any]:
        return self._fault(f"observation {misfit}", "repair the environment or its observation_space")

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step, or the same end again."""
        if self.ended is not None and self.once:
            return self.last, 0.0, *self.ended, {}
        self.elapsed += 1
        try:
            obs, reward, terminated, truncated, _ = self.env.step(self.acts.decode(action))
        except Exception as error:
            return self._blank(), 0.0, False, False, self._raised("step", error)
        try:
            self.last = self.codec.encode(obs)
        except Misfit as misfit:
            return self._blank(), 0.0, False, False, self._misfit(misfit)
        paid = _number(reward)
        if paid is None or not math.isfinite(paid):
            fault = self._fault(f"reward is {reward!r}", "repair the environment to return a finite number")
            return self._blank(), 0.0, False, False, fault
        terminated = bool(terminated)
        truncated = bool(truncated) and not terminated
        if terminated or truncated:
            self.ended = terminated, truncated
        return self.last, paid, terminated, truncated, {}


def _number(reward: Any) -> float | None:
    try:
        array = np.asarray(reward, dtype=np.float32)
    except (TypeError, ValueError):
        return None
    return float(array.reshape(())) if array.size == 1 else None


def make_guarded(id: str, kwargs: Mapping[str, Any], max_steps: int | None, index: int, once: bool) -> Guard:
    """`make`, guarded."""
    return Guard(make(id, kwargs, max_steps), f"gym:{id}", index, once)
