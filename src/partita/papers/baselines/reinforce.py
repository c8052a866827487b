"""REINFORCE (Williams, 1992), Machine Learning 8:229-256.

The score-function gradient of the return, without a critic:

    loss_t = -(G_t - b) * log pi(a_t | s_t),    G_t = sum_{k >= t} discount^{k-t} * r_k

Every part is the loop's default. Advantages are whitened over the batch, a constant baseline b in effect.
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.loops.on_policy import OnPolicy
from partita.parts.credit import MonteCarlo
from partita.parts.objective import Reinforce
from partita.parts.rollout import Sample

PAPER = Paper(
    key="reinforce",
    title="Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
    kind="baseline", authors="Williams", year=1992, changes=("objective",),
)  # fmt: skip

REINFORCE = OnPolicy(rollout=Sample(), credit=MonteCarlo(), objective=Reinforce(), whiten="batch")

RECIPES = {"reinforce": REINFORCE}
