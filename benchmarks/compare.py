"""What `partita compare` adds to the runs that it carries out: two recipes, 8 seeds, two processes.

    python benchmarks/compare.py                 # control and language, 7 times each, and every run alone
    python benchmarks/compare.py --only control --repeats 1
    python benchmarks/compare.py --quick --out /tmp/try.json

    inside   wall-clock of the command / (sum of what its runs took inside it / 2)       target 1.15
    alone    wall-clock of the command / (sum of the same runs by `partita train` / 2)   target 1.15
    work     processor time of all its processes / processor time of the runs in it; what survives on a busy machine

Wall-clock counts from the start of the process to its end. `inside` is the price of the machinery: starting, taking
turns, the statistics and the page; that the runs slow each other down does not show in it, and does in `alone`, whose
runs have the machine to themselves, one after the other, and load torch each for itself. Writes every value to
`benchmarks/results/compare.json`. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.run import RESULTS, call, commit  # noqa: E402

TARGET, JOBS, SEEDS = 1.15, 2, 8


@dataclass(frozen=True)
class Case:
    """Two recipes and the flags that they share; `quick` replaces the number of steps."""

    name: str
    arms: tuple[str, str]
    flags: tuple[str, ...]
    steps: int
    quick: int


CASES = (
    Case("control", ("ppo", "a2c"), ("--task", "cartpole"), 150, 10),
    Case("language", ("grpo", "rloo"), ("--task", "arithmetic", "--policy.model", "tiny-0.3m"), 20, 2),
)


def timed(args: list[str], folder: Path) -> tuple[float, float]:
    """Seconds that a `partita` command takes, from the start of its process to its end, and processor time of all."""
    start, before = time.perf_counter(), processor()
    done = subprocess.run(
        [sys.executable, "-m", "partita", *args], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"partita {' '.join(args)}: exit code {done.returncode}\n{done.stderr.strip()[-2000:]}")
    seconds = time.perf_counter() - start
    while True:  # what it left behind comes to us (`adopt`)
        try:
            os.wait()
        except ChildProcessError:
            return seconds, processor() - before


def processor() -> float:
    """Processor time of all processes that ended under this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def adopt() -> None:
    """Become the parent of grandchildren whose parent ends (Linux), so that their processor time is counted."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def together(case: Case, seeds: int, steps: int) -> dict[str, float]:
    """The comparison: its wall-clock, and what its runs took inside it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        args = ["compare", *case.arms, *case.flags, "--seeds", str(seeds), "--jobs", str(JOBS), "--steps", str(steps)]
        wall, work = timed([*args, "--out", "found", "--quiet"], folder)
        rows = [json.loads(path.read_text()) for path in folder.glob("found/*/seed_*/result.json")]
    assert len(rows) == seeds * len(case.arms)
    spent, used = (sum(row[name] for row in rows) for name in ("spent", "processor"))
    return {
        "wall": wall, "runs": spent, "longest": max(row["spent"] for row in rows), "inside": wall / (spent / JOBS),
        "processor": work, "runs_processor": used, "work": work / used,
    }  # fmt: skip


def alone(case: Case, seeds: int, steps: int) -> float:
    """The same runs one after the other, each by a command of its own: their wall-clock together."""
    total = 0.0
    with tempfile.TemporaryDirectory() as place:
        for seed in range(seeds):
            for arm in case.arms:
                args = ["train", arm, *case.flags, "--seed", str(seed), "--steps", str(steps), "--threads", "1"]
                total += timed([*args, "--out", f"{arm}-{seed}", "--quiet"], Path(place))[0]
    return total


def measure(case: Case, repeats: int, quick: bool) -> dict[str, Any]:
    """All values of a case."""
    seeds, steps = (2, case.quick) if quick else (SEEDS, case.steps)
    by_itself = alone(case, seeds, steps)
    found = [together(case, seeds, steps) for _ in range(repeats)]
    wall, inside, work = (statistics.median(row[name] for row in found) for name in ("wall", "inside", "work"))
    ratio = wall / (by_itself / JOBS)
    told = f"inside {inside:.3f}, alone {ratio:.3f}, target {TARGET}; work {work:.3f}"
    print(f"{case.name:10} {wall:.1f} s for {seeds * 2} runs: {told}", flush=True)
    return {
        "case": case.name, "arms": case.arms, "flags": " ".join(case.flags), "steps": steps, "seeds": seeds,
        "processes": JOBS, "wall": wall, "inside": inside, "alone": ratio, "work": work, "alone_seconds": by_itself,
        "target": TARGET, "met": inside <= TARGET and ratio <= TARGET, "repeats": found,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description="The overhead of comparisons.")
    flags.add_argument("--repeats", type=int, default=7)
    flags.add_argument("--only", choices=[case.name for case in CASES], default=None)
    flags.add_argument("--quick", action="store_true", help="few and short runs, to try the harness")
    flags.add_argument("--out", type=Path, default=RESULTS / "compare.json")
    args = flags.parse_args(argv)
    if args.repeats < 1:
        flags.error("--repeats: 1 or more")
    adopt()
    before = call(sys.executable, "benchmarks.machine", [])
    repeats = 1 if args.quick else args.repeats
    cases = [measure(case, repeats, args.quick) for case in CASES if args.only in (None, case.name)]
    after = call(sys.executable, "benchmarks.machine", [])
    result = {
        "benchmark": "compare", "date": datetime.date.today().isoformat(), "commit": commit(), "quick": args.quick,
        "machine": {**before, "load": before["load"], "load_after": after["load"]}, "cases": cases,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"load {before['load']:.1f} before; wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
