"""ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language Models
(Li et al., 2024), arXiv:2310.10505.

REINFORCE whose baseline is the return of the greedy response to the same prompt:

    A_i = R_i - R(greedy),    loss_i = -A_i * sum_t log pi(a_t | s_t)    (Algorithm 1)
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.loops.on_policy import OnPolicy
from partita.parts.aggregate import SequenceSum
from partita.parts.credit import GreedyBaseline
from partita.parts.objective import Reinforce
from partita.parts.rollout import Sample

PAPER = Paper(
    key="remax",
    title="ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language Models",
    arxiv="2310.10505", kind="baseline", authors="Li et al.", year=2024, changes=("credit",),
)  # fmt: skip

REMAX = OnPolicy(rollout=Sample(), credit=GreedyBaseline(), objective=Reinforce(), aggregate=SequenceSum())

RECIPES = {"remax": REMAX}
