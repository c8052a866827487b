"""`Paper` and `Claim`: what a file under `papers/` says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["method", "diagnostic", "benchmark", "theory", "system", "survey", "baseline"]


@dataclass(frozen=True)
class Paper:
    """A published work: how it is found, and which slots its idea changes."""

    key: str
    title: str
    arxiv: str | None = None
    changes: tuple[str, ...] = ()
    kind: Kind = "method"
    loop: str = "on_policy"
    authors: str = ""
    year: int | None = None
    url: str | None = None


@dataclass(frozen=True)
class Claim:
    """A paper's central claim as an experiment: one treatment against the strongest stated baseline.

    `settings` are changes to both arms alike (steps, batch size); `dial` names the mechanism that the
    method exploits and the task settings that turn it, weakest first.
    """

    statement: str
    treatment: str
    control: str
    task: str
    metric: str
    better: Literal["higher", "lower"] = "higher"
    seeds: int = 8
    task_settings: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    dial: tuple[tuple[str, Mapping[str, Any]], ...] = ()
