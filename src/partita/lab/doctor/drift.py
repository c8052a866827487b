"""Rules on how far the policy moves: KL from the acting policy and from the reference, clipping, stale data."""

from __future__ import annotations

from dataclasses import dataclass

from partita.lab.doctor.case import Case
from partita.lab.doctor.finding import Finding, Rule, Severity, Verdict
from partita.lab.doctor.progress import progress
from partita.lab.doctor.windows import LEAST, ends, spell


def above(rule: Rule, case: Case, metric: str, limit: float, severe: float, unit: str, why: str) -> Verdict:
    """A finding where the median over a window of `metric` is above `limit`.

    A problem where it is above `severe`, or still above the limit in a run that has not improved; else a warning.
    """
    series = case.series(metric)
    if len(series) < LEAST:
        return rule.missing(case, metric, why, LEAST)
    held = spell(series, lambda x: x > limit)
    if held is None:
        _, last = ends(series)
        return rule.passed(f"median {metric} {last:.2g}{unit} (limit {limit:g})")
    seen = progress(case)
    stuck = held.still and not (seen is not None and seen.improved)
    severity: Severity = "problem" if held.worst > severe or stuck else "warning"
    until = "to the end" if held.still else "then below it again"
    return rule.found(
        severity, held.since,
        f"median {metric} up to {held.worst:.3g}{unit} (limit {limit:g}), in {held.share:.0%} of the run, {until}",
    )  # fmt: skip


@dataclass(frozen=True)
class KlRunaway(Rule):
    """KL from the policy that acted to the updated one, nats per action, median over a window.

    limit: 0.05. Implementations that stop a batch early do so between 0.01 and 0.03 (Spinning Up: 1.5 x 0.01), since
    clipping bounds the gradient of a sample and not the divergence (Engstrom et al., 2020, arXiv:2005.12729,
    section 4). severe: 0.5, ten times as much. A step of a single update measures the KL before that update, where
    it is zero: then the rule cannot be checked.
    """

    limit: float = 0.05
    severe: float = 0.5
    explanation = "The policy moves further in a step than the data of the step can vouch for."

    def __call__(self, case: Case) -> Verdict:
        if case.setting("epochs") == 1 and case.setting("minibatches") == 1:
            return self.skipped("a step makes one update, before which `kl` is zero; --regularisers kl logs `ref_kl`")
        return above(self, case, "kl", self.limit, self.severe, " nats per action", "the loop does not log it")


@dataclass(frozen=True)
class ReferenceRunaway(Rule):
    """KL from the reference to the policy, nats per action, median over a window.

    limit: 0.5, where each action is on average 1.6 times as likely as under the reference; trained language models
    keep to a few hundredths, and true reward turns down as this divergence grows (Gao et al., 2022,
    arXiv:2210.10760, figure 1). severe: 2, seven times as likely.
    """

    limit: float = 0.5
    severe: float = 2.0
    explanation = "The policy has left its reference so far behind that what the reference knew is likely lost."

    def __call__(self, case: Case) -> Verdict:
        return above(
            self, case, "ref_kl", self.limit, self.severe, " nats per action", "no part of the recipe uses a reference"
        )


@dataclass(frozen=True)
class ClipSaturation(Rule):
    """Share of steps that the objective clipped, median over a window.

    limit: 0.3: clipped steps have no gradient, so that a third of the batch is lost; PPO at its defaults stays below
    0.2, GSPO near 0.15 (Zheng et al., 2025, arXiv:2507.18071, section 5.2). severe: 0.5, more than half.
    """

    limit: float = 0.3
    severe: float = 0.5
    explanation = "Most of what was sampled is beyond the clip and teaches nothing."

    def __call__(self, case: Case) -> Verdict:
        return above(self, case, "clip_fraction", self.limit, self.severe, "", "the objective does not clip")


@dataclass(frozen=True)
class StaleData(Rule):
    """How old the data are: `staleness` (updates since they were sampled), else the KL at a step's first update.

    staleness limit: 4 updates; without a correction for it, PPO loses from about there (Fu et al., 2025,
    arXiv:2505.24298, section 7). kl limit: 1e-3 nats per action at the first update, where fresh data of the
    same policy have zero: samplers of another precision stay below it. severe: 0.02, a whole step of PPO spent
    before it begins; or sixteen updates.
    """

    limit: float = 1e-3
    severe: float = 0.02
    updates: float = 4.0
    severe_updates: float = 16.0
    explanation = "The data were not sampled by the policy that learns from them."

    def __call__(self, case: Case) -> Verdict:
        by_age = above(self, case, "staleness", self.updates, self.severe_updates, " updates", "")
        if isinstance(by_age, Finding):
            return by_age
        why = "the run is older than this metric, or the loop learns from stored data"
        return above(self, case, "start_kl", self.limit, self.severe, " nats per action", why)
