"""Group Sequence Policy Optimization (Zheng et al., 2025), arXiv:2507.18071.

Changes GRPO in one slot: the ratio is that of the whole sequence, normalised by its length, and clipping acts on
sequences.

    s_i = (pi(y_i) / mu(y_i))^(1 / |y_i|),   loss = mean_i -min(s_i A_i, clip(s_i, 1 - eps_l, 1 + eps_h) A_i)   (5, 7)
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.papers.baselines.grpo import GRPO
from partita.parts.objective import SequenceRatio

PAPER = Paper(
    key="gspo", title="Group Sequence Policy Optimization", arxiv="2507.18071",
    kind="baseline", authors="Zheng et al.", year=2025, changes=("objective",),
)  # fmt: skip

GSPO = GRPO.but(objective=SequenceRatio())

RECIPES = {"gspo": GSPO}
