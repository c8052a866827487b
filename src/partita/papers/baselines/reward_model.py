"""Training language models to follow instructions with human feedback (Ouyang et al., 2022), arXiv:2203.02155.

The second step of its section 3.1: a scalar head on the language model learns which response is preferred.

    loss = -log s(r(x, y_w) - r(x, y_l))                                 (eq. 1)

`reward_regression` learns scores instead, where the data hold them.
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.loops.preference import Preference
from partita.parts.contrast import BradleyTerry, Regression

PAPER = Paper(
    key="reward_model",
    title="Training language models to follow instructions with human feedback",
    arxiv="2203.02155", kind="baseline",
    authors="Ouyang et al.", year=2022, changes=('objective',), loop="preference",
)  # fmt: skip

RECIPES = {
    "reward_model": Preference(objective=BradleyTerry()),
    "reward_regression": Preference(objective=Regression()),
}
