"""Actor and critic for control whose actions come from several Gaussians, of which a gate chooses one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.limits import check_count
from partita.core.policy import Policy
from partita.core.spaces import Box
from partita.policies import distributions
from partita.policies.actor_critic import ActorCritic, ActorCriticPolicy
from partita.policies.mixture import pick
from partita.policies.mlp import Mlp


@dataclass(frozen=True)
class MixtureOutputs(Outputs):
    """What a mixture says besides.

    gate: (B, T, K), log w_k(s_t). Where `batch.inputs` hold "noise" and there are several experts: action_value,
    (B, T), Q(s_t, a_t), and best, (B, T) int64, the expert whose a_k, drawn with that noise, has the largest
    Q(s_t, a_k).
    """

    gate: Tensor | None = None
    action_value: Tensor | None = None
    best: Tensor | None = None


class MixtureActorCriticPolicy(ActorCriticPolicy):
    """A mixture of K Gaussians with one deviation each for all states; expert k acts with chance w_k(s).

        pi(a|s) = sum_k w_k(s) N(a; m_k(s), s_k^2),    w = softmax(gate(s)),   a linear gate

    Actor outputs are the means of all experts, then the gate's logits; noise is normals of every expert, then a clock
    for each. Beside V there is Q(s, a), of the same size. One expert is `actor_critic` to the bit, with no gate, no
    clock and no Q.

    entropy: by pairwise divergences (Kolchinsky and Tracey, 2017, arXiv:1706.02419), never below the true one, and
    equal to it where the experts are alike or far apart:

        H = sum_k w_k (H_k - log sum_j w_j exp(-KL(N_k || N_j)))
    """

    settings: MixtureActorCritic

    def __init__(
        self, settings: MixtureActorCritic, observation: tuple[int, ...], space: Box, value: bool, g: torch.Generator
    ):
        experts = settings.experts
        every = Box(experts * space.size, space.low * experts, space.high * experts)
        super().__init__(settings, observation, every, value, g)
        self.space: Box = space
        self.experts, self.gates = experts, experts if experts > 1 else 0
        networks = self.module
        if self.gates:
            first = settings.hidden[0] if networks.trunk is not None else observation[0]
            networks.gate = Mlp([first, experts], 1.0, settings.activation, g)
            if value:
                networks.action_value = Mlp([first + space.size, *settings.hidden, 1], 1.0, settings.activation, g)

    # -- actions --------------------------------------------------------------------------------------------------

    def head(self, obs: Tensor) -> Tensor:
        """The means of all experts, then the gate's logits, (n, K A + K)."""
        features = self.module.features(obs)
        return self._gated(self.module.actor(features), features)

    def both(self, obs: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.module.features(obs)
        means, value = self.module.both(features, self.fused)
        return self._gated(means, features), value

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        size = self.experts * self.space.size
        out = torch.empty((*shape, size), device=generator.device).normal_(generator=generator)
        if self.gates:
            clocks = torch.empty((*shape, self.gates), device=generator.device).exponential_(generator=generator)
            out = torch.cat((out, clocks), -1)
        return out.to(self.device)

    def gate(self, head: Tensor) -> Tensor:
        """log w_k(s), (..., K)."""
        return head[..., -self.gates :].log_softmax(-1) if self.gates else torch.zeros_like(head[..., :1])

    def means(self, head: Tensor) -> Tensor:
        """The mean of every expert, (..., K, A)."""
        return self._first(head)

    def each(self, head: Tensor, noise: Tensor) -> Tensor:
        """A draw of every expert, (..., K, A)."""
        return distributions.draw(self.space, self.means(head), self._log_std, self._first(noise))

    def choose(self, head: Tensor, noise: Tensor | None) -> Tensor:
        """The draw of an expert that the gate draws; the mean of the likeliest expert when `noise` is None."""
        if noise is None:
            return pick(self.means(head), self.gate(head).argmax(-1))
        if not self.gates:
            return self.each(head, noise)[..., 0, :]
        index = (head[..., -self.gates :] - noise[..., -self.gates :].log()).argmax(-1)
        return pick(self.each(head, noise), index)

    def judge(self, head: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return self.logp(head, action), self.entropy(head)

    def logp(self, head: Tensor, action: Tensor) -> Tensor:
        """log sum_k w_k N(a; m_k, s_k^2), (...), for actions (..., A)."""
        own, _ = distributions.logp_entropy(self.space, self.means(head), self._log_std, action[..., None, :], False)
        return (self.gate(head) + own).logsumexp(-1)

    def entropy(self, head: Tensor) -> Tensor:
        """The estimate of the class, (...)."""
        mean, log_std, gate = self.means(head), self._log_std, self.gate(head)
        one = distributions.parameters(self.space, mean, log_std)
        apart = distributions.kl(self.space, one[..., :, None, :], one[..., None, :, :])
        alone = (log_std + 0.5 * (1 + distributions.LOG_2PI)).sum(-1)
        return (gate.exp() * (alone - (gate[..., None, :] - apart).logsumexp(-1))).sum(-1)

    # -- learning -------------------------------------------------------------------------------------------------

    def evaluate(self, batch: Batch, entropy: bool = False) -> MixtureOutputs:
        features, action = self.module.features(batch.inputs["obs"]), batch.inputs["action"]
        means, value = self.module.both(features, self.fused)
        head = self._gated(means, features)
        spread = self.entropy(head) if entropy else None
        out = MixtureOutputs(self.logp(head, action), spread, value, gate=self.gate(head))
        if "noise" in batch.inputs and self.gates:
            with torch.no_grad():
                drawn = self.each(head, batch.inputs["noise"])
                best = self._q(features[..., None, :].expand(*drawn.shape[:-1], -1), drawn).argmax(-1)
            out = replace(out, action_value=self._q(features, action), best=best)
        if bool(batch.mask.all()):
            return out
        filled = {name: x for name, x in vars(out).items() if x is not None}
        return replace(out, **{name: x.where(_like(batch.mask, x), x.new_zeros(())) for name, x in filled.items()})

    def distribution(self, batch: Batch) -> Tensor:
        return Policy.distribution(self, batch)  # divergences of mixtures have no closed form

    def _gated(self, means: Tensor, features: Tensor) -> Tensor:
        networks: Any = self.module
        return torch.cat((means, networks.gate(features)), -1) if self.gates else means

    def _q(self, features: Tensor, action: Tensor) -> Tensor:
        networks: Any = self.module
        return networks.action_value(torch.cat((features, action), -1))[..., 0]

    def _first(self, numbers: Tensor) -> Tensor:
        return numbers[..., : numbers.shape[-1] - self.gates].unflatten(-1, (self.experts, -1))

    @property
    def _log_std(self) -> Tensor:
        """(K, A)."""
        log_std = self.module.log_std
        assert log_std is not None
        return log_std.view(self.experts, -1)


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.view(*mask.shape, *[1] * (x.dim() - 2))


@dataclass(frozen=True)
class MixtureActorCritic(ActorCritic):
    """Actor-critic whose actor is a mixture of Gaussians with a linear gate; real-valued actions only.

    experts: how many. log_std: initial log-deviation of each. hidden (also of Q), activation, normalise: as
    `actor_critic`.
    """

    experts: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("policy.experts", self.experts)

    def build(self, task: Any, value: bool, generator: torch.Generator) -> MixtureActorCriticPolicy:
        if not isinstance(task.action_space, Box):
            raise UserError(
                f"policy: experts of mixture_actor_critic draw real-valued actions, and task {task.part_name()} has "
                "discrete ones; use --policy actor_critic"
            )
        return MixtureActorCriticPolicy(self, task.observation_shape, task.action_space, value, generator)
