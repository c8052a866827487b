"""SimPO: Simple Preference Optimization with a Reference-Free Reward (Meng et al., 2024), arXiv:2405.14734.

Changes DPO in its reward, the mean log-probability of a token, without a reference, and adds a target margin:

    loss = -log s(beta / |y_w| * log pi(y_w|x) - beta / |y_l| * log pi(y_l|x) - gamma)     (eq. 6)
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.papers.baselines.dpo import DPO
from partita.parts.contrast import Simpo

PAPER = Paper(
    key="simpo",
    title="SimPO: Simple Preference Optimization with a Reference-Free Reward",
    arxiv="2405.14734", kind="baseline",
    authors="Meng et al.", year=2024, changes=('objective',), loop="preference",
)  # fmt: skip

RECIPES = {"simpo": DPO.but(objective=Simpo(beta=2.0, gamma=1.0))}
