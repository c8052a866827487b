"""Actor, critics and state value for the replay loop: multilayer perceptrons over vectors of numbers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.limits import check_count
from partita.core.part import Domain
from partita.core.policy import Policy, PolicyPart
from partita.core.spaces import Box, Discrete, Space
from partita.policies.activations import ACTIVATIONS
from partita.policies.heads import HEADS, Gaussian, Head
from partita.policies.mixture import Mixture
from partita.policies.normaliser import Normaliser
from partita.policies.stack import Stack


class Networks(nn.Module):
    """The networks that a recipe asks for: an actor, a stack of critics, a state value; any may be missing."""

    def __init__(self, about: FeedForward, inputs: int, space: Space, head: Head | None, g: torch.Generator) -> None:
        super().__init__()
        self.normaliser = Normaliser((inputs,)) if about.normalise else None
        hidden, critics = list(about.hidden), list(about.critic_hidden or about.hidden)
        rounded = about.dtype == "bfloat16"
        self.actor = None
        if head is not None:
            self.actor = Stack(1, [inputs, *hidden, head.size(space)], about.activation, g, rounded=rounded)
        self.actor_gate = None
        if isinstance(head, Mixture) and head.gates:
            self.actor_gate = Stack(1, [inputs, head.gates], about.activation, g)
        self.actor_log_std = None
        if isinstance(head, Gaussian) and isinstance(space, Box):
            self.actor_log_std = nn.Parameter(torch.zeros(space.size))
        self.critic = None
        if about.critics:
            read = inputs + (space.size if isinstance(space, Box) else 0)
            put = (about.outputs or 1) * (space.n if isinstance(space, Discrete) else 1) + bool(about.dueling)
            self.critic = Stack(
                about.critics, [read, *critics, put], about.activation, g, about.layer_norm, rounded=rounded
            )
        self.value = None
        if about.values:
            self.value = Stack(
                about.values, [inputs, *critics, 1], about.activation, g, about.layer_norm, rounded=rounded
            )


class FeedForwardPolicy(Policy):
    """Acts on observations (n, D); actions inside are scaled to [-1, 1], those of `act` are the task's."""

    domain: ClassVar[Domain] = "control"
    unit = "step"

    def __init__(self, settings: FeedForward, observation: tuple[int, ...], space: Space, g: torch.Generator) -> None:
        self.settings, self.observation, self.space = settings, observation, space
        name = settings.head or "greedy"
        chosen = {"experts": settings.experts} if name == "mixture" else {}
        self.shape: Head | None = None if name == "greedy" else HEADS[name](*(settings.log_std or ()), **chosen)
        self.module: Networks = Networks(settings, observation[0], space, self.shape, g)
        if isinstance(space, Box):
            low, high = torch.tensor(space.low), torch.tensor(space.high)
            self.middle, self.half = (low + high) / 2, (high - low) / 2

    # -- actions --------------------------------------------------------------------------------------------------

    def scaled(self, action: Tensor) -> Tensor:
        """The task's actions as the networks see them: within [-1, 1], or the same where they are discrete."""
        if isinstance(self.space, Discrete):
            return action
        return (action - self.middle.to(action.device)) / self.half.to(action.device)

    def unscaled(self, action: Tensor) -> Tensor:
        """Undo `scaled`."""
        if isinstance(self.space, Discrete):
            return action
        return torch.addcmul(self.middle.to(action.device), self.half.to(action.device), action)

    def features(self, obs: Tensor) -> Tensor:
        """Observations as the networks read them."""
        return obs if self.module.normaliser is None else self.module.normaliser(obs)

    def head(self, obs: Tensor, networks: Networks | None = None) -> Tensor:
        """The actor's numbers for observations (n, D), (n, size); the mean of the critics where there is no actor."""
        networks = networks or self.module
        if networks.actor is None:
            return self.q(obs, networks=networks).mean(0)
        read = self.features(obs)
        found = networks.actor(read)[0]
        if networks.actor_gate is not None:
            return torch.cat((found, networks.actor_gate(read)[0]), -1)
        spread = networks.actor_log_std
        return found if spread is None else torch.cat((found, spread.expand_as(found)), -1)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
        """The randomness of actions of `shape`; None where there is none to draw."""
        return None if self.shape is None else self.shape.noise(self.space, shape, generator).to(self.device)

    def choose(self, head: Tensor, noise: Tensor | None) -> Tensor:
        """The task's actions from the actor's numbers; the likeliest when `noise` is None."""
        if self.shape is None:
            return head.argmax(-1)
        return self.unscaled(self.shape.mode(head) if noise is None else self.shape.draw(head, noise)[0])

    def judge(self, head: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """log pi(a|s) of the task's actions and -log pi(a|s), an estimate of the entropy; 0 where nothing is random."""
        logp = None if self.shape is None else self.shape.logp(head, self.scaled(action))
        logp = head.new_zeros(head.shape[:-1]) if logp is None else logp
        return logp, -logp

    def act(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        """Actions for observations (n, D); the likeliest when `noise` is None."""
        return self.choose(self.head(obs), noise)

    def evaluate(self, batch: Batch, entropy: bool = False) -> Outputs:
        obs = batch.inputs["obs"]
        logp, spread = self.judge(self.head(obs.flatten(0, 1)).unflatten(0, obs.shape[:2]), batch.inputs["action"])
        return Outputs(logp * batch.mask, spread * batch.mask if entropy else None)

    # -- values ---------------------------------------------------------------------------------------------------

    def q(
        self, obs: Tensor, action: Tensor | None = None, networks: Networks | None = None, first: int | None = None
    ) -> Tensor:
        """Q_k(s, a) of every critic, (K, N); of every discrete action, (K, N, n), where none is given."""
        return self.raw(obs, action, networks, first)[..., 0]

    def raw(
        self, obs: Tensor, action: Tensor | None = None, networks: Networks | None = None, first: int | None = None
    ) -> Tensor:
        """All `outputs` numbers of the critics, (K, N, outputs) or (K, N, n, outputs); of the `first` alone if given.

            Q(s, a) = V(s) + A(s, a) - mean_b A(s, b)

        where they are dueling.
        """
        critic = (networks or self.module).critic
        assert critic is not None
        read = self.features(obs)
        if isinstance(self.space, Box):
            assert action is not None
            return critic(torch.cat((read, action), -1), first=first)
        found = critic(read, first=first)
        if self.settings.dueling:
            found = found[..., :1] + found[..., 1:] - found[..., 1:].mean(-1, keepdim=True)
        table = found.unflatten(-1, (self.space.n, -1)) if isinstance(self.space, Discrete) else found
        if action is None:
            return table
        return table.gather(-2, action[None, :, None, None].expand(len(table), -1, 1, table.shape[-1]))[:, :, 0]

    def v(self, obs: Tensor, networks: Networks | None = None) -> Tensor:
        """V_k(s) of every state value, (K, N), for observations (N, D)."""
        value = (networks or self.module).value
        assert value is not None
        return value(self.features(obs))[..., 0]

    def save(self, folder: Path) -> None:
        """Write `policy.json` and `policy.safetensors`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        about = {"kind": "feed_forward", "settings": asdict(self.settings), "observation": list(self.observation)}
        (folder / "policy.json").write_text(json.dumps(about, indent=1))
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "policy.safetensors")


@dataclass(frozen=True)
class FeedForward(PolicyPart):
    """Multilayer perceptrons: an actor, critics that are computed together, a state value, as the recipe asks.

    hidden: widths of the actor's hidden layers, and of the critics' unless critic_hidden is given. layer_norm:
    normalise the hidden layers of critics and values. normalise: standardise observations by statistics of the logged
    data. log_std: bounds of the log-deviation of random actions. experts: Gaussians of a mixture, between which a
    linear gate chooses. dtype: with bfloat16 the products between hidden layers are rounded (`Stack`), which is faster
    on processors that multiply bfloat16; all else stays float32.

    Left to the recipe: head (squashed, gaussian, mixture, deterministic, categorical; greedy acts by the critics),
    critics and values (how many of them), outputs (numbers a critic puts out for an action), dueling (of critics of
    discrete ones).
    """

    domains: ClassVar[tuple[Domain, ...]] = ("control",)
    hidden: tuple[int, ...] = (256, 256)
    critic_hidden: tuple[int, ...] | None = None
    activation: Literal["relu", "tanh", "silu"] = "relu"
    layer_norm: bool = False
    normalise: bool = False
    log_std: tuple[float, float] | None = None
    experts: int = 4
    dtype: Literal["float32", "bfloat16"] = "float32"
    head: str | None = None
    critics: int | None = None
    values: int | None = None
    outputs: int | None = None
    dueling: bool | None = None

    def __post_init__(self) -> None:
        for name in ("hidden", "critic_hidden"):
            widths = getattr(self, name)
            if widths is not None and (not widths or min(widths) < 1):
                raise UserError(f"policy.{name}: expected at least one positive width, got {widths}")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"policy.activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        if self.log_std is not None and not self.log_std[0] < self.log_std[1]:
            raise UserError(f"policy.log_std: expected a lower and a higher bound, got {self.log_std}")
        check_count("policy.experts", self.experts)
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"policy.dtype: expected float32 or bfloat16, got {self.dtype!r}")
        if self.head not in (None, "greedy", *HEADS):
            raise UserError(f"policy.head: expected one of greedy, {', '.join(HEADS)}, got {self.head!r}")

    def build(self, task: Any, value: bool, generator: torch.Generator) -> FeedForwardPolicy:
        shape, space = task.observation_shape, task.action_space
        if len(shape) != 1:
            raise UserError(f"task {task.part_name()}: its observations are {shape}; feed_forward reads vectors")
        if isinstance(space, Box):
            if not all(map(torch.isfinite, torch.tensor([*space.low, *space.high]))):
                raise UserError(f"task {task.part_name()}: its actions have no bounds; feed_forward needs finite ones")
        elif not isinstance(space, Discrete):
            raise UserError(f"task {task.part_name()}: its actions are several choices at once; the replay loop takes "
                            "one choice, or real numbers")  # fmt: skip
        return FeedForwardPolicy(self, shape, space, generator)
