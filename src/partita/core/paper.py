"""`Paper`, `Claim`, `Identity` and `Figure`: what a file under `papers/` says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
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

    treatment, control: recipes; both arms get `settings`, named as on the command line ({"steps": 60,
    "task.level": 2, "policy.model": "tiny-1.5m"}), then what tuning found for each.
    metric: what is compared (`partita.lab.measures`), or `measure`, a function that takes the folder of a finished run
    and returns a number. better: which way the treatment should differ; "equal" claims that it does not by `threshold`.
    kind, threshold: the mean paired difference against 0, or the ratio of means against 1, unless another is named.
    dial: (name, ((label, settings), ...)), the mechanism that the method exploits, from absent to strongest; the
    verdict is on the strongest, and whether the effect grows from the first to the last is reported beside it.
    search: what is tuned in both arms, {"lr": (3e-4, 1e-3, 3e-3)}; search_treatment, search_control: in one of them;
    both arms must come to the same number of trials. tuned_by: a measure to tune by, the higher the better, or the
    entry of what the experiment returns (None: the evaluation after training, or its value, as the claim has it).
    experiment: instead of recipes, a function (arm, seed, **settings) -> number, or {"value": number, ...}.
    analysis: what the evidence taught, in words; shown beside it.
    """

    statement: str
    treatment: str
    control: str
    task: str
    metric: str = "success"
    better: Literal["higher", "lower", "equal"] = "higher"
    kind: Literal["difference", "ratio"] = "difference"
    threshold: float | None = None
    seeds: int = 8
    settings: Mapping[str, Any] = field(default_factory=dict)
    dial: tuple[str, tuple[tuple[str, Mapping[str, Any]], ...]] | None = None
    search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    search_treatment: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    search_control: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    tuned_by: str | None = None
    measure: Callable[[Path], Any] | None = None
    experiment: Callable[..., Any] | None = None
    analysis: str = ""


@dataclass(frozen=True)
class Identity:
    """A claim whose answer is known: `measure(seed)` gives a number that must be `expected` within `tolerance`.

    relative: the tolerance is a share of the expected number. With several seeds, every one must agree.
    """

    statement: str
    measure: Callable[[int], float]
    expected: float
    tolerance: float
    relative: bool = False
    seeds: int = 1
    analysis: str = ""


@dataclass(frozen=True)
class Figure:
    """Lines that were measured, beside those that the theory draws.

    x: where lines are told. measure: of a seed, by name the values of each line at x. theory: by name, a value of x.
    log: both axes are logarithmic. Held under `FIGURES` of the paper's file; `partita figure KEY` measures them.
    """

    title: str
    x_name: str
    y_name: str
    x: tuple[float, ...]
    measure: Callable[[int], Mapping[str, Any]]
    theory: Mapping[str, Callable[[float], float]] = field(default_factory=dict)
    log: bool = False
    seeds: int = 8
