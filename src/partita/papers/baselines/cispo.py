"""MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention (MiniMax, 2025), arXiv:2506.13585.

CISPO clips the importance weight instead of the update, so that every token keeps its gradient:

    loss = (1 / sum_i |y_i|) sum_i sum_t -sg(clip(w, lower, upper)) * A_i * log pi(a_t | s_t)    (eq. 4 and 5)

The paper sets the lower bound so that it never acts and tunes the upper one; 5 is the value that TRL's documentation
gives for the later study of it (ScaleRL, arXiv:2510.13786).
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.papers.baselines.grpo import GRPO
from partita.parts.aggregate import TokenMean
from partita.parts.objective import ClippedWeight

PAPER = Paper(
    key="cispo", title="MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention",
    arxiv="2506.13585", kind="baseline", authors="MiniMax", year=2025, changes=("objective", "aggregate"),
)  # fmt: skip

CISPO = GRPO.but(objective=ClippedWeight(lower=0.0, upper=5.0), aggregate=TokenMean())

RECIPES = {"cispo": CISPO}
