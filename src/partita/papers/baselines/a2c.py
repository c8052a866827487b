"""Asynchronous Methods for Deep Reinforcement Learning (Mnih et al., 2016), arXiv:1602.01783.

Advantage actor-critic, the synchronous form: one update a batch, n-step advantages from a critic,
an entropy bonus.

    loss_t = -A_t * log pi(a_t | s_t) + c_v / 2 * (V_t - G_t)^2 - c_h * H_t

gae_lambda = 1 gives the paper's n-step return (section 4, Algorithm S3) over the segment.
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.loops.on_policy import OnPolicy
from partita.parts.credit import GAE
from partita.parts.objective import Reinforce
from partita.parts.regularisers import Entropy, ValueLoss

PAPER = Paper(
    key="a2c", title="Asynchronous Methods for Deep Reinforcement Learning", arxiv="1602.01783",
    kind="baseline", authors="Mnih et al.", year=2016, changes=("credit", "regularisers"),
)  # fmt: skip

A2C = OnPolicy(
    credit=GAE(gae_lambda=1.0),
    objective=Reinforce(),
    regularisers=(ValueLoss(weight=0.5), Entropy(weight=0.01)),
    max_grad_norm=0.5,
)

RECIPES = {"a2c": A2C}
