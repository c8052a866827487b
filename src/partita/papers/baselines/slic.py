"""SLiC-HF: Sequence Likelihood Calibration with Human Feedback (Zhao et al., 2023), arXiv:2305.10425.

A hinge in place of DPO's sigmoid, in the form in which RSO (arXiv:2309.06657) compares the two: on log-ratios to the
reference, with beta in place of the margin.

    loss = max(0, 1 - beta * [log(pi(y_w|x) / ref(y_w|x)) - log(pi(y_l|x) / ref(y_l|x))])
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.papers.baselines.dpo import DPO
from partita.parts.contrast import Direct

PAPER = Paper(
    key="slic",
    title="SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
    arxiv="2305.10425", kind="baseline",
    authors="Zhao et al.", year=2023, changes=('objective',), loop="preference",
)  # fmt: skip

RECIPES = {"slic": DPO.but(objective=Direct(loss="hinge", beta=0.1))}
