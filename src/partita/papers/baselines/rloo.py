"""Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs (Ahmadian et al.,
2024), arXiv:2402.14740.

REINFORCE whose baseline for each trajectory is the mean return of the others of its group:

    A_i = R_i - mean_{j != i} R_j,    loss_i = -A_i * sum_t log pi(a_t | s_t)    (section 3.3)
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.loops.on_policy import OnPolicy
from partita.parts.aggregate import SequenceSum
from partita.parts.credit import LeaveOneOut
from partita.parts.objective import Reinforce
from partita.parts.rollout import Sample

PAPER = Paper(
    key="rloo",
    title="Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
    arxiv="2402.14740", kind="baseline", authors="Ahmadian et al.", year=2024, changes=("credit",),
)  # fmt: skip

RLOO = OnPolicy(rollout=Sample(), credit=LeaveOneOut(), objective=Reinforce(), aggregate=SequenceSum(), group_size=8)

RECIPES = {"rloo": RLOO}
