"""Planning in Partita: seconds until a sparse process is solved.

    python -m benchmarks.ours.partita_planning value_iteration

The library's own loop and recipes at their defaults, on the tables of `benchmarks/planning.py`. Prints one JSON line.
"""

from __future__ import annotations

import argparse

import numpy as np
from benchmarks.planning import DISCOUNT, EPSILON, PLANNERS, STATES, process, timed
from benchmarks.protocol import report

from partita.core import registry
from partita.loops.exact import solve
from partita.tasks.finite.mdp import FiniteMDP


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("planner", choices=PLANNERS)
    flags.add_argument("--states", type=int, default=STATES)
    flags.add_argument("--seed", type=int, default=0)
    args = flags.parse_args()
    recipe = registry.recipe(args.planner)
    if hasattr(recipe.solver, "tolerance"):
        recipe = recipe.but(solver=recipe.solver.but(tolerance=EPSILON))
    transitions, reward = process(args.seed, args.states)
    mdp = FiniteMDP(transitions, reward, np.eye(1, args.states)[0], DISCOUNT)

    def solver() -> tuple[np.ndarray, int]:
        found = solve(recipe, mdp, args.seed)
        return found.solution.tables["values"], found.sweeps

    measured = timed(solver, args.seed, args.states)
    settings = ", ".join(f"{k} {v}" for k, v in recipe.solver.settings().items())
    report("partita", ("partita", "numpy", "scipy"), seed=args.seed, threads=1, settings=settings, **measured)


if __name__ == "__main__":
    main()
