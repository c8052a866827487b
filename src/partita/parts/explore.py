"""The slot `explore`: how does the policy act while data are gathered?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.limits import check_count, check_least, check_share
from partita.core.part import Domain, Part
from partita.core.spaces import Box, Discrete, Space
from partita.policies.agent import Agent


class Explore(Part):
    """Chooses actions for observations of the environments."""

    slot: ClassVar[str] = "explore"
    loop: ClassVar[str] = "replay"
    domains: ClassVar[tuple[Domain, ...]] = ("control",)

    def __call__(self, agent: Agent, obs: Tensor, lived: int, generator: torch.Generator) -> Tensor:
        """Actions (n,) or (n, A), scaled to [-1, 1], for observations (n, D), after `lived` steps of environments."""
        raise NotImplementedError

    def metrics(self, lived: int) -> dict[str, float]:
        """What to watch of it."""
        return {}


def anything(space: Space, count: int, generator: torch.Generator) -> Tensor:
    """Uniform actions, (count,) or (count, A) within [-1, 1]."""
    if isinstance(space, Discrete):
        return torch.randint(space.n, (count,), generator=generator, device=generator.device)
    assert isinstance(space, Box)
    return torch.rand((count, space.size), generator=generator, device=generator.device) * 2 - 1


@dataclass(frozen=True)
class Drawn(Explore):
    """The policy's own draws.

        a ~ pi(s)

    at whatever randomness the actor learns to have.
    """

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if recipe.actor.heads == ("greedy",):
            return "explore drawn needs a policy that draws, and greedy_actor does not; use --explore epsilon_greedy"
        return None

    def __call__(self, agent: Agent, obs: Tensor, lived: int, generator: torch.Generator) -> Tensor:
        assert agent.policy.shape is not None
        noise = agent.policy.noise((len(obs),), generator)
        assert noise is not None
        return agent.policy.shape.draw(agent.policy.head(obs), noise)[0]


@dataclass(frozen=True)
class Noisy(Explore):
    """The likeliest action with Gaussian noise, clipped.

        a = clip(pi(s) + std * z, -1, 1)

    std is in units of actions scaled to [-1, 1] (Fujimoto et al., 2018).
    """

    std: float = 0.1

    def __post_init__(self) -> None:
        check_least("explore.std", self.std)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not isinstance(task.action_space, Box):
            return f"explore noisy needs real-valued actions, and task {task.part_name()} has none; use epsilon_greedy"
        return None

    def __call__(self, agent: Agent, obs: Tensor, lived: int, generator: torch.Generator) -> Tensor:
        action = agent.mode(obs)
        z = torch.randn(action.shape, generator=generator, device=generator.device).to(action.device)
        return (action + self.std * z).clamp(-1, 1)


@dataclass(frozen=True)
class EpsilonGreedy(Explore):
    """A uniform action now and then, less and less.

        a = uniform with chance eps, else the likeliest

    eps falls from `first` to `last` linearly over `steps` steps of environments (Mnih et al., 2015).
    """

    first: float = 1.0
    last: float = 0.05
    steps: int = 10_000

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            check_share(f"explore.{name}", getattr(self, name))
        check_count("explore.steps", self.steps)

    def chance(self, lived: int) -> float:
        """eps after so many steps of environments."""
        return self.first + (self.last - self.first) * min(1.0, lived / self.steps)

    def __call__(self, agent: Agent, obs: Tensor, lived: int, generator: torch.Generator) -> Tensor:
        best = agent.mode(obs)
        other = anything(agent.policy.space, len(obs), generator).to(best.device)
        swap = torch.rand(len(obs), generator=generator, device=generator.device).to(best.device) < self.chance(lived)
        return torch.where(swap if best.dim() == 1 else swap[:, None], other, best)

    def metrics(self, lived: int) -> dict[str, float]:
        return {"epsilon": self.chance(lived)}
