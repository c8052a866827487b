"""Rules on what there is to learn from: entropy, groups, gradients, the critic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from partita.core.errors import UserError
from partita.core.spaces import Box, Discrete, MultiDiscrete, Space
from partita.lab.doctor.case import Case, Series
from partita.lab.doctor.finding import Rule, Severity, Verdict
from partita.lab.doctor.progress import progress
from partita.lab.doctor.windows import LEAST, ends, medians, spell


@dataclass(frozen=True)
class EntropyCollapse(Rule):
    """Entropy of the policy, nats per action, median over a window, while the task is not solved.

    share: a tenth of the first entropy (in control with discrete actions, of a uniform choice). Performance is bought
    with entropy, R = -a exp(H) + b, and its ceiling is reached as H nears zero (Cui et al., 2025, arXiv:2505.22617,
    section 2). floor: 1e-3 nats, where nine actions in ten thousand are not the first choice. drop: for continuous
    actions, whose entropy has no zero, ln 10 nats a dimension: a tenth of the deviation.
    """

    share: float = 0.1
    floor: float = 1e-3
    drop: float = math.log(10)
    explanation = "The policy has stopped exploring before the task is solved: its samples no longer differ."

    def __call__(self, case: Case) -> Verdict:
        series = case.series("entropy")
        if len(series) < LEAST:
            return self.missing(case, "entropy", "the policy does not tell", LEAST)
        start, limit = self.limits(case, series)
        held = spell(series, lambda x: x < limit, highest=False)
        seen = progress(case)
        _, last = ends(series)
        numbers = f"{start:.3g} nats per action at the start, median {last:.3g} at the end (limit {limit:.3g})"
        if held is None or not held.still:
            return self.passed(numbers)
        if seen is not None and seen.well:
            return self.passed(f"{numbers}, and the task is done ({seen})")
        severity: Severity = "warning" if seen is not None and seen.improving else "problem"
        return self.found(severity, held.latest, f"{numbers}; {seen}")

    def limits(self, case: Case, series: Series) -> tuple[float, float]:
        """The entropy to begin with, and the one that is too low."""
        start, space = float(series.values[0]), _space(case)
        if isinstance(space, Box) or (space is None and start < 0):
            return start, start - self.drop * (space.size if isinstance(space, Box) else 1)
        choices = {Discrete: lambda s: (s.n,), MultiDiscrete: lambda s: s.choices}
        if space is not None:
            start = max(start, sum(math.log(n) for n in choices[type(space)](space)))
        return start, max(self.share * start, self.floor)


def _space(case: Case) -> Space | None:
    """The action space in control; None in language, and where the environment cannot be made here."""
    try:
        return getattr(case.config.task, "action_space", None) if case.config is not None else None
    except UserError:
        return None


@dataclass(frozen=True)
class DegenerateGroups(Rule):
    """Share of groups whose rewards are all equal, median over a window, while the task is not solved.

    Such groups have no advantage (Yu et al., 2025, arXiv:2503.14476, section 3.2). limit: 0.75, where the batch
    is in effect a quarter of what was sampled. severe: 0.95, a twentieth.
    """

    limit: float = 0.75
    severe: float = 0.95
    explanation = "Most groups are all right or all wrong, and teach nothing: the problems are too easy or too hard."

    def __call__(self, case: Case) -> Verdict:
        series = case.series("degenerate")
        if len(series) < LEAST:
            return self.missing(case, "degenerate", "no groups (group_size 1), or an older run", LEAST)
        held = spell(series, lambda x: x >= self.limit)
        _, last = ends(series)
        if held is None:
            return self.passed(f"median share {last:.2f} (limit {self.limit:g})")
        seen = progress(case)
        if seen is not None and seen.well:
            return self.passed(f"median share {last:.2f}, but the task is done ({seen})")
        stuck = held.still and not (seen is not None and seen.improved)
        severity: Severity = "problem" if stuck or (held.still and held.worst >= self.severe) else "warning"
        return self.found(
            severity, held.since,
            f"median share up to {held.worst:.2f} of the groups (limit {self.limit:g}), {last:.2f} at the end, "
            f"in {held.share:.0%} of the run; {seen}",
        )  # fmt: skip


@dataclass(frozen=True)
class DeadGradients(Rule):
    """Norm of the gradient before clipping, median over a window, while the task is not solved.

    limit: 1e-6. Norms of live runs lie between 1e-2 and 1e2; below this Adam divides rounding by its epsilon. Steps
    from which every trajectory was dropped count as zero.
    """

    limit: float = 1e-6
    explanation = "Nothing reaches the weights: the advantages are zero, or the policy is saturated."

    def __call__(self, case: Case) -> Verdict:
        series = gradients(case)
        if len(series) < LEAST:
            return self.missing(case, "grad_norm", "the loop does not log it", LEAST)
        held = spell(series, lambda x: x < self.limit, highest=False)
        _, last = ends(series)
        if held is None:
            return self.passed(f"median norm {last:.2g} (limit {self.limit:g})")
        seen = progress(case)
        if seen is not None and seen.well:
            return self.passed(f"median norm {last:.2g}, but the task is done ({seen})")
        said = f"median norm down to {held.worst:.2g} (limit {self.limit:g}), in {held.share:.0%} of the run; {seen}"
        return self.found("problem" if held.still else "warning", held.since, said)


def gradients(case: Case) -> Series:
    """Gradient norms; 0 for the steps that were left with no trajectory."""
    held = case.series("grad_norm")
    empty = case.series("kept")
    none = empty.steps[empty.values == 0]
    steps, values = np.concatenate((held.steps, none)), np.concatenate((held.values, np.zeros(len(none))))
    order = steps.argsort(kind="stable")
    return Series(steps[order], values[order])


@dataclass(frozen=True)
class GradientSpikes(Rule):
    """Steps whose gradient norm is far above the median of the steps around it (ten on either side).

    times: 10. least: 3 such steps, or `often` of the run if that is more: a spike now and then is what clipping is
    for. A problem where gradients are not clipped. A level that shifts and stays is no spike; a gradient that is
    zero counts for no level.
    """

    times: float = 10.0
    least: int = 3
    often: float = 0.01
    around: int = 10
    explanation = "Single batches dominate what is learnt: outliers among rewards, ratios or advantages."

    def __call__(self, case: Case) -> Verdict:
        held = case.series("grad_norm")
        series = Series(held.steps[held.values > 0], held.values[held.values > 0])
        size = 2 * self.around + 1
        if len(series) < size:
            return self.skipped(f"`grad_norm` is above zero at {len(series)} steps, and {size} are needed")
        level = medians(np.pad(series.values, self.around, mode="reflect"), size)
        high = series.values > self.times * level
        worst = float((series.values / level).max())
        if high.sum() < max(self.least, self.often * len(series)):
            return self.passed(f"at most {worst:.1f} times the median around it (limit {self.times:g})")
        clipped = case.setting("max_grad_norm") is not None
        steps = ", ".join(str(s) for s in series.steps[high][:6]) + (" ..." if high.sum() > 6 else "")
        return self.found(
            "warning" if clipped else "problem", int(series.steps[high][0]),
            f"{int(high.sum())} of {len(series)} steps above {self.times:g} times the median around them, up to "
            f"{worst:.0f} times (steps {steps}); median norm {float(np.median(series.values)):.3g}, "
            f"{'clipped at ' + str(case.setting('max_grad_norm')) if clipped else 'not clipped'}",
        )  # fmt: skip


@dataclass(frozen=True)
class UselessCritic(Rule):
    """Explained variance of the critic, median over the second half of the run, while the task is not solved.

    limit: 0, where it predicts no better than a constant, by the definition of the measure. severe: -0.5: it adds
    half as much variance as the returns have. steps: 20, since every critic starts at zero.
    """

    limit: float = 0.0
    severe: float = -0.5
    steps: int = 20
    explanation = "The critic predicts returns no better than a constant, so that it adds noise to the advantages."

    def __call__(self, case: Case) -> Verdict:
        series = case.series("explained_variance")
        if len(series) < self.steps:
            return self.missing(case, "explained_variance", "the recipe has no critic", self.steps)
        half = Series(series.steps[len(series) // 2 :], series.values[len(series) // 2 :])
        middle = float(np.median(half.values))
        numbers = f"median {middle:.3g} over the second half (limit {self.limit:g})"
        if middle > self.limit:
            return self.passed(numbers)
        seen = progress(case)
        if seen is not None and seen.well:
            return self.passed(f"{numbers}, but the task is done ({seen})")
        held = spell(series, lambda x: x <= self.limit, highest=False)
        since = int(half.steps[0]) if held is None else held.latest if held.still else held.since
        stuck = not (seen is not None and seen.improved)
        return self.found(
            "problem" if stuck or middle <= self.severe else "warning", since,
            f"{numbers}; {float(np.mean(series.values <= self.limit)):.0%} of all steps are at or below it; {seen}",
        )  # fmt: skip
