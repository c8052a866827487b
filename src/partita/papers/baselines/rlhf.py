"""Learning to summarize from human feedback (Stiennon et al., 2020), arXiv:2009.01325.

Reinforcement learning from preferences as it became the custom: what a reward model thinks of a response, less a price
on leaving the policy before training.

    R(x, y) = r(x, y) - beta * log(pi(y|x) / ref(y|x))                   (section 3.4)

`rlhf_ppo` learns from it by PPO with a critic, the price paid token by token; `rlhf_rloo` by REINFORCE with the mean of
the other responses as baseline (Ahmadian et al., 2024, arXiv:2402.14740); `rlhf_loss` has the divergence in the loss
instead of the reward. The reward is the task's own unless a model of it is named:

    --reward reward_model,kl_penalty --reward.reward_model.model RUN
    --reward outcome_part,kl_penalty                                     (the proxy of the preference laboratory)
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.papers.baselines.ppo import PPO
from partita.papers.baselines.rloo import RLOO
from partita.parts.credit import GAE
from partita.parts.regularisers import KL
from partita.parts.reward import KLPenalty, Outcome
from partita.parts.rollout import Sample

PAPER = Paper(
    key="rlhf", title="Learning to summarize from human feedback", arxiv="2009.01325", kind="baseline",
    authors="Stiennon et al.", year=2020, changes=("reward",),
)  # fmt: skip

_PRICED = (Outcome(), KLPenalty(weight=0.05))

RECIPES = {
    "rlhf_ppo": PPO.but(
        rollout=Sample(), reward=_PRICED, credit=GAE(discount=1.0, gae_lambda=0.95), epochs=2, minibatches=2,
    ),
    "rlhf_rloo": RLOO.but(reward=_PRICED, group_size=4),
    "rlhf_loss": RLOO.but(regularisers=(KL(weight=0.05, estimator="k3"),), group_size=4),
}  # fmt: skip
