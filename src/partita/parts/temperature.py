"""The slot `temperature`: what is the entropy of the policy worth?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from partita.core.errors import UserError
from partita.core.limits import check_above, check_least
from partita.core.part import Domain, Part
from partita.core.spaces import Discrete


class Temperature(Part):
    """Gives alpha, which critics and actor of soft methods read from the agent."""

    slot: ClassVar[str] = "temperature"
    loop: ClassVar[str] = "replay"
    domains: ClassVar[tuple[Domain, ...]] = ("control",)

    def alpha(self) -> float:
        """The temperature now."""
        raise NotImplementedError

    def learn(self, entropy: Tensor) -> None:
        """Take the mean entropy of the policy, scalar, as of the last update of the actor."""


@dataclass(frozen=True)
class FixedTemperature(Temperature):
    """A constant.

        alpha = value

    0 where entropy is worth nothing.
    """

    value: float = 0.0

    def __post_init__(self) -> None:
        check_least("temperature.value", self.value)

    def alpha(self) -> float:
        return self.value


@dataclass(frozen=True)
class TunedTemperature(Temperature):
    """Moves so that the policy keeps an entropy (Haarnoja et al., 2018, arXiv:1812.05905, eq. 18).

        J(log alpha) = log alpha * (E[-log pi] - target)        by Adam

    target: entropy to keep; None is -(numbers of an action) for real-valued actions, of densities within [-1, 1], and
    `share` of log n for one of n. initial: alpha at first. The published objective has alpha in front where the
    authors' code, and this, have its logarithm.
    """

    target: float | None = None
    initial: float = 1.0
    lr: float = 3e-4
    share: float = 0.6
    _held: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("initial", "lr"):
            check_above(f"temperature.{name}", getattr(self, name))
        if not 0 < self.share < 1:
            raise UserError(f"temperature.share: expected a number between 0 and 1, got {self.share}")

    def settle(self, task: Any) -> TunedTemperature:
        space = getattr(task, "action_space", None)
        if self.target is not None or space is None:
            return self
        natural = self.share * math.log(space.n) if isinstance(space, Discrete) else -float(getattr(space, "size", 1))
        return self.but(target=natural)

    def _state(self) -> dict[str, Any]:
        if not self._held:  # Adam on one number, in floats: three tensors would cost more than the rest
            self._held.update(log=math.log(self.initial), first=0.0, second=0.0, count=0)
        return self._held

    def alpha(self) -> float:
        return math.exp(self._state()["log"])

    def learn(self, entropy: Tensor) -> None:
        assert self.target is not None
        held, gradient = self._state(), float(entropy) - self.target
        held["count"] += 1
        held["first"] += 0.1 * (gradient - held["first"])
        held["second"] += 0.001 * (gradient**2 - held["second"])
        first, second = held["first"] / (1 - 0.9 ** held["count"]), held["second"] / (1 - 0.999 ** held["count"])
        held["log"] -= self.lr * first / (math.sqrt(second) + 1e-8)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._held.update(state)
