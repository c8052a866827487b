"""Evaluation: greedy (or sampled) performance on fresh problems, with an interval."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.policy import Policy
from partita.core.task import Problem, Task
from partita.estimators.margins import response_logp
from partita.estimators.masked import last_value
from partita.loops.run import Generators
from partita.parts.resample import offered
from partita.parts.rollout import Sample
from partita.tasks.preferences.base import PreferenceTask

SAMPLES = 8  # how many responses are kept for people to read


@dataclass(frozen=True)
class Evaluation:
    """A mean with its 95% interval: Wilson's for success (every score 0 or 1), Student's t otherwise.

    metric: "success", "return", or "accuracy" where only given responses can be compared. length: mean steps or tokens.
    samples: the first few trajectories in words. parts: means of what the verifier says besides the score. drift: how
    far the policy has come from another, where that was asked, in nats a trajectory.
    """

    metric: str
    mean: float
    low: float
    high: float
    count: int
    length: float
    samples: tuple[dict[str, Any], ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    drift: float | None = None

    def __str__(self) -> str:
        score = f", normalised {self.parts['normalised']:.3f}" if "normalised" in self.parts else ""
        return f"{self.metric} {self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] over {self.count}{score}"


def interval(scores: list[float]) -> tuple[str, float, float, float]:
    """Metric name, mean, and 95% interval of scores."""
    from scipy.special import ndtri, stdtrit  # scipy.stats takes three times as long to import

    count, mean = len(scores), sum(scores) / len(scores)
    if set(scores) <= {0.0, 1.0}:
        z = float(ndtri(0.975))
        centre, width = (2 * count * mean + z**2) / (2 * (count + z**2)), z / (2 * (count + z**2))
        half = width * math.sqrt(4 * count * mean * (1 - mean) + z**2)
        return "success", mean, centre - half if mean > 0 else 0.0, centre + half if mean < 1 else 1.0
    spread = float(torch.tensor(scores, dtype=torch.float64).std()) if count > 1 else float("inf")
    half = float(stdtrit(max(count - 1, 1), 0.975)) * spread / count**0.5 if spread else 0.0
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


def evaluate(
    policy: Policy,
    task: Task,
    size: int,
    seed: int,
    greedy: bool = True,
    first: Mapping[str, torch.Tensor] | None = None,
) -> Evaluation:
    """Performance of the policy on `size` fresh problems or episodes; where a task cannot judge, its `agreement`.

    first: the weights of another policy, such as that before training, from which to measure, over what is sampled,

        drift = mean over trajectories of sum_t log(pi(a_t|s_t) / pi_first(a_t|s_t))
    """
    task = task.met(policy)
    if isinstance(task, PreferenceTask) and not task.judged:
        return agreement(policy, task, size, seed)
    batch = rollout(policy, task, size, seed, greedy)
    metric, mean, low, high = interval(batch.need("outcome").tolist())
    samples = tuple(batch.records[:SAMPLES]) if batch.records is not None else ()
    length = float(batch.lengths.float().mean())
    drift = None if first is None or greedy else _drift(policy, batch, first)
    parts = _parts(batch)
    logged: Any = task if hasattr(task, "normalised") else None  # which knows what its returns mean
    if logged is not None and None not in logged.reference.values():
        parts["normalised"] = float(logged.normalised(mean))
    return Evaluation(metric, mean, low, high, len(batch), length, samples, parts, drift)


@torch.no_grad()
def _drift(policy: Policy, batch: Batch, first: Mapping[str, torch.Tensor], chunk: int = 256) -> float:
    """KL(pi || pi_first) of whole trajectories, from samples of pi, in nats."""
    total = 0.0
    for i in range(0, len(batch), chunk):
        some = batch[i : i + chunk]
        with policy.using(first):
            other = policy.evaluate(some).logp
        total += float(((some.need("logp") - other) * some.mask).sum())
    return total / len(batch)


def _parts(batch: Batch) -> dict[str, float]:
    """Means of the verifier's parts that every trajectory has."""
    rows = [record.get("parts") or {} for record in batch.records or () if isinstance(record, Mapping)]
    names = set(rows[0]).intersection(*rows) if rows else set()
    return {name: sum(float(row[name]) for row in rows) / len(rows) for name in sorted(names)}


def evaluable(task: Task) -> bool:
    """Whether there is anything to evaluate on: an environment, a judge, or comparisons that are held out."""
    if isinstance(task, PreferenceTask):
        return task.judged or bool(_contests(task, task.held(sys.maxsize, torch.Generator())))
    return getattr(task, "evaluable", True)


@torch.no_grad()
def agreement(policy: Any, task: PreferenceTask, size: int, seed: int, chunk: int = 16) -> Evaluation:
    """How often the policy agrees with the comparisons that a task holds out, up to `size` prompts.

        accuracy = mean over prompts of the share of pairs with  s(y_w) > s(y_l),    s = mean_t log pi(y_t | x, y_<t)

    or s the value at the last token where the policy has a value head (a reward model). Responses that are labelled one
    by one make pairs in order, the k-th desirable with the k-th undesirable, each pair counting as a prompt. Interval:
    Wilson's, at the effective number of prompts where these hold several pairs. Raises UserError where nothing is held
    out.
    """
    problems = task.held(size, Generators(seed)["evaluation/problems"])
    contests = _contests(task, problems)
    if not contests:
        raise UserError(f"held_out: task {task.part_name()} holds no comparison out; give a larger --task.held-out")
    marks: list[float] = []
    lengths: list[int] = []
    texts: list[tuple[str, str]] = []
    for i in range(0, len(problems), chunk):
        pairs, _ = offered(policy, task, problems[i : i + chunk])
        batch, out = pairs.batch, policy.evaluate(pairs.batch)
        by = last_value(out.need("value"), batch.mask) if policy.has_value else None
        marks += (response_logp(out.logp, batch.mask, mean=True) if by is None else by).tolist()
        lengths += batch.lengths.tolist()
        texts += [(r["prompt"], r["response"]) for r in batch.records or ()]
    scores = [sum(marks[w] > marks[l] for w, l in pairs) / len(pairs) for pairs in contests]
    metric, mean, low, high = interval(scores)
    if metric != "success":
        from partita.lab.passk import share

        found = share(scores)
        mean, low, high = found.value, found.low, found.high
    samples = tuple(
        {
            "prompt": texts[w][0], "response": texts[w][1], "score": float(marks[w] > marks[l]),
            "why": f"{marks[w]:.3f}, the other response {marks[l]:.3f}",
        }
        for w, l in (pairs[0] for pairs in contests[:SAMPLES])
    )  # fmt: skip
    return Evaluation("accuracy", mean, low, high, len(scores), sum(lengths) / len(lengths), samples)


def _contests(task: PreferenceTask, problems: Sequence[Problem]) -> list[list[tuple[int, int]]]:
    """The pairs of each problem, the better row first; rows count the responses of all problems."""
    out: list[list[tuple[int, int]]] = []
    by_label: tuple[list[int], list[int]] = ([], [])
    start = 0
    for problem in problems:
        given = task.given(problem)
        pairs = [(i, j) if prefer > 0.5 else (j, i) for i, j, prefer, _ in given.compared if prefer != 0.5]
        if pairs:
            out.append([(start + i, start + j) for i, j in pairs])
        for row, label in enumerate(given.labels, start):
            if label in (0, 1):
                by_label[int(label)].append(row)
        start += len(given.responses)
    return out + [[pair] for pair in zip(by_label[1], by_label[0], strict=False)]
