"""The probe ladder: environments so small that the best value and action are known, each testing one thing.

Climb in order: the first probe that a learner fails says what is broken in it.

    probe_constant      is a value learnt at all?
    probe_action        does the better action become likelier?
    probe_observation   does the policy read what it sees?
    probe_delayed       does reward reach the action that earned it, some steps earlier?
    probe_discounted    is the discount applied, and applied once?
    probe_truncated     is a cut told apart from an end (the value of the true last state counts)?
    probe_continuous    the same for real-valued actions
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from partita.core.spaces import Box, Discrete, Space
from partita.tasks.control._checks import check_between, check_finite, check_positive
from partita.tasks.control._draws import uniform
from partita.tasks.control.base import Native


class Probe(Native):
    """Base of the probes: what a perfect learner ends with."""

    discount: float = 1.0

    @property
    def optimal_value(self) -> float:
        """Value of the best policy in the first state, at the probe's own `discount`."""
        raise NotImplementedError

    def optimal_action(self, obs: Tensor) -> Tensor:
        """The best action for each observation, (n,) int64 or (n, 1) float."""
        raise NotImplementedError

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (1,)

    @property
    def action_space(self) -> Space:
        return Discrete(2)

    @property
    def horizon(self) -> int:
        return 1

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """Zeros, (n, 1)."""
        return torch.zeros(n, 1, device=device)


def _signs(n: int, generator: torch.Generator, device: str) -> Tensor:
    return uniform((n, 1), 0.0, 1.0, generator, device).ge(0.5).float() * 2.0 - 1.0


@dataclass(frozen=True)
class ProbeConstant(Probe):
    """One step, reward 1 whatever is done: V* = 1, every action is best."""

    @property
    def optimal_value(self) -> float:
        return 1.0

    def optimal_action(self, obs: Tensor) -> Tensor:
        return torch.zeros(obs.shape[0], dtype=torch.int64, device=obs.device)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Ends at once."""
        reward = state.new_ones(state.shape[0])
        return state, reward, reward > 0


@dataclass(frozen=True)
class ProbeAction(Probe):
    """One step, reward +1 for action 1 and -1 for action 0: V* = 1."""

    @property
    def optimal_value(self) -> float:
        return 1.0

    def optimal_action(self, obs: Tensor) -> Tensor:
        return torch.ones(obs.shape[0], dtype=torch.int64, device=obs.device)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Ends at once."""
        return state, action.to(state.dtype) * 2.0 - 1.0, torch.ones_like(action, dtype=torch.bool)


@dataclass(frozen=True)
class ProbeObservation(Probe):
    """One step, observation -1 or +1 by a fair coin; +1 for action 1 on +1 and 0 on -1, else -1: V* = 1."""

    @property
    def optimal_value(self) -> float:
        return 1.0

    def optimal_action(self, obs: Tensor) -> Tensor:
        return (obs[:, 0] > 0).long()

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """A sign each, (n, 1)."""
        return _signs(n, generator, device)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Ends at once."""
        reward = state[:, 0] * (action.to(state.dtype) * 2.0 - 1.0)
        return state, reward, torch.ones_like(action, dtype=torch.bool)


@dataclass(frozen=True)
class ProbeDelayed(Probe):
    """The first action decides, the reward of +1 (action 1) or -1 comes `delay` steps later.

    Observation (time / delay, the first choice as -1 or +1, 0 before it), or with `hidden` the time alone, so
    that only returns, not a critic, can carry the credit. Later actions do nothing. At `discount`:

        V*(s_0) = discount^delay
    """

    delay: int = 3
    hidden: bool = False
    discount: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "delay")
        check_between(self, "discount", 0.0, 1.0)

    @property
    def optimal_value(self) -> float:
        return self.discount**self.delay

    def optimal_action(self, obs: Tensor) -> Tensor:
        return torch.ones(obs.shape[0], dtype=torch.int64, device=obs.device)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (1,) if self.hidden else (2,)

    @property
    def horizon(self) -> int:
        return self.delay + 1

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """Steps taken and first choice, (n, 2), zeros."""
        return torch.zeros(n, 2, device=device)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Remembers the first action and pays for it on the last step."""
        time, choice = state.unbind(1)
        choice = torch.where(time == 0, action.to(state.dtype) * 2.0 - 1.0, choice)
        time = time + 1.0
        terminated = time > self.delay
        return torch.stack((time, choice), 1), choice * terminated, terminated

    def observe(self, state: Tensor) -> Tensor:
        time = state[:, :1] / self.delay
        return time if self.hidden else torch.cat((time, state[:, 1:]), 1)


@dataclass(frozen=True)
class ProbeDiscounted(Probe):
    """Action 1 takes `now` and ends; action 0 waits for a reward of 1 that comes `delay` steps later.

    Which is best depends on the learner's discount, which must be set to `discount`:

        V*(s_0) = max(now, discount^delay)

    Observation: steps waited / delay; while waiting actions do nothing.
    """

    now: float = 0.5
    delay: int = 2
    discount: float = 0.5

    def __post_init__(self) -> None:
        check_positive(self, "delay")
        check_between(self, "discount", 0.0, 1.0)
        check_finite(self, "now")

    @property
    def optimal_value(self) -> float:
        return max(self.now, self.discount**self.delay)

    def optimal_action(self, obs: Tensor) -> Tensor:
        take = self.now > self.discount**self.delay
        return torch.full((obs.shape[0],), int(take), dtype=torch.int64, device=obs.device)

    @property
    def horizon(self) -> int:
        return self.delay + 1

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Counts the steps waited."""
        time = state[:, 0]
        take = (time == 0) & (action == 1)
        time = time + 1.0
        last = time > self.delay
        reward = last.to(state.dtype) * ~take + take.to(state.dtype) * self.now
        return time.unsqueeze(1), reward, take | last

    def observe(self, state: Tensor) -> Tensor:
        return state / self.delay


@dataclass(frozen=True)
class ProbeTruncated(Probe):
    """Reward 1 a step for ever, cut every `max_steps`: a learner that bootstraps at the cut finds

        V* = 1 / (1 - discount)

    and one that takes the cut for an end finds less. Every action is best.
    """

    max_steps: int = 5
    discount: float = 0.9

    def __post_init__(self) -> None:
        check_positive(self, "max_steps")
        check_between(self, "discount", 0.0, 0.999)

    @property
    def optimal_value(self) -> float:
        return 1.0 / (1.0 - self.discount)

    def optimal_action(self, obs: Tensor) -> Tensor:
        return torch.zeros(obs.shape[0], dtype=torch.int64, device=obs.device)

    @property
    def horizon(self) -> int:
        return self.max_steps

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Never ends by itself."""
        reward = state.new_ones(state.shape[0])
        return state, reward, reward < 0


@dataclass(frozen=True)
class ProbeContinuous(Probe):
    """One step, observation x of [-1, 1), action a in [-1, 1]; r = 1 - (a - gain x)^2, so a* = gain x, V* = 1."""

    gain: float = 0.5

    def __post_init__(self) -> None:
        check_between(self, "gain", -1.0, 1.0)

    @property
    def optimal_value(self) -> float:
        return 1.0

    def optimal_action(self, obs: Tensor) -> Tensor:
        return obs * self.gain

    @property
    def action_space(self) -> Space:
        return Box(1, (-1.0,), (1.0,))

    def reset(self, n: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
        """Uniform in [-1, 1), (n, 1)."""
        return uniform((n, 1), -1.0, 1.0, generator, device)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Ends at once."""
        miss = action[:, 0].to(state.dtype).clamp(-1.0, 1.0) - self.gain * state[:, 0]
        return state, 1.0 - miss * miss, torch.ones_like(miss, dtype=torch.bool)
