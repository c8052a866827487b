"""Proximal Policy Optimization Algorithms (Schulman et al., 2017), arXiv:1707.06347.

Several epochs of minibatches on each batch, made safe by clipping the probability ratio:

    loss_t = -min(w_t A_t, clip(w_t, 1 - eps, 1 + eps) A_t) + c_v / 2 * (V_t - G_t)^2 - c_h * H_t    (eq. 7 and 9)

Advantages by GAE (eq. 11), whitened over each minibatch.
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.loops.on_policy import OnPolicy
from partita.parts.credit import GAE
from partita.parts.objective import ClippedSurrogate
from partita.parts.regularisers import Entropy, ValueLoss

PAPER = Paper(
    key="ppo", title="Proximal Policy Optimization Algorithms", arxiv="1707.06347",
    kind="baseline", authors="Schulman et al.", year=2017, changes=("credit", "objective", "regularisers"),
)  # fmt: skip

PPO = OnPolicy(
    credit=GAE(gae_lambda=0.95),
    objective=ClippedSurrogate(clip_low=0.2, clip_high=0.2),
    regularisers=(ValueLoss(weight=0.5), Entropy(weight=0.0)),
    epochs=4,
    minibatches=4,
    max_grad_norm=0.5,
    adam_eps=1e-5,
    whiten="minibatch",
)

RECIPES = {"ppo": PPO}
