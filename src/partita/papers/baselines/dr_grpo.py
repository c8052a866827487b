"""Understanding R1-Zero-Like Training: A Critical Perspective (Liu et al., 2025), arXiv:2503.20783.

GRPO done right: without the two divisions that bias it, by the deviation of the group's returns and by the length of
the response.

    A_i = R_i - mean(R),    loss = (1 / (B L)) sum_i sum_t -min(w A, clip(w) A)    (section 3.2), L constant
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.papers.baselines.grpo import GRPO
from partita.parts.aggregate import FixedLength
from partita.parts.credit import GroupRelative

PAPER = Paper(
    key="dr_grpo", title="Understanding R1-Zero-Like Training: A Critical Perspective", arxiv="2503.20783",
    kind="baseline", authors="Liu et al.", year=2025, changes=("credit", "aggregate"),
)  # fmt: skip

DR_GRPO = GRPO.but(credit=GroupRelative(std=False), aggregate=FixedLength())

RECIPES = {"dr_grpo": DR_GRPO}
