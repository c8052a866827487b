"""Partita: policy optimisation, in parts.

`import partita` is light: torch is imported when a name that needs it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Batch": "partita.core.batch",
    "Outputs": "partita.core.batch",
    "Part": "partita.core.part",
    "Recipe": "partita.core.recipe",
    "Paper": "partita.core.paper",
    "Claim": "partita.core.paper",
    "Task": "partita.core.task",
    "Problem": "partita.core.task",
    "Outcome": "partita.core.task",
    "UserError": "partita.core.errors",
    "OnPolicy": "partita.loops.on_policy",
    "train": "partita.lab.train",
}
__all__ = sorted([*_HOME, "recipe", "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name == "recipe":
        from partita.core.registry import recipe

        return recipe
    raise AttributeError(f"module 'partita' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
