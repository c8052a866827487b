"""Any environment that speaks Gymnasium's text interface, as a world."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from partita.core.errors import UserError, nearest
from partita.core.task import Problem
from partita.tasks.worlds.base import MALFORMED, MARKER, Episode, Reply
from partita.tasks.worlds.outside import Outside, scripted

SUCCESS = ("success", "is_success")  # entries of `info` that say whether the task is solved


@dataclass(frozen=True)
class TextEnvironment(Outside):
    """A registered Gymnasium environment whose observations and actions are `gymnasium.spaces.Text`.

    id, kwargs: what `gymnasium.make` takes; "my_module:MyEnv-v0" imports the module that registers it first.
    max_turns: the turns that a policy is given; the environment's own time limit ends an episode as well. It runs in
    processes of its own (`partita.tasks.worlds.outside`).

    A problem is a seed. The prompt is the text that `reset(seed=...)` returns, and every observation ends in `>`.
    An action is stepped without its newline; one outside the action space is answered by `?` and not stepped.
    The score is `info["success"]` or `info["is_success"]` where the environment gives it, else the sum of rewards.
    The state is `info["state"]` where the environment gives a text there, else the latest observation.
    An environment may offer `expert(self) -> str` (the next action) for `demonstrate`.

    Raises UserError, naming the environment, turn and action, on an unknown id, spaces that are not text, an exception
    inside, an observation that is not text, a reward that is not a finite number, and on a
    reset that is not the same each time for one seed.
    """

    id: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    max_tokens: ClassVar[int] = 32
    flaws: ClassVar[tuple[str, ...]] = ("random",)
    abstract: ClassVar[bool] = False

    def _problem(self, seed: int) -> Problem:
        """The text that the environment starts a seed with."""
        env = make(self.id, self.kwargs)
        try:
            return Problem(_marked(_reset(env, self.id, seed)[0]), {"seed": seed}, self.id)
        finally:
            env.close()

    def open(self, problem: Problem) -> Simulation:
        """A new copy of the environment, reset to the problem's seed."""
        env = make(self.id, self.kwargs)
        text, info = _reset(env, self.id, problem.data["seed"])
        if _marked(text) != problem.prompt:
            env.close()
            raise UserError(
                f"id: {self.id} starts differently each time with seed {problem.data['seed']}; "
                "pass the seed of `reset` to everything random inside it"
            )
        return Simulation(env, self.id, text, info)

    def _script(self, problem: Problem, dice: random.Random, flaw: str | None) -> list[str]:
        """The environment's own expert (flaw None), or random: samples of its action space."""
        episode = self.open(problem)
        env = episode.env
        if flaw is None:
            expert = getattr(env.unwrapped, "expert", None)
            if not callable(expert):
                raise UserError(f"id: {self.id} has no method `expert(self) -> str` to demonstrate with; add one")
            return scripted(self, episode, lambda: f"{expert()}\n")
        env.action_space.seed(dice.randrange(2**31))
        return scripted(self, episode, lambda: f"{env.action_space.sample()}\n")


class Simulation(Episode):
    """An episode of a `TextEnvironment`."""

    def __init__(self, env: Any, name: str, text: str, info: Mapping[str, Any]) -> None:
        self.env = env
        self.name = name
        self.turn = 0
        self.total = 0.0
        self.done = False
        self.score = 0.0
        self.state = _state(text, info)

    def act(self, action: str) -> Reply:
        """One step of the environment."""
        if self.done:
            return Reply("", 0.0, True, True, self.score, {"turns": float(self.turn)})
        self.turn += 1
        text = action.removesuffix("\n")
        if not self.env.action_space.contains(text):
            return self._reply(MALFORMED, 0.0, valid=False)
        where = f"at turn {self.turn}, action {text!r}"
        try:
            observation, reward, terminated, truncated, info = self.env.step(text)
        except Exception as error:
            raise UserError(
                f"id: {self.name} raised {type(error).__name__}: {_line(error)} {where}; mend its `step`"
            ) from error
        if not isinstance(observation, str):
            raise UserError(f"id: {self.name} returned {_shown(observation)} for a text {where}; mend its `step`")
        reward = _number(reward)
        if not math.isfinite(reward):
            raise UserError(f"id: {self.name} returned a reward that is no finite number {where}; mend its `step`")
        self.total += reward
        self.score = next((_number(info[k]) for k in SUCCESS if k in info), self.total)
        if not math.isfinite(self.score):
            raise UserError(f"id: {self.name} returned a success that is no finite number {where}; mend its `step`")
        self.state = _state(observation, info)
        self.done = bool(terminated or truncated)
        if self.done:
            self.close()
        return self._reply(observation, reward)

    def _reply(self, text: str, reward: float, valid: bool = True) -> Reply:
        seen = "" if self.done else _marked(text)
        return Reply(seen, reward, self.done, valid, self.score, {"turns": float(self.turn)})

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def make(name: str, kwargs: Mapping[str, Any]) -> Any:
    """The environment, checked to speak text; a UserError says what is wrong with `name` or `kwargs`."""
    import gymnasium

    if not name:
        raise UserError("id: the environment has no name; set it to one registered with Gymnasium, such as MyText-v0")
    try:
        env = gymnasium.make(name, disable_env_checker=True, **kwargs)
    except gymnasium.error.UnregisteredEnv as error:
        known = nearest(name, gymnasium.registry)
        raise UserError(f"id: no environment {name} is registered ({_line(error)}); {known}") from error
    except Exception as error:
        raise UserError(
            f"id: {name} could not be made with kwargs {dict(kwargs)}: {type(error).__name__}: {_line(error)}"
        ) from error
    for what, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, gymnasium.spaces.Text):
            env.close()
            raise UserError(
                f"id: the {what} of {name} are {type(space).__name__}, not Text; "
                "wrap the environment so that they are gymnasium.spaces.Text"
            )
    return env


def _reset(env: Any, name: str, seed: int) -> tuple[str, Mapping[str, Any]]:
    try:
        text, info = env.reset(seed=seed)
    except Exception as error:
        raise UserError(
            f"id: {name} raised {type(error).__name__}: {_line(error)} at reset, seed {seed}; mend its `reset`"
        ) from error
    if not isinstance(text, str):
        raise UserError(f"id: {name} returned {_shown(text)} for a text at reset, seed {seed}; mend its `reset`")
    return text, info


def _state(text: str, info: Mapping[str, Any]) -> str:
    state = info.get("state")
    return state if isinstance(state, str) else text


def _marked(text: str) -> str:
    return text if text.endswith(MARKER) else text + MARKER


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {repr(value)[:40]}"
