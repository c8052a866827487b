"""KTO: Model Alignment as Prospect Theoretic Optimization (Ethayarajh et al., 2024), arXiv:2402.01306.

Changes DPO in what it learns from: single responses that are desirable or not, each against a common reference point.

    r    = beta * log(pi(y|x) / ref(y|x)),    z = beta * KL(pi || ref)
    loss = lambda_D (1 - s(r - z))  desirable,    lambda_U (1 - s(z - r))  undesirable

Comparisons serve as well: the preferred response counts as desirable, the other as undesirable.
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.papers.baselines.dpo import DPO
from partita.parts.contrast import Kto

PAPER = Paper(
    key="kto",
    title="KTO: Model Alignment as Prospect Theoretic Optimization",
    arxiv="2402.01306", kind="baseline",
    authors="Ethayarajh et al.", year=2024, changes=('objective',), loop="preference",
)  # fmt: skip

RECIPES = {"kto": DPO.but(objective=Kto(beta=0.1))}
