"""Any Gymnasium environment as a control task, vectorised through Gymnasium's own vector API."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch import Tensor

from partita.core.errors import NonFinite, UserError
from partita.core.spaces import Space
from partita.tasks.control._checks import refuse
from partita.tasks.control.base import Control, Envs, Transition
from partita.tasks.control.gym_guard import DEFAULT_LIMIT, make, make_guarded
from partita.tasks.control.gym_spaces import actions, observations

Setting = bool | int | float | str


@dataclass(frozen=True)
class _About:
    observation_shape: tuple[int, ...]
    action_space: Space
    horizon: int


@dataclass(frozen=True)
class Gym(Control):
    """Any environment that Gymnasium can make, by its id; `module:Id` imports a module that registers it.

    kwargs: passed to the environment. vectorisation: "sync" steps the copies one after another in this process,
    "async" gives each copy a process of its own (worth it when a step takes more than about 0.1 ms).
    max_steps: time limit; None takes the environment's own, or 27,000 steps where it declares none.

    Observations: uint8 images become (C, H, W), everything else is flattened to float32 (D,). Real-valued
    actions are clipped to their bounds. Problems are seeds: equal seeds start equal episodes.
    """

    id: str = "CartPole-v1"
    kwargs: dict[str, Setting] = field(default_factory=dict)
    vectorisation: Literal["sync", "async"] = "sync"
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.vectorisation not in ("sync", "async"):
            raise refuse(self, "vectorisation", self.vectorisation, "choose sync or async")
        if self.max_steps is not None and self.max_steps < 1:
            raise refuse(self, "max_steps", self.max_steps, "give a number above 0, or None")

    @functools.cached_property
    def _about(self) -> _About:
        """What one copy of the environment says of itself."""
        env = make(self.id, self.kwargs, self.max_steps)
        try:
            name = f"gym:{self.id}"
            shape = observations(env.observation_space, name).shape
            space = actions(env.action_space, name).ours
            limit = env.spec.max_episode_steps if env.spec is not None else None
            return _About(shape, space, limit or DEFAULT_LIMIT)
        finally:
            env.close()

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self._about.observation_shape

    @property
    def action_space(self) -> Space:
        return self._about.action_space

    @property
    def horizon(self) -> int:
        return self._about.horizon

    def problems(self, n: int, generator: torch.Generator) -> list[int]:
        """n seeds."""
        return _seeds(n, generator)

    def envs(
        self, problems: Sequence[int], generator: torch.Generator, auto_reset: bool = True, device: str = "cpu"
    ) -> Envs:
        """A copy a seed; the seeds of the second episodes are drawn from `generator`. UserError for a bad one."""
        _ = self._about  # fails here, with its own message, rather than in a worker
        return GymEnvs(self, problems, generator, auto_reset, device)


def _seeds(n: int, generator: torch.Generator) -> list[int]:
    return torch.randint(2**31 - 1, (n,), generator=generator, device=generator.device).tolist()


class GymEnvs(Envs):
    """n copies of a Gymnasium environment with the semantics of `NativeEnvs`.

    A simulator cannot be saved in general. So `state_dict` starts all copies anew, from seeds that follow from a
    stream number and a count of such restarts (not from the generator), and `load_state_dict` starts them from the
    same seeds: the run that saved and the run that resumes go on alike. `restarts` says so to the loop.
    """

    restarts: ClassVar[bool] = True

    def __init__(
        self, task: Gym, seeds: Sequence[int], generator: torch.Generator, auto_reset: bool, device: str
    ) -> None:
        self.n, self.device, self.name = len(seeds), device, f"gym:{task.id}"
        self.stream, self.count = _seeds(1, generator)[0], 0
        self.auto_reset = auto_reset
        makers = [
            functools.partial(make_guarded, task.id, task.kwargs, task.max_steps, i, not auto_reset)
            for i in range(self.n)
        ]
        self.dtype = torch.uint8 if len(task.observation_shape) == 3 else torch.float32
        vector = AsyncVectorEnv if task.vectorisation == "async" else SyncVectorEnv
        self.vector = vector(makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
        self.discrete = np.issubdtype(self.vector.action_space.dtype, np.integer)
        self._start([int(s) for s in seeds], _seeds(self.n, generator))

    def _start(self, seeds: list[int], later: list[int]) -> None:
        given: list[int | None] = [*seeds]
        obs, info = self._ask(lambda: self.vector.reset(seed=given, options={"later": later}))
        self._complain(info)
        self.obs = self._tensor(obs)

    def _ask(self, call: Any) -> Any:
        try:
            return call()
        except (EOFError, BrokenPipeError, ConnectionError) as error:
            raise UserError(
                f"{self.name}: the process of an environment died ({type(error).__name__}); "
                "look for lack of memory, or try --task.vectorisation sync to see its error"
            ) from error

    def _complain(self, info: dict[str, Any]) -> None:
        for fault in info.get("fault", ()):
            if fault is not None:
                raise UserError(fault)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=self.dtype, device=self.device)

    def step(self, action: Tensor) -> Transition:
        """Move all copies; UserError names the copy, episode and step that failed."""
        kind = torch.int64 if self.discrete else torch.float32
        given = action.detach().to("cpu", kind).numpy()
        if not np.isfinite(given).all():
            bad = int(np.argwhere(~np.isfinite(given))[0][0])
            raise NonFinite(
                f"{self.name}: environment {bad}: the policy's action is {given[bad].tolist()}; lower the lr"
            )
        obs, reward, terminated, truncated, info = self._ask(lambda: self.vector.step(given))
        self._complain(info)
        self.obs = self._tensor(obs)
        final_obs = None
        if "final_obs" in info:
            final = np.array(obs)
            for i in np.flatnonzero(info["_final_obs"]):
                final[i] = info["final_obs"][i]
            final_obs = self._tensor(final)
        return Transition(
            self.obs,
            torch.tensor(reward, dtype=torch.float32, device=self.device),
            torch.tensor(terminated, device=self.device),
            torch.tensor(truncated, device=self.device),
            final_obs,
        )

    def render(self) -> list[np.ndarray]:
        """A frame (H, W, 3) uint8 of each copy; needs kwargs render_mode="rgb_array"."""
        frames = self._ask(self.vector.render)
        if frames is None or any(frame is None for frame in frames):
            raise UserError(f"{self.name}: gives no frames; make it with kwargs render_mode=rgb_array")
        return [np.asarray(frame) for frame in frames]

    def state_dict(self) -> dict[str, Any]:
        """{"seed": stream, "restarts": count}; all copies start new episodes now."""
        self.count += 1
        self._restart()
        return {"seed": self.stream, "restarts": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start all copies where the run that saved `state` started them."""
        self.stream, self.count = int(state["seed"]), int(state["restarts"])
        self._restart()

    def _restart(self) -> None:
        drawn = np.random.SeedSequence((self.stream, self.count)).generate_state(2 * self.n, np.uint32) >> 1
        self._start(drawn[: self.n].tolist(), drawn[self.n :].tolist())

    def close(self) -> None:
        self.vector.close()
