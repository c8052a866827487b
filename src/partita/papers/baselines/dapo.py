"""DAPO: An Open-Source LLM Reinforcement Learning System at Scale (Yu et al., 2025), arXiv:2503.14476.

GRPO with four changes: a higher upper clipping bound, groups without signal dropped and sampled again, the mean over
all tokens of the batch, and a soft punishment of overlong responses.

    loss = (1 / sum_i |y_i|) sum_i sum_t -min(w A, clip(w, 1 - eps_low, 1 + eps_high) A)    (eq. 8, 10 and 11)

eps_low = 0.2, eps_high = 0.28. The soft overlong punishment (eq. 13) is added by `--reward soft_overlong`, since its
limit belongs to the task.
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.papers.baselines.grpo import GRPO
from partita.parts.aggregate import TokenMean
from partita.parts.objective import ClippedSurrogate
from partita.parts.select import DropDegenerate

PAPER = Paper(
    key="dapo", title="DAPO: An Open-Source LLM Reinforcement Learning System at Scale", arxiv="2503.14476",
    kind="baseline", authors="Yu et al.", year=2025, changes=("select", "objective", "aggregate"),
)  # fmt: skip

DAPO = GRPO.but(
    select=DropDegenerate(rounds=3), objective=ClippedSurrogate(clip_low=0.2, clip_high=0.28), aggregate=TokenMean()
)

RECIPES = {"dapo": DAPO}
