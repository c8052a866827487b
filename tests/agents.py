"""Agents so small that tests can work out every number: linear networks in float64."""

from __future__ import annotations

import torch

from partita.core.spaces import Box, Discrete
from partita.core.transitions import Transitions
from partita.policies.agent import Agent
from partita.policies.feed_forward import FeedForward, FeedForwardPolicy

BOX = Box(2, (-1.0, -1.0), (1.0, 1.0))


def agent(discrete: bool = False, seed: int = 0, lag: float = 0.5, **settings) -> Agent:
    """An agent on 3 numbers; its lagging networks are the others scaled by `lag`."""
    g = torch.Generator().manual_seed(seed)
    kind = {"head": "categorical" if discrete else "squashed", "critics": 2, "values": 1, "hidden": (5,)} | settings
    policy = FeedForwardPolicy(FeedForward(**kind), (3,), Discrete(4) if discrete else BOX, g)
    policy.module.double()
    made = Agent(policy, torch.Generator().manual_seed(seed))
    made.alpha = made.alpha.double() + 0.3
    for parameter in made.lagged.parameters():
        parameter.data.mul_(lag)
    return made


def transitions(n: int = 6, discrete: bool = False, seed: int = 1, **columns) -> Transitions:
    """Random steps; the second has terminated."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    action = torch.randint(4, (n,), generator=g) if discrete else normal(n, 2).tanh()
    discount = torch.full((n,), 0.9, dtype=torch.float64)
    discount[1] = 0
    return Transitions(normal(n, 3), action, normal(n), normal(n, 3), discount, **columns)
