"""Bad settings of an environment, refused where they are made."""

from __future__ import annotations

import math
from typing import Any

from partita.core.errors import UserError


def refuse(task: Any, field: str, value: Any, fix: str) -> UserError:
    """The error for one setting of a task: names the field, the value and the fix."""
    return UserError(f"task.{field}: {type(task).part_name()} got {value!r}; {fix}")


def check_positive(task: Any, *fields: str) -> None:
    """Raise UserError unless each field is a finite number above zero."""
    for field in fields:
        value = getattr(task, field)
        if not (math.isfinite(value) and value > 0):
            raise refuse(task, field, value, "give a number above 0")


def check_not_negative(task: Any, *fields: str) -> None:
    """Raise UserError unless each field is a finite number of at least zero."""
    for field in fields:
        value = getattr(task, field)
        if not (math.isfinite(value) and value >= 0):
            raise refuse(task, field, value, "give a number of at least 0")


def check_between(task: Any, field: str, low: float, high: float) -> None:
    """Raise UserError unless the field lies between `low` and `high`, both included."""
    value = getattr(task, field)
    if not low <= value <= high:
        raise refuse(task, field, value, f"give a number from {low:g} to {high:g}")


def check_finite(task: Any, *fields: str) -> None:
    """Raise UserError unless each field is a finite number."""
    for field in fields:
        value = getattr(task, field)
        if not math.isfinite(value):
            raise refuse(task, field, value, "give a finite number")
