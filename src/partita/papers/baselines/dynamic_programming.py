"""Dynamic programming (Bellman, 1957) and linear programming: the answers that all else is compared with.

    v*(s) = max_a r(s, a) + discount sum_s' P(s'|s, a) v*(s')

`value_iteration`, `policy_iteration` (Howard, 1960), `modified_policy_iteration` (Puterman and Shin, 1978),
`linear_programming` (d'Epenoux, 1963) and, where an episode has an end, `backward_induction`.
"""

from __future__ import annotations

from partita.core.paper import Paper
from partita.loops.exact import Exact
from partita.parts.planning import (
    BackwardInduction,
    LinearProgramming,
    ModifiedPolicyIteration,
    PolicyIteration,
    ValueIteration,
)

PAPER = Paper(
    key="dynamic_programming", title="Dynamic Programming", arxiv="", kind="baseline", authors="Bellman", year=1957,
    changes=("solver",), loop="exact",
)  # fmt: skip

RECIPES = {
    "value_iteration": Exact(solver=ValueIteration()),
    "policy_iteration": Exact(solver=PolicyIteration()),
    "modified_policy_iteration": Exact(solver=ModifiedPolicyIteration()),
    "linear_programming": Exact(solver=LinearProgramming()),
    "backward_induction": Exact(solver=BackwardInduction()),
}
