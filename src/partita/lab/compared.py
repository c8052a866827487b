"""What came of a comparison: scores with intervals, differences from the first arm, efficiency; data and a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from partita.core.errors import UserError
from partita.lab import efficiency, statistics, summaries
from partita.lab.checkpoint import write_text
from partita.lab.comparison import Comparison
from partita.lab.measures import SMOOTH
from partita.lab.statistics import Estimate

POINTS = 100  # of a curve
ENOUGH = 6  # seeds from which the sign-flip test can give p < 0.05
AXES = ("step", "samples", "seconds")
WORDS = {"holds": "better", "unclear": "no difference that these seeds can show", "fails": "worse"}

Curve = tuple[list[float], list[float]]


def summary(comparison: Comparison) -> dict[str, Any]:
    """Everything that a reader asks of a finished comparison, as plain numbers; written to `summary.json`.

    arms: for each its values by seed, the score before training, mean and interquartile mean, efficiency, with 95%
    intervals. against: for each arm but the first its paired difference from the first, with intervals that are right
    all at once and Holm's p, and the probability of improvement over it. Intervals without an end hold None.
    """
    values = comparison.values()
    labels = list(values)
    results = comparison.results()
    bounds = (0.0, 1.0) if is_share(comparison.metric) else (-math.inf, math.inf)
    arms: dict[str, dict[str, Any]] = {}
    for label in labels:
        mine = [r for r in results if r["arm"] == label]
        before = [r["before"]["mean"] for r in mine if r.get("before")]
        arms[label] = {
            "values": values[label],
            "before": sum(before) / len(before) if before and comparison.evaluated else None,
            "mean": triple(mean(values[label]), bounds),
            "iqm": triple(summaries.iqm_estimate(values[label])),
            "steps": [r["steps"] for r in mine],
            "seconds": [round(r["seconds"], 3) for r in mine],
            "spent": [r["spent"] for r in mine],
        }
    for axis in AXES[1:]:
        for label, found in _efficiency(comparison, axis).items():
            arms[label] |= found
    found = {
        "metric": comparison.metric, "better": comparison.better, "threshold": comparison.threshold,
        "task": next(iter(comparison.arms.values())).task.part_name(), "seeds": list(comparison.seeds),
        "baseline": labels[0], "test": statistics.paired_test(len(comparison.seeds)),
        "arms": arms,
        "against": _against(values, comparison.better, bounds[1] - bounds[0]),
    }  # fmt: skip
    write_text(comparison.folder / "summary.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    return found


def _against(values: Mapping[str, Sequence[float]], better: str, most: float) -> dict[str, Any]:
    """Every arm but the first against the first; no difference is beyond `most`."""
    (_, base), *others = values.items()
    if not others:
        return {}
    sign = 1.0 if better == "higher" else -1.0
    together = statistics.simultaneous(base, *(mine for _, mine in others))
    raw = [statistics.paired_p(mine, base) for _, mine in others]
    out = {}
    for (label, mine), estimate, p, adjusted in zip(others, together, raw, statistics.holm(raw), strict=True):
        wins = summaries.probability_of_improvement([sign * v for v in mine], [sign * v for v in base])
        direction: Literal["higher", "lower"] = "higher" if better == "higher" else "lower"
        out[label] = {
            "difference": triple(estimate, (-most, most)),
            "verdict": statistics.verdict(estimate, direction),
            "p": float(adjusted),
            "p_alone": p,
            "improvement": triple(wins),
        }
    return out


def mean(values: Sequence[float]) -> Estimate:
    """The mean with Student's 95% interval."""
    return statistics.paired_effect(values, [0.0] * len(values))


def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1 by what it is."""
    name, _, how = metric.partition(":")
    return name == "success" and how != "sum" and not how.startswith("to=")


def triple(estimate: Estimate, bounds: tuple[float, float] = (-math.inf, math.inf)) -> list[float | None]:
    """[value, low, high], cut at what is possible, with None where an end is not finite."""
    if not math.isfinite(estimate.low):
        return [_finite(estimate.value), None, None]
    return [float(v) for v in (estimate.value, max(estimate.low, bounds[0]), min(estimate.high, bounds[1]))]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def curve_name(comparison: Comparison) -> str:
    """The metric of the steps that learning curves show: that of the comparison where it is one."""
    return comparison.metric.partition(":")[0]


def curves(comparison: Comparison, axis: str) -> dict[str, list[Curve]]:
    """The learning curves of every arm that has one for each seed; empty where an arm has none."""
    found = {label: comparison.curves(label, curve_name(comparison), axis) for label in comparison.arms}
    return found if all(len(x) > 1 for held in found.values() for x, _ in held) else {}


def _efficiency(comparison: Comparison, axis: str) -> dict[str, dict[str, Any]]:
    """Area under the training curves over the range that all runs cover, and the time to the threshold."""
    table = curves(comparison, axis)
    if not table:
        return {}
    every = [curve for held in table.values() for curve in held]
    start, stop = max(x[0] for x, _ in every), min(x[-1] for x, _ in every)
    out: dict[str, dict[str, Any]] = {label: {} for label in table}
    for label, held in table.items():
        if start < stop:
            areas = [efficiency.area(*part(curve, start, stop)) for curve in held]
            out[label][f"area_{axis}"] = triple(mean(areas))
        if comparison.threshold is not None:
            times = [_time(comparison, curve) for curve in held]
            out[label][f"time_to_{axis}"] = {
                "median": _finite(float(np.median(times))),
                "reached": sum(math.isfinite(t) for t in times),
                "values": [_finite(t) for t in times],
            }
    return out


def _time(comparison: Comparison, curve: Curve) -> float:
    """Where the running mean over ten steps first reaches the threshold."""
    assert comparison.threshold is not None
    better: Literal["higher", "lower"] = "higher" if comparison.better == "higher" else "lower"
    return efficiency.time_to(*curve, comparison.threshold, better, smooth=min(SMOOTH, len(curve[0])))


def part(curve: Curve, start: float, stop: float) -> Curve:
    """The part of a curve between two places, with its ends interpolated."""
    x, y = curve
    first, last = (float(v) for v in np.interp([start, stop], x, y))
    inside = [(a, b) for a, b in zip(x, y, strict=True) if start < a < stop]
    return [start, *(a for a, _ in inside), stop], [first, *(b for _, b in inside), last]


def bands(comparison: Comparison, axis: str, points: int = POINTS, smooth: bool = False) -> dict[str, dict[str, Any]]:
    """For each arm the mean learning curve over `axis`, with a pointwise 95% band: x, mean, low, high.

    smooth: each seed's curve is first replaced by its running mean over a twentieth of the run. Where there is one
    seed the band is None.
    """
    out = {}
    for label, held in curves(comparison, axis).items():
        try:
            x, rows = _aligned([smoothed(c) if smooth else c for c in held], points)
        except UserError:  # no place that all seeds cover
            continue
        found = dict(zip(("mean", "low", "high"), efficiency.curve_band(rows), strict=True))
        out[label] = {k: [None if not math.isfinite(v) else float(f"{v:.5g}") for v in c]
                      for k, c in {"x": x, **found}.items()}  # fmt: skip
    return out


def _aligned(held: Sequence[Curve], points: int) -> tuple[Any, Any]:
    """The curves at up to `points` places: their own where they share them, since means of neighbours vary less."""
    if any(x != held[0][0] for x, _ in held):
        return efficiency.align(held, points)
    x, rows = efficiency.align(held)
    kept = np.unique(np.linspace(0, len(x) - 1, points).round().astype(int))
    return x[kept], rows[:, kept]


def smoothed(curve: Curve) -> Curve:
    """The centred running mean over about a twentieth of the curve; shorter at its ends."""
    x, y = curve
    half = len(y) // 40
    sums = np.concatenate([[0.0], np.cumsum(y)])
    ends = [(max(0, i - half), min(len(y), i + half + 1)) for i in range(len(y))]
    return x, [float((sums[b] - sums[a]) / (b - a)) for a, b in ends]


def table(found: Mapping[str, Any]) -> list[str]:
    """The summary as lines for a terminal."""
    arms, against, seeds = found["arms"], found["against"], len(found["seeds"])
    heads = ["", "mean", "interquartile mean", *([f"difference from {found['baseline']}"] if against else [])]
    heads += ["wall-clock"]
    rows = [heads]
    for label, about in arms.items():
        cells = [label, shown(about["mean"]), shown(about["iqm"])]
        if against:
            cells.append(shown(against[label]["difference"]) if label in against else "")
        rows.append([*cells, f"{sum(about['seconds']) / seeds:.1f} s"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    paired = f"{seeds} paired seeds; 95% intervals" if seeds > 1 else "1 seed: no interval"
    out = [f"{found['metric']} on {found['task']}, {found['better']} is better, {paired}", ""]
    out += ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    out += [""] if against else []
    for label, row in against.items():
        out.append(
            f"{label} against {found['baseline']}: {WORDS[row['verdict']]}; probability of improvement "
            f"{shown(row['improvement'])}, p {row['p']:.3g} ({'Holm, ' if len(against) > 1 else ''}{found['test']})"
        )
    if against and (told := few(seeds)):
        out.append(told)
    for label, about in arms.items():
        for axis, unit in (("samples", "samples"), ("seconds", "s")):
            if (times := about.get(f"time_to_{axis}")) is not None:
                goal = f"{label}: {found['metric'].partition(':')[0]} {found['threshold']:g}"
                if times["median"] is None:
                    out.append(f"{goal} reached by {times['reached']} of {seeds} seeds")
                else:
                    when = f"{times['median']:.4g} {unit}"
                    out.append(f"{goal} reached after {when} (median; {times['reached']} of {seeds} seeds)")
    return out


def few(seeds: int) -> str:
    """What so few seeds cannot show; nothing where they are enough."""
    if seeds >= ENOUGH or seeds == 1:
        return ""
    least = 2.0 ** (1 - seeds)
    return f"{seeds} seeds are few: no p below {least:.3g} is possible, and intervals trust that differences are normal"


def shown(estimate: Sequence[float | None]) -> str:
    """0.412 [0.380, 0.440]; the value alone where there is no interval."""
    value, low, high = (None if v is None else number(v) for v in estimate)
    return f"{value} [{low}, {high}]" if low is not None and high is not None else f"{value}"


def number(value: float) -> str:
    """Three decimals for shares, fewer for large numbers."""
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 10_000 else f"{value:.4g}"
    return text.removeprefix("-") if float(text) == 0 else text
