"""Robust Dynamic Programming (Iyengar, 2005; Nilim and El Ghaoui, 2005): the best values at the worst transitions.

    v*(s) = max_a r(s, a) + discount inf_{p in U(s, a)} sum_s' p(s') v*(s')

The rows of U(s, a) are near a nominal one by total variation, KL, chi-squared, Wasserstein's distance or contamination,
and are chosen for each pair of state and action on its own. `--solver.price` puts a price on the divergence in place of
the limit. Written without the papers at hand.
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.loops.exact import Exact
from partita.parts.robust import RobustValueIteration

PAPER = Paper(
    key="robust_value_iteration", title="Robust Dynamic Programming", arxiv="", kind="baseline", authors="Iyengar",
    year=2005, changes=("solver",), loop="exact",
)  # fmt: skip

RECIPES = {"robust_value_iteration": Exact(solver=RobustValueIteration())}
