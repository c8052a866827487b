"""What an agent's tools cost: calls for a problem, and right answers for each call, with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.lab import statistics
from partita.lab.evaluate import interval, rollout

METRICS = ("tool_calls", "tool_productivity")
COUNTED = "calls"  # the entry of a world's counts that says how often a tool was used


def productivity(right: ArrayLike, calls: ArrayLike, level: float = 0.95) -> statistics.Estimate:
    """Right answers for each tool call, over problems, with Fieller's interval.

        TP = sum_i right_i / sum_i calls_i          (Wang et al., 2025, arXiv:2504.14870)

    right, calls: (problems,), of the same trajectories; problems are drawn at random. The interval holds every ratio r
    for which the mean of right_i - r calls_i is not told from zero, as in `statistics.paired_effect`, and what is below
    0 is cut off; it is [0, inf) where the number of calls is not told from zero. Raises UserError if there are none.
    """
    used = statistics.numbers("calls", calls)
    if not used.any():
        raise UserError(
            f"tool_productivity: no tool was called in {len(used)} problems, so that right answers are divided by 0; "
            "use tool_calls or success"
        )
    found = statistics.paired_effect(right, used, "ratio", level)
    return statistics.Estimate(found.value, max(0.0, found.low), found.high)


def mean_calls(calls: ArrayLike, level: float = 0.95) -> statistics.Estimate:
    """Tool calls for a problem, with Student's interval; what is below 0 is cut off. calls: (problems,)."""
    used = statistics.numbers("calls", calls)
    found = statistics.paired_effect(used, np.zeros_like(used), "difference", level)
    return statistics.Estimate(found.value, max(0.0, found.low), found.high)


def counted(batch: Batch, task: str) -> np.ndarray:
    """The tool calls of every trajectory, (B,) float64; UserError where the world does not count them."""
    parts = [record["parts"] for record in batch.records or ()]
    if not any(COUNTED in part for part in parts):
        raise UserError(f"--metric: task {task} counts no tool calls; use --metric success, or --task lookup")
    return np.array([part.get(COUNTED, 0.0) for part in parts])


def rows(policy: Any, task: Any, metric: str, size: int, seed: int) -> list[dict[str, Any]]:
    """What `partita evaluate --metric tool_calls` or `tool_productivity` prints, of `size` greedy trajectories.

    Beside the productivity: calls and success, which make it up. Trajectories whose world broke are left out.
    """
    if not hasattr(task, "open"):
        raise UserError(f"--metric {metric}: task {task.part_name()} has no tools to call; use --metric success")
    batch = rollout(policy, task, size, seed)
    if batch.failed is not None:
        batch = batch[~batch.failed]
    calls = counted(batch, task.part_name())
    found = {"tool_calls": mean_calls(calls)}
    if metric == "tool_productivity":
        right = (batch.need("outcome") >= 1).double()
        _, mean, low, high = interval(right.tolist())
        found = {
            "tool_productivity": productivity(right.numpy(), calls),
            **found,
            "success": statistics.Estimate(mean, low, high),
        }
    return [{"metric": name, "k": None, "value": e.value, "low": e.low, "high": e.high} for name, e in found.items()]
