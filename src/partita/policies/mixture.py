"""A head of several Gaussians, of which a gate chooses one (Ren et al., 2021, arXiv:2104.09122)."""

from __future__ import annotations

import torch
from torch import Tensor

from partita.core.spaces import Box, Space
from partita.policies.heads import EDGE, HEADS, Squashed, squashed_density


class Mixture(Squashed):
    """Gaussians through tanh, and a gate: expert k acts with chance w_k(s).

        pi(a|s) = sum_k w_k(s) pi_k(a|s),    w = softmax(gate(s)),    pi_k as `Squashed`

    h: the means of all experts, their log-deviations, and, where there are several experts, the gate's logits, which
    the policy puts behind the actor's numbers. noise: normals of every expert, then a clock for each. One expert is
    `Squashed` to the bit.
    """

    def __init__(self, low: float = -20.0, high: float = 2.0, experts: int = 4) -> None:
        super().__init__(low, high)
        self.experts = experts

    def size(self, space: Space) -> int:
        return self.experts * super().size(space)

    @property
    def gates(self) -> int:
        """How many numbers the gate puts out: none for one expert."""
        return self.experts if self.experts > 1 else 0

    def noise(self, space: Space, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        assert isinstance(space, Box)
        normal = torch.randn((*shape, self.experts * space.size), generator=generator, device=generator.device)
        if not self.gates:
            return normal
        clocks = torch.empty((*shape, self.gates), device=generator.device).exponential_(generator=generator)
        return torch.cat((normal, clocks), -1)

    def gate(self, h: Tensor) -> Tensor:
        """log w_k(s), (..., K)."""
        if not self.gates:
            return torch.zeros_like(h[..., :1])
        return h[..., -self.gates :].log_softmax(-1)

    def each(self, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of every expert, (..., K, A), and its log-probability under that expert alone, (..., K)."""
        return super().draw(self._apart(h), self._normal(noise))

    def means(self, h: Tensor) -> Tensor:
        """The likeliest action of every expert, (..., K, A)."""
        return super().mode(self._apart(h))

    def mode(self, h: Tensor) -> Tensor:
        """The likeliest action of the likeliest expert."""
        return pick(self.means(h), self.gate(h).argmax(-1))

    def draw(self, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The draw of an expert that the gate draws; gradients reach the gate through log pi(a|s) alone."""
        every = self._apart(h)
        if not self.gates:
            return super().draw(every[..., 0, :], noise)
        index = self.race(h, noise).argmax(-1)
        mean, log_std = pick(every, index).chunk(2, -1)
        u = torch.addcmul(mean, log_std.clamp(self.low, self.high).exp(), pick(self._normal(noise), index))
        return u.tanh(), self._given(h, u)

    def relaxed(self, h: Tensor, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """The same draw, through which gradients reach the gate too, as through softmax((log w + g) / temperature).

        g: standard Gumbel noise; straight-through (Jang et al., 2017, arXiv:1611.01144).
        """
        if not self.gates:
            return self.draw(h, noise)
        every, _ = self.each(h, noise)
        race = self.race(h, noise)
        soft = (race / temperature).softmax(-1)
        hard = torch.zeros_like(soft).scatter_(-1, race.argmax(-1, keepdim=True), 1.0)
        action = ((hard + soft - soft.detach())[..., None] * every).sum(-2)
        return action, self.logp(h, action)

    def race(self, h: Tensor, noise: Tensor) -> Tensor:
        """log w_k plus Gumbel noise, (..., K), whose largest entry is the expert that is drawn."""
        return self.gate(h) - noise[..., -self.gates :].log()

    def logp(self, h: Tensor, action: Tensor) -> Tensor:
        return self._given(h, action.clamp(-EDGE, EDGE).atanh())

    def _given(self, h: Tensor, u: Tensor) -> Tensor:
        """log sum_k w_k pi_k(tanh(u)), (...), for u (..., A)."""
        mean, log_std = self._apart(h).chunk(2, -1)
        log_std, u = log_std.clamp(self.low, self.high), u[..., None, :]
        return (self.gate(h) + squashed_density((u - mean) * (-log_std).exp(), log_std, u)).logsumexp(-1)

    def _apart(self, h: Tensor) -> Tensor:
        """Mean and log-deviation of every expert, (..., K, 2 A)."""
        mean, log_std = h[..., : h.shape[-1] - self.gates].chunk(2, -1)
        split = (self.experts, -1)
        return torch.cat((mean.unflatten(-1, split), log_std.unflatten(-1, split)), -1)

    def _normal(self, noise: Tensor) -> Tensor:
        return noise[..., : noise.shape[-1] - self.gates].unflatten(-1, (self.experts, -1))


def pick(every: Tensor, index: Tensor) -> Tensor:
    """Row `index` (...) of values (..., K, A), (..., A)."""
    place = index[..., None, None].expand(*index.shape, 1, every.shape[-1])
    return every.gather(-2, place)[..., 0, :]


HEADS["mixture"] = Mixture
