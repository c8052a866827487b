"""Training language models to follow instructions with human feedback (Ouyang et al., 2022), arXiv:2203.02155.

Supervised fine-tuning in the slots of the on-policy loop: demonstrations in place of samples, and the same credit for
every token of them.

    loss = -mean_t log pi(y*_t | x, y*_<t),    y* a demonstration                  (step 1 of section 3.1)
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.loops.on_policy import OnPolicy
from partita.parts.aggregate import TokenMean
from partita.parts.credit import Constant
from partita.parts.objective import Reinforce
from partita.parts.rollout import Demonstrations

PAPER = Paper(
    key="sft",
    title="Training language models to follow instructions with human feedback",
    arxiv="2203.02155", kind="baseline", authors="Ouyang et al.", year=2022,
    changes=("rollout", "credit"),
)  # fmt: skip

SFT = OnPolicy(
    rollout=Demonstrations(per_problem=1), credit=Constant(), objective=Reinforce(), aggregate=TokenMean(),
)  # fmt: skip

RECIPES = {"sft": SFT}
