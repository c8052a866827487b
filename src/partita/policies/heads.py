"""Heads: what the numbers of an actor mean. Real-valued actions are scaled to [-1, 1] wherever anything learns."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from partita.core.spaces import Box, Discrete, Space
from partita.policies.distributions import LOG_2PI

EDGE = 1 - 1e-6  # beyond it an action has no finite inverse hyperbolic tangent in float32


class Head(Protocol):
    """h: numbers of the actor, (..., size). noise: as `noise` draws it. Without probabilities logp is None."""

    def size(self, space: Space) -> int:
        """How many numbers the actor puts out."""
        ...

    def noise(self, space: Space, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """The randomness of actions of `shape`, on the generator's device."""
        ...

    def mode(self, h: Tensor) -> Tensor:
        """The likeliest action."""
        ...

    def draw(self, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """An action, differentiable in h where it is real-valued, and its log-probability."""
        ...

    def logp(self, h: Tensor, action: Tensor) -> Tensor | None:
        """The log-probability of a given action."""
        ...


class _Real:
    """What heads of real-valued actions share: standard normal noise, a number for each entry of an action."""

    numbers = 1

    def size(self, space: Space) -> int:
        assert isinstance(space, Box)
        return self.numbers * space.size

    def noise(self, space: Space, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        assert isinstance(space, Box)
        return torch.randn((*shape, space.size), generator=generator, device=generator.device)


class Squashed(_Real):
    """A Gaussian through tanh, mean and log-deviation by the state (Haarnoja et al., 2018, appendix C).

        a = tanh(u),  u = m + s z,    log pi(a) = log N(u; m, s) - sum_i log(1 - tanh(u_i)^2)

    log s is clamped to [low, high].
    """

    numbers = 2

    def __init__(self, low: float = -20.0, high: float = 2.0) -> None:
        self.low, self.high = low, high

    def mode(self, h: Tensor) -> Tensor:
        return h.chunk(2, -1)[0].tanh()

    def draw(self, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = h.chunk(2, -1)
        return _Squash.apply(mean, log_std.clamp(self.low, self.high), noise)

    def logp(self, h: Tensor, action: Tensor) -> Tensor:
        mean, log_std = h.chunk(2, -1)
        log_std = log_std.clamp(self.low, self.high)
        u = action.clamp(-EDGE, EDGE).atanh()
        return squashed_density((u - mean) * (-log_std).exp(), log_std, u)


def squashed_density(z: Tensor, log_std: Tensor, u: Tensor) -> Tensor:
    """log pi of tanh(u), u = m + s z."""
    # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), which does not round to log 0
    terms = z.square() * -0.5 - log_std + 2 * (u + softplus(-2 * u))
    return terms.sum(-1) - z.shape[-1] * (0.5 * LOG_2PI + 2 * math.log(2))


class _Squash(torch.autograd.Function):
    """A draw through tanh and its log-probability, one node of the graph where there would be some fourteen.

        a = tanh(u),  u = m + s z,    dL/du = dL/da (1 - a^2) + 2 a dL/dlogp
        dL/dm = dL/du,    dL/dlog s = dL/du s z - dL/dlogp

    mean, log_std, noise (..., A) -> a (..., A), logp (...).
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        step = log_std.exp().mul_(noise)
        u = mean + step
        action = u.tanh()
        ctx.save_for_backward(action, step)
        return action, squashed_density(noise, log_std, u)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        action, step = ctx.saved_tensors
        of_action, of_logp = grads[0], grads[1][..., None]
        of_u = torch.addcmul(of_action, action, 2 * of_logp - of_action * action)
        return of_u, torch.addcmul(-of_logp, of_u, step), None


class Gaussian(_Real):
    """A Gaussian whose mean is within (-1, 1), one deviation for all states. Draws are clipped, densities are not.

        a = tanh(m) + s z

    The policy puts log s, a parameter clamped to [low, high], behind the actor's m.
    """

    def __init__(self, low: float = -5.0, high: float = 2.0) -> None:
        self.low, self.high = low, high

    def mode(self, h: Tensor) -> Tensor:
        return h.chunk(2, -1)[0].tanh()

    def draw(self, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = h.chunk(2, -1)
        log_std = log_std.clamp(self.low, self.high)
        action = torch.addcmul(mean.tanh(), log_std.exp(), noise)
        return action.clamp(-1, 1), self._density(noise, log_std)

    def logp(self, h: Tensor, action: Tensor) -> Tensor:
        mean, log_std = h.chunk(2, -1)
        log_std = log_std.clamp(self.low, self.high)
        return self._density((action - mean.tanh()) * (-log_std).exp(), log_std)

    def _density(self, z: Tensor, log_std: Tensor) -> Tensor:
        return (z.square() * -0.5 - log_std).sum(-1) - z.shape[-1] * 0.5 * LOG_2PI


class Deterministic(_Real):
    """One action, tanh(h)."""

    def mode(self, h: Tensor) -> Tensor:
        return h.tanh()

    def draw(self, h: Tensor, noise: Tensor) -> tuple[Tensor, None]:
        return h.tanh(), None

    def logp(self, h: Tensor, action: Tensor) -> None:
        return None


class Categorical:
    """One of n actions with log-probabilities log softmax(h); the noise is n exponential clocks."""

    def size(self, space: Space) -> int:
        assert isinstance(space, Discrete)
        return space.n

    def noise(self, space: Space, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.empty((*shape, self.size(space)), device=generator.device).exponential_(generator=generator)

    def mode(self, h: Tensor) -> Tensor:
        return h.argmax(-1)

    def draw(self, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        action = (h - noise.log()).argmax(-1)
        return action, self.logp(h, action)

    def logp(self, h: Tensor, action: Tensor) -> Tensor:
        return h.log_softmax(-1).gather(-1, action[..., None])[..., 0]


HEADS: dict[str, type] = {
    "squashed": Squashed, "gaussian": Gaussian, "deterministic": Deterministic, "categorical": Categorical,
}  # fmt: skip
