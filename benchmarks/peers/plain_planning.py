"""Value iteration in plain NumPy and SciPy: seconds until a sparse process is solved.

    python -m benchmarks.peers.plain_planning
    python -m benchmarks.peers.plain_planning --bounds

Our own writing: a sparse product and a maximum a sweep, from zero, until no value changes by more than
eps (1 - discount) / (2 discount); with --bounds, until MacQueen's are within 2 eps of each other, with the answer in
their middle. Prints one JSON line.
"""

from __future__ import annotations

import argparse

import numpy as np
from benchmarks.planning import DISCOUNT, EPSILON, STATES, process, timed
from benchmarks.protocol import report


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--bounds", action="store_true")
    flags.add_argument("--states", type=int, default=STATES)
    flags.add_argument("--seed", type=int, default=0)
    args = flags.parse_args()
    transitions, reward = process(args.seed, args.states)
    factor = DISCOUNT / (1 - DISCOUNT)

    def solver() -> tuple[np.ndarray, int]:
        values, sweeps = np.zeros(args.states), 0
        while True:
            found = (reward + DISCOUNT * (transitions @ values).reshape(reward.shape)).max(1)
            change, values, sweeps = found - values, found, sweeps + 1
            if args.bounds:
                low, high = factor * change.min(), factor * change.max()
                if high - low <= 2 * EPSILON:
                    return values + (low + high) / 2, sweeps
            elif np.abs(change).max() <= EPSILON / (2 * factor):
                return values, sweeps

    measured = timed(solver, args.seed, args.states)
    settings = "MacQueen's bounds" if args.bounds else "norm of the change"
    report("plain", ("numpy", "scipy"), seed=args.seed, threads=1, settings=settings, **measured)


if __name__ == "__main__":
    main()
