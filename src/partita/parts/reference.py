"""The slot `reference`: divergence against what, and how does it move?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_count
from partita.core.part import Part
from partita.core.policy import Policy


class Reference(Part):
    """A second set of the policy's trainable weights and buffers. Kept only when some part needs `ref_logp`."""

    slot: ClassVar[str] = "reference"
    still: ClassVar[bool] = False  # whether it never moves, so that what it said once can be kept

    @property
    def weights(self) -> dict[str, Tensor]:
        """The reference's weights by parameter name (empty before `start`)."""
        raise NotImplementedError

    def start(self, policy: Policy) -> None:
        """Take the policy as it is now for the reference."""
        self.weights.clear()
        self.weights.update({n: p.detach().clone() for n, p in policy.state_dict().items()})

    def logp(self, policy: Policy, batch: Batch) -> Tensor:
        """log ref(a_t | s_t) of the batch, (B, T)."""
        with policy.using(self.on(policy)):
            return policy.evaluate(batch).logp

    def on(self, policy: Policy) -> dict[str, Tensor]:
        """The weights, held as the policy holds its own even when a checkpoint has brought them otherwise."""
        self.weights.update(policy.placed(self.weights))
        return self.weights

    def update(self, policy: Policy, step: int) -> None:
        """Move after the `step`-th update (counted from 1)."""

    def state_dict(self) -> dict[str, Any]:
        return dict(self.weights)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights.clear()
        self.weights.update(state)


@dataclass(frozen=True)
class Frozen(Reference):
    """The policy as it was before training."""

    still = True
    _weights: dict[str, Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)

    @property
    def weights(self) -> dict[str, Tensor]:
        return self._weights


@dataclass(frozen=True)
class Ema(Frozen):
    """An exponential moving average of the policy's weights.

        ref <- decay * ref + (1 - decay) * policy

    after every step of the loop.
    """

    still = False
    decay: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise UserError(f"reference.decay: expected a number between 0 and 1, got {self.decay}")

    def update(self, policy: Policy, step: int) -> None:
        mine = policy.state_dict()
        for name, weight in self.on(policy).items():
            weight.lerp_(mine[name].detach(), 1 - self.decay)


@dataclass(frozen=True)
class Reset(Frozen):
    """The policy as it was at the last multiple of `every` updates."""

    still = False
    every: int = 50

    def __post_init__(self) -> None:
        check_count("reference.every", self.every)

    def update(self, policy: Policy, step: int) -> None:
        if step % self.every == 0 and self.weights:
            self.start(policy)
