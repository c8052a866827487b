"""How well a run does its task: is it solved, has it learnt, is it learning still?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from partita.lab.doctor.case import Case, number
from partita.lab.doctor.windows import ends, medians, rose, window

SOLVED = 0.9  # of the best score: sampling at temperature 1, a policy that has solved its task still errs now and then
SMALLEST = 0.02  # of the way to the goal: less is no progress
THRESHOLDS = {"acrobot": -100.0, "mountain_car": -110.0, "mountain_car_continuous": 90.0}  # those of Gymnasium


@dataclass(frozen=True)
class Progress:
    """Scores of a run: medians of the first and last window and of the best, the goal if one is known, and the last
    evaluation.

    improved: the last third is better than the first; improving: the last quarter better than the one before;
    solved: None where no goal is known.
    """

    metric: str
    first: float
    last: float
    best: float
    goal: float | None
    solved: bool | None
    improved: bool
    improving: bool
    at_best: bool
    evaluated: float | None = None

    def __str__(self) -> str:
        after = "" if self.evaluated is None else f" (evaluation {self.evaluated:.3g})"
        return f"{self.metric} {self.first:.3g} at the start, {self.last:.3g} at the end{after}"

    @property
    def well(self) -> bool:
        """Solved; or, where no goal is known, better than at the start and as good as ever."""
        return self.solved if self.solved is not None else self.improved and self.at_best


def goal(case: Case) -> float | None:
    """The score from which the task counts as solved, or None.

    By the first that is known: nine tenths of all successes; `--until`; nine tenths of the way to the task's known
    optimum; the reward threshold of the environment.
    """
    if case.score == "success":
        return SOLVED
    until = number(case.setting("run.until"))
    if until is not None:
        return until
    task: Any = case.config.task if case.config is not None else None
    best = number(getattr(task, "optimal_value", None))
    if best is None and case.setting("task.part") == "cartpole":
        best = number(case.setting("task.max_steps"))
    if best is not None:
        return best - (1 - SOLVED) * abs(best)
    if case.setting("task.part") == "gym":
        return _gymnasium(str(case.setting("task.id")))
    return THRESHOLDS.get(str(case.setting("task.part")))


def _gymnasium(name: str) -> float | None:
    import gymnasium

    try:
        return number(gymnasium.spec(name).reward_threshold)
    except gymnasium.error.Error:
        return None


def progress(case: Case) -> Progress | None:
    """How well the run does its task, from its training scores and evaluations; None before its first score."""
    series = case.series(case.score)
    if not len(series):
        return None
    values, target = series.values, goal(case)
    first, last = ends(series)
    best = float(medians(values, min(window(len(values)), len(values))).max())
    later = [e for e in case.evaluations if e["step"] > 0]
    after = later[-1]["mean"] if later else None
    score = last if after is None else max(last, after)
    least = least_rise(first, target)
    third, quarter = max(len(values) // 3, 1), max(len(values) // 4, 1)
    improved = rose(values[:third], values[-third:], least) or evaluated_better(case, target)
    improving = rose(values[-2 * quarter : -quarter], values[-quarter:], least)
    solved = None if target is None else score >= target
    slack = 0.1 * (best - float(values.min()))
    return Progress(case.score, first, last, best, target, solved, improved, improving, last >= best - slack, after)


def least_rise(first: float, target: float | None) -> float:
    """The smallest rise of a score that counts: a fiftieth of the way to the goal, or of what there was to begin."""
    way = abs(first) if target is None else target - first
    return SMALLEST * max(way, 0.0)


def worse(case: Case) -> bool:
    """Whether the policy does the task worse than at the start: in the last third of training, or by evaluation."""
    values, rows = case.series(case.score).values, case.evaluations
    third = max(len(values) // 3, 1)
    before, after = values[:third], values[-third:]
    fell = bool(len(values)) and rose(-before, -after, SMALLEST * abs(float(before.mean())))
    return fell or (len(rows) > 1 and rows[-1]["high"] < rows[0]["low"])


def evaluated_better(case: Case, target: float | None) -> bool:
    """Whether the last evaluation is above the first, by the errors of both and a fiftieth of the way to the goal."""
    if len(case.evaluations) < 2:
        return False
    a, b = case.evaluations[0], case.evaluations[-1]
    errors = float(np.hypot(a["high"] - a["mean"], b["mean"] - b["low"]))
    return bool(b["mean"] - a["mean"] > max(errors, least_rise(a["mean"], target)))
