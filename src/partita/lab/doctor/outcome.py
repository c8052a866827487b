"""Rules on what comes out: length, held-out performance against the training reward, learning at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from partita.lab.doctor.case import Case, Series
from partita.lab.doctor.finding import Rule, Severity, Verdict
from partita.lab.doctor.progress import SMALLEST, goal, progress, worse
from partita.lab.doctor.windows import LEAST, ends, rose, spell, window


@dataclass(frozen=True)
class LengthExplosion(Rule):
    """Mean length of the responses, median over a window, against the first three steps (language only).

    times: 2. Length may well double while success rises (DeepSeek-AI, 2025, arXiv:2501.12948, figure 3), so that in
    a run that has improved it counts only where responses are cut, `cut` of them: then a warning. tokens: 8, the
    least growth.
    """

    times: float = 2.0
    tokens: float = 8.0
    cut: float = 0.25
    explanation = "Responses grow without getting better: length is not what the task pays for."

    def __call__(self, case: Case) -> Verdict:
        if case.domain != "language":
            return self.skipped("the length of an episode is not the policy's verbosity; for language only")
        series = case.series("length")
        if len(series) < LEAST:
            return self.missing(case, "length", "the rollout does not log it", LEAST)
        start = float(np.median(series.values[:3]))
        limit = max(self.times * start, start + self.tokens)
        held = spell(series, lambda x: x > limit)
        _, last = ends(series)
        numbers = f"{start:.3g} tokens at the start, median {last:.3g} at the end (limit {limit:.3g})"
        if held is None or not held.still:
            return self.passed(numbers)
        seen, truncated = progress(case), case.series("truncated")
        share = ends(truncated)[1] if len(truncated) else 0.0
        if seen is not None and (seen.improved or seen.solved):
            if share < self.cut:
                return self.passed(f"{numbers}, and {seen}")
            return self.found("warning", held.latest, f"{numbers}, {share:.0%} of them cut; {seen}")
        return self.found("problem", held.latest, f"{numbers}, {share:.0%} of them cut; {seen}")


@dataclass(frozen=True)
class RewardDivergence(Rule):
    """The reward that is trained on rises while the held-out evaluation falls.

    The fall: the last evaluation's 95% interval lies below that of the best one before. The rise: the training reward
    since then, by three standard errors and `least` of its size. The reward is `reward` where it is not the task's
    own, else the score; without evaluations, `reward` is held against the score. Gao et al. (2022,
    arXiv:2210.10760, figure 1) is what it looks like.
    """

    least: float = SMALLEST
    explanation = "What is rewarded is no longer what is wanted: the policy has found a way around the task."

    def __call__(self, case: Case) -> Verdict:
        proxy = case.series("reward") if len(case.series("reward")) else case.series(case.score)
        if len(proxy) < 2 * LEAST:
            return self.missing(case, case.score, "the rollout does not log it", 2 * LEAST)
        if len(case.evaluations) >= 2:
            return self.by_evaluations(case, proxy)
        if len(case.series("reward")):
            return self.by_score(case, proxy)
        return self.skipped("fewer than two evaluations; --eval-every N and --eval-size N make them")

    def by_evaluations(self, case: Case, proxy: Series) -> Verdict:
        """The training reward against evaluations."""
        last = case.evaluations[-1]
        best = max(reversed(case.evaluations), key=lambda e: e["mean"])
        said = f"evaluation {best['mean']:.3g} at step {best['step']}, {last['mean']:.3g} at step {last['step']}"
        if best is last:
            return self.passed(f"the last evaluation, {last['mean']:.3g}, is the best")
        if last["high"] >= best["low"]:
            return self.passed(f"{said}: within their intervals")
        before, after = self.sides(proxy, best["step"])
        numbers = f"{said}, while the training reward went from {before.mean():.3g} to {after.mean():.3g}"
        if not rose(before, after, self.least * abs(float(before.mean()))):
            return self.passed(f"{numbers}: both fell, or the reward stood still")
        return self.found("problem", int(best["step"]), numbers)

    def by_score(self, case: Case, proxy: Series) -> Verdict:
        """The training reward against the task's own score in training."""
        score = case.series(case.score)
        size = max(len(proxy) // 3, LEAST)
        low, high = proxy.values[:size], proxy.values[-size:]
        fell = rose(-score.values[:size], -score.values[-size:], self.least * abs(float(score.values[:size].mean())))
        numbers = (
            f"reward {low.mean():.3g} to {high.mean():.3g}, {case.score} {score.values[:size].mean():.3g} to "
            f"{score.values[-size:].mean():.3g} (first and last third; no evaluations)"
        )
        if fell and rose(low, high, self.least * abs(float(low.mean()))):
            return self.found("problem", int(proxy.steps[size]), numbers)
        return self.passed(numbers)

    @staticmethod
    def sides(proxy: Series, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The reward in the window that ends at `step` (or begins the run), and in the last."""
        size = window(len(proxy))
        return proxy.up_to(max(step, proxy.steps[size - 1])).values[-size:], proxy.values[-size:]


@dataclass(frozen=True)
class NoLearning(Rule):
    """The score of the last third is no better than that of the first, and the task is not solved.

    Better: by three standard errors and a fiftieth of the way to the goal, or by evaluation. steps: 20, before which
    nobody can tell. A problem from `long` steps on, where the evaluation is to the digit what it was before
    training, or where the score has fallen; else a warning.
    """

    steps: int = 20
    long: int = 50
    explanation = "Nothing has been learnt."

    def __call__(self, case: Case) -> Verdict:
        series = case.series(case.score)
        if len(series) < self.steps:
            return self.missing(case, case.score, "the rollout does not log it", self.steps)
        seen = progress(case)
        assert seen is not None
        third = len(series) // 3
        before, after = series.values[:third], series.values[-third:]
        numbers = f"{seen.metric} {before.mean():.3g} in the first third, {after.mean():.3g} in the last"
        if seen.solved or seen.improved:
            return self.passed(numbers)
        rows = case.evaluations
        unmoved = len(rows) > 1 and rows[0]["step"] == 0 and _same(rows[0], rows[-1])
        fell = worse(case)
        if len(rows) > 1:
            numbers += f"; evaluation {rows[0]['mean']:.3g} at step {rows[0]['step']}, {rows[-1]['mean']:.3g} at step "
            numbers += f"{rows[-1]['step']}" + (", the same to the digit" if unmoved else "")
        if seen.goal is not None:
            numbers += f"; solved from {seen.goal:.3g}"
        severity: Severity = "problem" if unmoved or fell or len(series) >= self.long else "warning"
        explanation = "The policy does the task worse than before training." if fell else self.explanation
        return self.found(severity, int(series.steps[0]), numbers, explanation)


def _same(a: dict, b: dict) -> bool:
    return bool(a["mean"] == b["mean"] and a.get("length") == b.get("length"))


@dataclass(frozen=True)
class SolvedBefore(Rule):
    """The evaluation before training is already at the goal: nine tenths of all successes, or of the task's optimum."""

    explanation = "There was nothing to learn: the policy did the task before training."

    def __call__(self, case: Case) -> Verdict:
        before = next((e for e in case.evaluations if e["step"] == 0), None)
        if before is None:
            return self.skipped("no evaluation before training; --eval-size N makes one")
        target = goal(case)
        if target is None:
            return self.skipped("no goal is known for this task; --until X sets one")
        numbers = f"evaluation before training {before['mean']:.3g} (solved from {target:.3g})"
        if before["mean"] < target:
            return self.passed(numbers)
        return self.found("warning", 0, numbers)
