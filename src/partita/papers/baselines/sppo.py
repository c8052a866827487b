"""Self-Play Preference Optimization for Language Model Alignment (Wu et al., 2024), arXiv:2405.00675.

Iterated, with the policy of the iteration before as reference, and a square loss that takes the win rate for its goal:

    loss = (log(pi(y|x) / pi_t(y|x)) - eta * (P(y beats pi_t | x) - 1/2))^2

P is the judge's probability against the other response of the comparison; eta is 1 / beta here.
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.papers.baselines.dpo import DPO
from partita.parts.contrast import SelfPlay
from partita.parts.pairs import BestWorst
from partita.parts.reference import Reset
from partita.parts.resample import Online

PAPER = Paper(
    key="sppo",
    title="Self-Play Preference Optimization for Language Model Alignment",
    arxiv="2405.00675", kind="baseline",
    authors="Wu et al.", year=2024, changes=('resample', 'pairs', 'objective', 'reference'), loop="preference",
)  # fmt: skip

RECIPES = {
    "sppo": DPO.but(
        resample=Online(responses=5, every=10), pairs=BestWorst(soft=True), objective=SelfPlay(beta=1.0),
        reference=Reset(every=10),
    ),
}  # fmt: skip
