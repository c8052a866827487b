"""A made-up library of any size: papers that really import, an index of them, and evidence of every shape."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

from partita.core import registry

PAPER = '''"""Work number {n} (Author, 2025), arXiv:2501.{n:05d}.

Changes GRPO in one slot: `credit`. The return of a trajectory against {n} times the mean of its group.

    A_i = R_i - {n} * mean(R)        (eq. {n})
"""

from dataclasses import dataclass

from torch import Tensor

from partita.core.batch import Batch
from partita.core.paper import Claim, Paper
from partita.papers.baselines.grpo import GRPO
from partita.parts.credit import GroupCredit, spread, trajectory_return

PAPER = Paper(
    key="{key}", title="Work number {n}", arxiv="2501.{n:05d}", authors="Author", year=2025, changes=("credit",)
)


@dataclass(frozen=True)
class Made{n:03d}(GroupCredit):
    """Return minus a multiple of the mean (eq. {n}).

        A_i = R_i - {n} * mean(R)

    given to every step of trajectory i.
    """

    weight: float = {n}.0

    def __call__(self, batch: Batch) -> Tensor:
        total = trajectory_return(batch)
        return spread(total - self.weight * total.mean(), batch)  # "quoted" & <marked>


RECIPES = {{"{key}": GRPO.but(credit=Made{n:03d}())}}
'''
CLAIM = """
CLAIM = Claim(
    statement="statement of work {n}", treatment="{key}", control="grpo", task="arithmetic", metric="success",
)
"""


def comparison(key: str, n: int = 1, **changes: Any) -> dict[str, Any]:
    """An entry with everything in it."""
    draw = random.Random(n)
    control = [round(draw.uniform(0.3, 0.6), 4) for _ in range(8)]
    treatment = [round(v + draw.uniform(-0.05, 0.25), 4) for v in control]
    settings = []
    for i, label in enumerate(("0%", "25%", "50%", "75%")):
        arms = {"treatment": [v + 0.02 * i for v in treatment], "control": control}
        effect = 0.02 + 0.04 * i
        settings.append({"label": label, "values": arms, "effect": effect, "ci": [effect - 0.05, effect + 0.05]})
    x = list(range(0, 3000, 10))

    def curve(top: float) -> dict[str, list[float]]:
        mean = [top * v / (400 + v) for v in x]
        return {"x": x, "mean": mean, "low": [v - 0.05 for v in mean], "high": [v + 0.05 for v in mean]}

    return {
        "key": key, "statement": f"statement of work {n}", "treatment": key, "control": "grpo", "task": "arithmetic",
        "metric": "success", "better": "higher", "kind": "difference", "threshold": 0.0,
        "verdict": ("holds", "unclear", "fails")[n % 3],
        "rule": "holds when the 95% interval of the mean paired difference lies above 0", "effect": 0.12,
        "ci": [0.05, 0.2], "seeds": 8, "date": "2026-11-20",
        "values": {"treatment": treatment, "control": control}, "seed_list": list(range(8)),
        "dial": {
            "name": "repeated states", "settings": settings,
            "growth": {"effect": 0.12, "ci": [0.03, 0.21], "verdict": "holds"},
        },
        "curves": {"x_name": "steps", "metric": "success", "treatment": curve(0.8), "control": curve(0.6)},
        "tuning": {
            "trials": 9, "seeds": [1000, 1001], "search": {"lr": [0.0003, 0.001]}, "treatment": {"lr": 0.001},
            "control": {"lr": 0.0003}, "metric": "success",
        },
        "settings": {"steps": 60, "policy.model": "tiny-0.3m"}, "task_settings": {"level": 2}, "commit": "abc1234",
        "dirty": False, "versions": {"torch": "2.13.0", "partita": "0.1.0"},
        "machine": {"platform": "Linux", "cores": 2}, "duration": 123.4, "note": "The gain comes from repeated states.",
        **changes,
    }  # fmt: skip


def identity(key: str, n: int = 1, **changes: Any) -> dict[str, Any]:
    """An entry of theory."""
    return {
        "key": key, "statement": f"identity of work {n}", "kind": "identity", "expected": [1.0, 0.5, 0.25],
        "measured": [1.0 + 1e-9, 0.5, 0.25 - 2e-9], "tolerance": 1e-6, "verdict": "holds",
        "rule": "every number within the tolerance", "commit": "abc1234", "date": "2026-11-20", **changes,
    }  # fmt: skip


def shapes(key: str, n: int) -> list[dict[str, Any]]:
    """Evidence whose shape depends on the number; none for every fifth."""
    return (
        [comparison(key, n)],
        [comparison(key, n, kind="ratio", threshold=1.0, effect=1.31, ci=[1.1, 1.5], dial=None, curves=None)],
        [identity(key, n)],
        [comparison(key, n), comparison(key, n + 1, statement="a second statement", dial=None, dirty=True)],
        [],
    )[n % 5]


def claims(n: int) -> bool:
    """Whether a work states a claim: all but the last of ten."""
    return n % 10 != 9


def library(folder: Path, count: int, package: str = "made_papers") -> dict[str, Any]:
    """Write `count` papers as a package in `folder` (to be put on the path) and return the index that holds them."""
    index = copy.deepcopy(registry.index())
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    for n in range(count):
        key = f"made_{n:03d}"
        (folder / package / f"{key}.py").write_text((PAPER + CLAIM * claims(n)).format(n=n, key=key))
        module = f"{package}.{key}"
        index["parts"]["credit"][f"made{n:03d}"] = {
            "target": f"{module}:Made{n:03d}", "paper": key, "summary": "Return minus a multiple of the mean.",
            "domains": ["control", "language"],
        }  # fmt: skip
        index["recipes"][key] = {"target": f"{module}:RECIPES", "paper": key, "loop": "on_policy"}
        index["papers"][key] = {
            "title": f"Work number {n}", "arxiv": f"2501.{n:05d}", "kind": "method", "family": f"family_{n % 7}",
            "loop": "on_policy", "recipes": [key], "changes": ["credit"], "module": module,
            "summary": f"Work number {n} (Author, 2025).",
            "claim": (claims(n) and {
                "statement": f"statement of work {n}", "treatment": key, "control": "grpo", "task": "arithmetic",
                "metric": "success",
            }) or None,
        }  # fmt: skip
    return index


def evidence(folder: Path, count: int) -> Path:
    """Write the evidence of `count` works as files; none where its list is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        key = f"made_{n:03d}"
        if entries := shapes(key, n):
            (folder / f"{key}.json").write_text(json.dumps(entries))
    return folder
