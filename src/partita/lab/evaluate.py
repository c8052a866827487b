"""Evaluation: greedy (or sampled) performance on fresh problems, with an interval."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from partita.core.batch import Batch
from partita.core.policy import Policy
from partita.core.task import Task
from partita.loops.run import Generators
from partita.parts.rollout import Sample

SAMPLES = 8  # how many responses are kept for people to read


@dataclass(frozen=True)
class Evaluation:
    """A mean with its 95% interval: Wilson's for success (every score 0 or 1), Student's t otherwise.

    metric: "success" or "return". length: mean steps or tokens. samples: the first few trajectories in words.
    """

    metric: str
    mean: float
    low: float
    high: float
    count: int
    length: float
    samples: tuple[dict[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.metric} {self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] over {self.count}"


def interval(scores: list[float]) -> tuple[str, float, float, float]:
    """Metric name, mean, and 95% interval of scores."""
    from scipy import stats

    count, mean = len(scores), sum(scores) / len(scores)
    if set(scores) <= {0.0, 1.0}:
        found = stats.binomtest(int(sum(scores)), count).proportion_ci(method="wilson")
        return "success", mean, float(found.low), float(found.high)
    spread = float(torch.tensor(scores, dtype=torch.float64).std()) if count > 1 else float("inf")
    half = float(stats.t.ppf(0.975, max(count - 1, 1))) * spread / count**0.5 if spread else 0.0
    return "return", mean, mean - half, mean + half


def rollout(policy: Any, task: Any, size: int, seed: int, greedy: bool = True, chunk: int = 256) -> Batch:
    """`size` trajectories of fresh problems, drawn from streams of their own (training is not disturbed)."""
    streams = Generators(seed)
    problems = task.problems(size, streams["evaluation/problems"])
    if task.domain == "control":
        return Sample().sample(policy, task, problems, 1, streams["evaluation/actions"], greedy)
    batches = [
        Sample().sample(policy, task, problems[i : i + chunk], 1, streams["evaluation/tokens"], greedy)
        for i in range(0, size, chunk)
    ]
    return replace(Batch.cat(batches), group=torch.arange(size))


def evaluate(policy: Policy, task: Task, size: int, seed: int, greedy: bool = True) -> Evaluation:
    """Performance of the policy on `size` fresh problems or episodes."""
    batch = rollout(policy, task, size, seed, greedy)
    metric, mean, low, high = interval(batch.need("outcome").tolist())
    samples = tuple(batch.records[:SAMPLES]) if batch.records is not None else ()
    return Evaluation(metric, mean, low, high, len(batch), float(batch.lengths.float().mean()), samples)
