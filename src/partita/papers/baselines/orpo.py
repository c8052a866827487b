"""ORPO: Monolithic Preference Optimization without Reference Model (Hong et al., 2024), arXiv:2403.07691.

Supervised fine-tuning on the preferred response, with a penalty on the odds of the other in the same loss:

    loss = -mean_t log pi(y_w,t) - lambda * log s(log(odds(y_w|x) / odds(y_l|x))),    odds = P / (1 - P)

P is the geometric mean of the token probabilities.
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.papers.baselines.dpo import DPO
from partita.parts.contrast import Orpo

PAPER = Paper(
    key="orpo",
    title="ORPO: Monolithic Preference Optimization without Reference Model",
    arxiv="2403.07691", kind="baseline",
    authors="Hong et al.", year=2024, changes=('objective',), loop="preference",
)  # fmt: skip

RECIPES = {"orpo": DPO.but(objective=Orpo(weight=0.1))}
