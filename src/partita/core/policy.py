"""`Policy`: what the loops ask of anything that acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.part import Domain, Part, Unit
from partita.core.shards import own, placed

if TYPE_CHECKING:
    from partita.core.task import Task


class Policy:
    """Base of every policy: a module, and how to evaluate a batch under it.

    unit: "step" when steps are independent given `inputs` (no memory), else "trajectory".
    has_value: whether `evaluate` returns values. sharded: whether each rank holds a part of the weights only
    (`core/shards`). fused: networks of one shape are computed as one, which pays in compiled programs; then all of them
    have a gradient of whatever one of them has to do with, of zeros.
    """

    domain: ClassVar[Domain]
    unit: Unit = "step"
    has_value: bool = False
    sharded: bool = False
    fused: bool = False
    module: nn.Module

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.module.parameters()).device

    def evaluate(self, batch: Batch, entropy: bool = False) -> Outputs:
        """Log-probabilities (B, T) of the actions in `batch`; entropies if asked; values if there is a critic.

        Differentiable unless called under `torch.no_grad()`.
        """
        raise NotImplementedError

    def distribution(self, batch: Batch) -> Tensor:
        """The numbers (B, T, ...) that say the whole action distribution of every step.

        In `batch.inputs["old"]` they make `evaluate` compare distributions. Needed by parts that ask for "old"; those
        are refused where there is no such thing.
        """
        raise UserError(
            f"policy: {type(self).__name__} says no whole action distributions, which this recipe compares; "
            "use --policy actor_critic"
        )

    def begin(self, count: int) -> None:
        """`count` episodes begin side by side: what a policy remembers of others is forgotten."""

    def seen(self, obs: Tensor, action: Tensor, reward: Tensor) -> None:
        """A step that these episodes have taken: obs (n, ...), the task's action (n, ...), reward (n,)."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name."""
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    def placed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights by name as the policy holds its own: on its device, this rank's part where it has a part."""
        mine: dict[str, Tensor] = {**dict(self.module.named_buffers()), **self.trainable()}
        return {n: placed(w, mine[n]) for n, w in weights.items()}

    @contextmanager
    def using(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the block parameters and buffers named in `weights` hold those instead (no gradients flow)."""
        mine: dict[str, Tensor] = {**dict(self.module.named_buffers()), **self.trainable()}
        kept = {n: mine[n].data for n in weights}
        try:
            for name, value in weights.items():
                mine[name].data = value
            with torch.no_grad():
                yield
        finally:
            for name, value in kept.items():
                mine[name].data = value

    def state_dict(self) -> dict[str, Any]:
        """Tensors that a checkpoint must hold: trainable parameters and buffers."""
        buffers = {n: b for n, b in self.module.named_buffers() if b is not None}
        return {**{n: p.data for n, p in self.trainable().items()}, **buffers}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore in place what `state_dict` gave."""
        mine = self.state_dict()
        if set(mine) != set(state):
            odd = sorted(set(mine) ^ set(state))
            raise ValueError(f"policy state: {len(odd)} names differ, first {odd[0]}")
        for name, value in state.items():
            own(mine[name]).copy_(own(placed(value, mine[name])))

    def observe_batch(self, batch: Batch) -> None:
        """Take a batch into running statistics, once the update on it is done."""

    def save(self, folder: Path) -> None:
        """Write what others need to load the policy again."""
        raise NotImplementedError


class PolicyPart(Part):
    """Base of policy settings; `build` makes the policy for a task."""

    slot: ClassVar[str] = "policy"

    def build(self, task: Task, value: bool, generator: torch.Generator) -> Policy:
        """A policy for `task`, with a critic if `value`; initial weights drawn from `generator`."""
        raise NotImplementedError
