"""Packages that some worlds need and that do not come with ours."""

from __future__ import annotations

import importlib.util

from partita.core.errors import UserError


def needed(module: str, task: str) -> None:
    """Raise UserError, saying what to install, where a module is missing."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"task {task}: {module} is not installed; pip install 'partita[worlds]'")
