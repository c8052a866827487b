"""The benchmark of planning: what every side of `planning` solves, and how far its answer may be from the best one.

    python benchmarks/run.py planning        # seconds to 1e-8: Partita's three planners, two loops of plain SciPy

One process, a sparse Garnet of 10,000 states, 4 actions and 5 next states each, discount 0.99, another one a repeat; a
side gets its tables, made beforehand, and has one core. seconds: from the tables in the side's own form to values and
policy. sweeps: how often the maximum over actions was taken. error: how far any value can be from the best one, found
afterwards in the same way for all (MacQueen, 1966), with u = max_a r + discount P v of the values v that a side gave:

    error = max_s max(|low(s)|, |high(s)|),    low, high = u - v + discount / (1 - discount) (min, max over s of u - v)

`plain` stops as the textbooks have it, when ||v' - v|| <= eps (1 - discount) / (2 discount), which leaves v' within
eps / 2; `plain-bounds` is the same loop with Partita's rule, so that what the rule gains is told apart from the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.jobs import OURS, THEIRS, Measure, Side, Target

if TYPE_CHECKING:
    import numpy as np
    from scipy import sparse

STATES, ACTIONS, BRANCHES = 10_000, 4, 5
DISCOUNT, EPSILON = 0.99, 1e-8


def process(seed: int, states: int = STATES) -> tuple[sparse.csr_array, np.ndarray]:
    """Transitions (S * A, S), row s * A + a, and rewards (S, A), of a random sparse process."""
    import numpy as np
    from scipy import sparse

    generator, rows = np.random.default_rng(seed), states * ACTIONS
    into = generator.integers(0, states, (rows, BRANCHES))
    chance = generator.dirichlet(np.ones(BRANCHES), rows)
    table = (chance.ravel(), into.ravel(), np.arange(rows + 1) * BRANCHES)
    transitions = sparse.csr_array(table, shape=(rows, states))
    transitions.sum_duplicates()
    return transitions, generator.normal(size=(states, ACTIONS))


def timed(solver: Callable[[], tuple[np.ndarray, int]], seed: int, states: int) -> dict[str, Any]:
    """Seconds, sweeps and error of a solver that returns values and sweeps."""
    import numpy as np

    wall, used = time.perf_counter(), time.process_time()
    values, sweeps = solver()
    wall, used = time.perf_counter() - wall, time.process_time() - used
    transitions, reward = process(seed, states)
    change = (reward + DISCOUNT * (transitions @ values).reshape(reward.shape)).max(1) - values
    factor = DISCOUNT / (1 - DISCOUNT)
    low, high = change + factor * change.min(), change + factor * change.max()
    error = float(np.maximum(np.abs(low), np.abs(high)).max())
    return {"seconds": wall, "cpu_seconds": used, "sweeps": sweeps, "error": error}


FIELDS = ("seconds", "cpu_seconds", "sweeps", "error", "peak_mb")
PLANNERS = ("value_iteration", "modified_policy_iteration", "policy_iteration")


def _side(name: str, module: str, *args: str) -> Side:
    return Side(name, None, module, args, ("--states", "500"), {"OMP_NUM_THREADS": "1"})


BENCHMARKS = {
    "planning": (
        Measure(
            "garnet",
            FIELDS,
            (
                *(_side(name, f"{OURS}.partita_planning", name) for name in PLANNERS),
                _side("plain", f"{THEIRS}.plain_planning"),
                _side("plain-bounds", f"{THEIRS}.plain_planning", "--bounds"),
            ),
        ),
    )
}

TARGETS: dict[str, tuple[Target, ...]] = {
    "planning": (
        *(Target("garnet", "seconds", name, "plain", most=1.0) for name in PLANNERS),
        *(Target("garnet", "seconds", name, "plain-bounds") for name in PLANNERS),
    )
}
