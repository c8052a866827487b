"""A General Theoretical Paradigm to Understand Learning from Human Preferences (Azar et al., 2023), arXiv:2310.12036.

Changes DPO in its loss: the log-ratios of the two responses are to differ by a number, not by as much as possible.

    loss = (log(pi(y_w|x) ref(y_l|x) / (pi(y_l|x) ref(y_w|x))) - 1 / (2 tau))^2          (eq. 17)

tau is called beta here, as DPO's number of the same meaning is.
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.papers.baselines.dpo import DPO
from partita.parts.contrast import Direct

PAPER = Paper(
    key="ipo",
    title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
    arxiv="2310.12036", kind="baseline",
    authors="Azar et al.", year=2023, changes=('objective',), loop="preference",
)  # fmt: skip

RECIPES = {"ipo": DPO.but(objective=Direct(loss="ipo", beta=0.1))}
