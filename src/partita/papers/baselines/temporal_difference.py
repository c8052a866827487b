"""Learning to Predict by the Methods of Temporal Differences (Sutton, 1988), and what followed.

The values of a policy from samples, with linear features, by the error of one step:

    delta_t = r_t + discount theta . phi_{t+1} - theta . phi_t

`td` is TD(lam), `lstd` its fixed point by least squares (Bradtke and Barto, 1996; Boyan, 2002), `gtd2` and `tdc` are
gradient methods that stay stable where another policy acts (Sutton et al., 2009). The exact values stand beside them.
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.loops.exact import Exact
from partita.parts.evaluation import GTD2, LSTD, TD, TDC

PAPER = Paper(
    key="temporal_difference", title="Learning to Predict by the Methods of Temporal Differences", arxiv="",
    kind="baseline", authors="Sutton", year=1988, changes=("solver",), loop="exact",
)  # fmt: skip

RECIPES = {
    "td": Exact(solver=TD()),
    "lstd": Exact(solver=LSTD()),
    "gtd2": Exact(solver=GTD2()),
    "tdc": Exact(solver=TDC()),
}
