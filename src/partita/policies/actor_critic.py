"""Actor and critic for control: two multilayer perceptrons, or a small convolutional trunk for pixels."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.part import Domain
from partita.core.policy import Policy, PolicyPart
from partita.core.spaces import Box, Space
from partita.policies import distributions
from partita.policies.activations import ACTIVATIONS
from partita.policies.mlp import Mlp, linear_layer, together
from partita.policies.normaliser import Normaliser


class Pixels(nn.Module):
    """(..., C, H, W) uint8 -> (..., features): two strided convolutions and a linear layer."""

    def __init__(self, shape: tuple[int, ...], features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(shape[0], 16, 4, 2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, padding=1), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        with torch.no_grad():
            flat = self.net(torch.zeros(1, *shape)).shape[1]
        for layer in self.net:
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight, math.sqrt(2), generator=generator)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.out = linear_layer(flat, features, math.sqrt(2), generator)

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-3]
        return self.out(self.net(x.reshape(-1, *x.shape[-3:]).float() / 255)).relu().unflatten(0, lead)


class Networks(nn.Module):
    """The modules of an actor-critic; kept apart from the policy so that its state is plain tensors."""

    def __init__(
        self, settings: ActorCritic, observation: tuple[int, ...], space: Space, value: bool, g: torch.Generator
    ):
        super().__init__()
        pixels = len(observation) == 3
        self.normaliser = Normaliser(observation) if settings.normalise and not pixels else None
        self.trunk = Pixels(observation, settings.hidden[0], g) if pixels else None
        first = settings.hidden[0] if pixels else observation[0]
        self.actor = Mlp([first, *settings.hidden, distributions.size(space)], 0.01, settings.activation, g)
        self.critic = Mlp([first, *settings.hidden, 1], 1.0, settings.activation, g) if value else None
        self.log_std = nn.Parameter(torch.full((space.size,), settings.log_std)) if isinstance(space, Box) else None

    def features(self, obs: Tensor) -> Tensor:
        if self.normaliser is not None:
            return self.normaliser(obs)
        return obs if self.trunk is None else self.trunk(obs)

    def both(self, features: Tensor, fused: bool) -> tuple[Tensor, Tensor | None]:
        """What the actor puts out (..., size), and the values (...,) where there is a critic, for the same inputs."""
        if self.critic is None:
            return self.actor(features), None
        pair = (self.actor, self.critic)
        head, value = together(pair, features) if fused else (network(features) for network in pair)
        return head, value[..., 0]


class ActorCriticPolicy(Policy):
    """Acts on observations (n, ...); `inputs` of its batches are "obs" (B, T, ...) and "action" (B, T[, A])."""

    domain: ClassVar[Domain] = "control"
    unit = "step"

    def __init__(
        self, settings: ActorCritic, observation: tuple[int, ...], space: Space, value: bool, g: torch.Generator
    ):
        self.settings, self.observation, self.space = settings, observation, space
        self.has_value = value
        self.module: Networks = Networks(settings, observation, space, value, g)

    def head(self, obs: Tensor) -> Tensor:
        """Actor outputs for observations (n, ...): logits, or means, (n, size)."""
        return self.module.actor(self.module.features(obs))

    def value(self, obs: Tensor) -> Tensor:
        """V(s) for observations (n, ...), (n,)."""
        assert self.module.critic is not None
        return self.module.critic(self.module.features(obs))[..., 0]

    def both(self, obs: Tensor) -> tuple[Tensor, Tensor | None]:
        """`head` and `value` of the same observations; None without a critic."""
        return self.module.both(self.module.features(obs), self.fused)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """The randomness of actions of `shape`."""
        return distributions.noise(self.space, shape, generator, self.device)

    def choose(self, head: Tensor, noise: Tensor | None) -> Tensor:
        """Actions from actor outputs; the mode when `noise` is None."""
        if noise is None:
            return distributions.greedy(self.space, head)
        return distributions.draw(self.space, head, self.module.log_std, noise)

    def judge(self, head: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """log pi(a|s) and the entropy of the action distribution, from actor outputs; both (...,)."""
        logp, entropy = distributions.logp_entropy(self.space, head, self.module.log_std, action)
        assert entropy is not None
        return logp, entropy

    def act(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        """Actions for observations (n, ...); the mode when `noise` is None."""
        return self.choose(self.head(obs), noise)

    def observe_batch(self, batch: Batch) -> None:
        if self.module.normaliser is not None:
            self.module.normaliser.update(batch.inputs["obs"][batch.mask])

    def evaluate(self, batch: Batch, entropy: bool = False) -> Outputs:
        head, value = self.both(batch.inputs["obs"])
        logp, spread = distributions.logp_entropy(
            self.space, head, self.module.log_std, batch.inputs["action"], entropy
        )
        out = Outputs(logp, spread, value)
        if "old" in batch.inputs:
            old, now = batch.inputs["old"], distributions.parameters(self.space, head, self.module.log_std)
            forward, reverse = distributions.kl(self.space, old, now), distributions.kl(self.space, now, old)
            out = replace(out, forward_kl=forward, reverse_kl=reverse)
        filled = {name: x for name, x in vars(out).items() if x is not None}
        return replace(out, **{name: torch.where(batch.mask, x, torch.zeros_like(x)) for name, x in filled.items()})

    def distribution(self, batch: Batch) -> Tensor:
        return distributions.parameters(self.space, self.head(batch.inputs["obs"]), self.module.log_std)

    def save(self, folder: Path) -> None:
        """Write `policy.json` and `policy.safetensors`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        about: dict[str, Any] = dict(
            kind=self.settings.part_name(),
            settings=asdict(self.settings),
            observation=list(self.observation),
            value=self.has_value,
        )
        (folder / "policy.json").write_text(json.dumps(about, indent=1))
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "policy.safetensors")


@dataclass(frozen=True)
class ActorCritic(PolicyPart):
    """Separate actor and critic networks, orthogonal initialisation (gain 0.01 on the actor's last layer).

    hidden: widths of the hidden layers. log_std: initial log standard deviation of Gaussian actions.
    normalise: standardise observations with running statistics that are saved with the policy.
    """

    domains: ClassVar[tuple[Domain, ...]] = ("control",)
    hidden: tuple[int, ...] = (64, 64)
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    log_std: float = 0.0
    normalise: bool = False

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise UserError(f"policy.hidden: expected at least one positive width, got {self.hidden}")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"policy.activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")

    def build(self, task: Any, value: bool, generator: torch.Generator) -> ActorCriticPolicy:
        return ActorCriticPolicy(self, task.observation_shape, task.action_space, value, generator)
