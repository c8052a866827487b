"""DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models (Shao et al.,
2024), arXiv:2402.03300.

Group relative policy optimisation: no critic; a trajectory's advantage is its return against the others of its
group, and the clipped surrogate is averaged over the tokens of each trajectory and then over trajectories.

    A_i = (R_i - mean(R)) / std(R)                                                  (section 4.1.2)
    loss = mean_i (1 / |y_i|) sum_t [-min(w A, clip(w) A) + beta * k3(pi, ref)]      (eq. 3 and 4)

beta = 0.04 in the paper and 0 here by default, as in current practice: `--regularisers kl` turns it on.
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.loops.on_policy import OnPolicy
from partita.parts.aggregate import SequenceMean
from partita.parts.credit import GroupRelative
from partita.parts.objective import ClippedSurrogate
from partita.parts.regularisers import KL
from partita.parts.rollout import Sample

PAPER = Paper(
    key="grpo",
    title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    arxiv="2402.03300", kind="baseline", authors="Shao et al.", year=2024,
    changes=("credit", "aggregate", "regularisers"),
)  # fmt: skip

GRPO = OnPolicy(
    rollout=Sample(),
    credit=GroupRelative(),
    objective=ClippedSurrogate(),
    aggregate=SequenceMean(),
    group_size=8,
)

RECIPES = {"grpo": GRPO, "grpo_kl": GRPO.but(regularisers=(KL(weight=0.04, estimator="k3"),))}
