"""Parts by the names that they have in verl, with settings as verl's configuration holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import OmegaConf

from partita.lab.config import decode

PREFIX = "partita/"


def is_ours(name: str) -> bool:
    """Whether a name in verl's configuration means a part of ours."""
    return name.startswith(PREFIX)


def build(slot: str, name: str, /, **settings: Any) -> Any:
    """The part that `name`, with or without verl's prefix, means in `slot`; UserError for unknown settings."""
    return decode(slot, {**settings, "part": name.removeprefix(PREFIX)})


def plain(settings: Any) -> dict[str, Any]:
    """Settings, or a part of verl's configuration that holds them, as a dictionary; empty for None."""
    if OmegaConf.is_config(settings):
        settings = OmegaConf.to_container(settings, resolve=True)
    return dict(settings or {})


def credit_settings(algorithm: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings of a credit part: `algorithm.partita`."""
    return plain(algorithm.get("partita") if algorithm is not None else None)


def objective_settings(policy_loss: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings of an objective part: `actor_rollout_ref.actor.policy_loss.settings`."""
    return plain(policy_loss.get("settings") if policy_loss is not None else None)


class Held:
    """A part that is made at its first use, and again when its settings change; in between it keeps what it remembers.

    make: a class of parts, or a function, called with the settings as keywords. apart: what the part reads that verl
    does not pass on, if it does; it then works under a trainer of ours alone.
    """

    def __init__(self, make: Callable[..., Any], apart: str = "") -> None:
        self.make, self.apart = make, apart
        self._made: tuple[dict[str, Any], Any] | None = None

    def part(self, settings: dict[str, Any]) -> Any:
        """The part with these settings; UserError for those that it refuses."""
        if self._made is None or self._made[0] != settings:
            self._made = settings, self.make(**settings)
        return self._made[1]
