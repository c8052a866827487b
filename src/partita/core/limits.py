"""Limits of hyper-parameters, refused in one line that names the field, the value and what is expected."""

from __future__ import annotations

import math
from collections.abc import Iterable

from partita.core.errors import UserError


def check_least(name: str, value: float) -> None:
    """Refuse anything but a finite number of 0 or more."""
    if not 0 <= value < math.inf:
        raise UserError(f"{name}: expected 0 or more, got {value}")


def check_above(name: str, value: float) -> None:
    """Refuse anything but a finite number above 0."""
    if not 0 < value < math.inf:
        raise UserError(f"{name}: expected a number above 0, got {value}")


def check_share(name: str, value: float, above: bool = False) -> None:
    """Refuse anything but a number from 0 to 1; `above`: 0 too."""
    if not 0 <= value <= 1 or (above and value == 0):
        raise UserError(f"{name}: expected a number {'above 0, up to 1' if above else 'from 0 to 1'}, got {value}")


def check_count(name: str, value: int) -> None:
    """Refuse numbers below 1."""
    if not value >= 1:
        raise UserError(f"{name}: expected 1 or more, got {value}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse what is none of the choices."""
    known = tuple(choices)
    if value not in known:
        said = " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
        raise UserError(f"{name}: expected {said}, got {value!r}")
