"""Both sides of a benchmark in one run, each in a process and an environment of its own, taking turns.

    python benchmarks/run.py cartpole                # speed, and time until solved: Partita, SB3, rejax
    python benchmarks/run.py grpo --only short       # tokens a second and memory: Partita, TRL
    python benchmarks/run.py dpo                     # pairs a second and memory: Partita, TRL
    python benchmarks/run.py sac                     # updates a second: Partita, SB3, SBX and two lean loops
    python benchmarks/run.py offline                # updates a second of TD3+BC and IQL: Partita, d3rlpy, a plain loop
    python benchmarks/run.py sac-curves              # area under evaluation curves: Partita, SB3
    python benchmarks/run.py offline-curves          # the same of TD3+BC and IQL in bfloat16: Partita alone
    python benchmarks/run.py planning                # seconds to 1e-8 on 10,000 states: Partita, plain SciPy
    python benchmarks/run.py halfcheetah             # PPO steps a second: Partita, SB3, a loop in eager torch
    python benchmarks/run.py start-up                # seconds to help, import, first update: Partita, SB3, TRL
    python benchmarks/run.py scaling                 # Partita alone, from small to large
    python benchmarks/run.py grpo --quick --out /tmp/try.json

Makes the peers' environments if they are missing. For each measure prints a table of medians with ratios, and writes
every single value with a description of the machine, versions and the matmul rate of the same run to
`benchmarks/results/NAME-MEASURE.json` (NAME.json where there is but one). Nothing else should run on the machine
meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import cheetah, environments, jobs, planning, replay, scaling, starting  # noqa: E402
from benchmarks.jobs import Limit, Measure, Side, Target  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
MODEL = environments.HOME / "tiny-qwen2"
SUITE = (jobs, replay, planning, cheetah, starting, scaling)
BENCHMARKS: dict[str, tuple[Measure, ...]] = {name: what for part in SUITE for name, what in part.BENCHMARKS.items()}
TARGETS: dict[str, tuple[Target | Limit, ...]] = {name: what for part in SUITE for name, what in part.TARGETS.items()}
REPEATS, SEEDS = 7, {"sac-curves": 8, "offline-curves": 8}
SEED = 100  # settings were chosen on seeds below

Row = dict[str, Any]
Table = dict[tuple[str, str], list[Row]]


def call(python: str, module: str, args: list[str], variables: dict[str, str] | None = None) -> Row:
    """The JSON line that `python -m module args` prints last; SystemExit with its last words if it failed."""
    inherited = {**os.environ, **(variables or {})}
    done = subprocess.run(
        [python, "-m", module, *args], cwd=ROOT, env=inherited, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        tail = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise SystemExit(f"{module} {' '.join(args)}: exit code {done.returncode}\n{tail}")
    return json.loads(lines[-1])


def take(side: Side, seed: int, quick: bool, cache: str) -> Row:
    """Start one side once. A process that reports when it had `solved` gets the seconds since it was started."""
    python = sys.executable if side.environment is None else str(environments.python(side.environment))
    args = [str(MODEL) if a == "MODEL" else a for a in side.args]
    args += [*(side.quick if quick else ()), "--seed", str(seed)]
    start = time.time()
    row = call(python, side.module, args, {k: v.replace("CACHE", cache) for k, v in side.variables.items()})
    if "solved" in row:
        solved = row.pop("solved")
        row["seconds_to_475"] = solved - start if solved is not None else None
    return row


def measure(what: Measure, repeats: int, quick: bool, table: Table, machine: list[Row]) -> None:
    """All sides of a measure in turn, `repeats` times, another one first each time; fills `table`."""
    with tempfile.TemporaryDirectory() as cache:
        for side in what.sides:
            if side.primed:
                take(side, 0, quick, cache)
        for i in range(repeats):
            machine.append(call(sys.executable, "benchmarks.machine", []))
            first = i % len(what.sides)
            for side in (*what.sides[first:], *what.sides[:first]):
                row = take(side, SEED + i, quick, cache)
                table.setdefault((what.name, side.name), []).append(row)
                shown = "  ".join(f"{f} {number(row[f])}" for f in what.fields)
                print(f"{what.name} {i + 1}/{repeats}  {side.name:15} {shown}", flush=True)


def summary(rows: list[Row], field: str) -> Row:
    """Median, least and largest of a field; a run that never got there counts as infinitely long."""
    values = [math.inf if r[field] is None else r[field] for r in rows]
    median = statistics.median(values)
    return {"median": median, "min": min(values), "max": max(values)}


def compare(target: Target | Limit, table: Table) -> Row:
    """Ours over theirs, medians; whether the target is met (None where there is none)."""
    if isinstance(target, Limit):
        ours = summary(table[target.measure, target.ours], target.field)["median"]
        goal, sign, met = (
            (target.most, "<=", ours <= target.most) if target.most is not None
            else (target.least, ">=", ours >= target.least)
        )  # fmt: skip
        return {
            "measure": target.measure, "field": target.field, "ours": target.ours, "theirs": None, "our_median": ours,
            "ratio": ours / goal, "target": f"{number(ours)} {sign} {number(goal)}", "met": met,
        }  # fmt: skip
    if isinstance(target, replay.NoWorse):
        return no_worse(target, table)
    ours = summary(table[target.measure, target.ours], target.field)["median"]
    theirs = summary(table[target.measure, target.theirs], target.field)["median"]
    ratio = ours / theirs if math.isfinite(ours) else math.inf
    met = None
    if target.least is not None or target.most is not None:
        met = (target.least is None or ratio >= target.least) and (target.most is None or ratio <= target.most)
    goal = "" if met is None else f">= {target.least}" if target.least is not None else f"<= {target.most}"
    return {
        "measure": target.measure, "field": target.field, "ours": target.ours, "theirs": target.theirs,
        "our_median": ours, "their_median": theirs, "ratio": ratio, "target": goal, "met": met,
    }  # fmt: skip


def no_worse(target: Target, table: Table) -> Row:
    """Ours over theirs, means over paired seeds; met if the 95% interval of their difference reaches 0."""
    from partita.lab.statistics import paired_effect

    ours, theirs = ([r[target.field] for r in table[target.measure, s]] for s in (target.ours, target.theirs))
    difference = paired_effect(ours, theirs)
    mean, their_mean = statistics.mean(ours), statistics.mean(theirs)
    return {
        "measure": target.measure, "field": target.field, "ours": target.ours, "theirs": target.theirs,
        "our_mean": mean, "their_mean": their_mean, "ratio": mean / their_mean,
        "difference": [difference.value, difference.low, difference.high],
        "target": f"difference {difference} reaches 0", "met": difference.high >= 0,
    }  # fmt: skip


def number(value: float | None) -> str:
    """Three or more significant digits."""
    if value is None or not math.isfinite(value):
        return "never"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(name: str, what: Measure, table: Table, ratios: list[Row]) -> None:
    """Print medians (least to largest) of all sides, then the ratios."""
    print(f"\n{name} {what.name}: median (least to largest)")
    for side in what.sides:
        cells = []
        for field in what.fields:
            s = summary(table[what.name, side.name], field)
            cells.append(f"{field} {number(s['median'])} ({number(s['min'])} to {number(s['max'])})")
        print(f"  {side.name:15} {'  '.join(cells)}")
    print("ours / theirs")
    for r in ratios:
        verdict = "" if r["met"] is None else f"target {r['target']}: {'met' if r['met'] else 'NOT met'}"
        pair = f"{r['ours']} / {r['theirs'] or 'limit'}"
        print(f"  {r['field']:18} {pair:25} {number(r['ratio']):>7}  {verdict}")


def record(what: Measure, table: Table, machine: list[Row], ratios: list[Row]) -> Row:
    """What is kept of a measure, beside when and of what it was taken."""
    rates = {name: statistics.median(row[name] for row in machine) for name in machine[0] if name.endswith("_gflops")}
    loads = [row["load"] for row in machine]
    return {
        "machine": {**machine[0], **rates, "load": max(loads)},
        "ratios": ratios,
        "sides": [
            {
                "measure": what.name,
                "side": side.name,
                "role": side.role,
                "settings": rows[0].get("settings", ""),
                "threads": rows[0].get("threads"),
                "versions": rows[0]["versions"],
                **{f: summary(rows, f) for f in what.fields},
                "runs": [{f: r[f] for f in ("seed", *what.fields, "curve") if f in r} for r in rows],
            }
            for side in what.sides
            for rows in (table[what.name, side.name],)
        ],
    }


def main(argv: list[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description="Partita against its peers.")
    flags.add_argument("name", choices=list(BENCHMARKS))
    flags.add_argument("--repeats", type=int, default=None, help="7; of curves 8 seeds")
    flags.add_argument("--quick", action="store_true", help="a single short pass that only tries the harness")
    flags.add_argument("--only", default=None, help="one measure, as speed, short or short-known")
    flags.add_argument("--out", type=Path, default=None, help="of one measure; of several, their names are added to it")
    args = flags.parse_args(argv)
    repeats = 1 if args.quick else SEEDS.get(args.name, REPEATS) if args.repeats is None else args.repeats
    measures = [m for m in BENCHMARKS[args.name] if args.only in (None, m.name)]
    if not measures or repeats < 1:
        flags.error(f"--only: {args.name} has {', '.join(m.name for m in BENCHMARKS[args.name])}; --repeats from 1")
    for name in sorted({s.environment for m in measures for s in m.sides if s.environment}):
        environments.make(name)
    if any("MODEL" in s.args for m in measures for s in m.sides):
        subprocess.run([sys.executable, "-m", "benchmarks.tiny_model", str(MODEL)], cwd=ROOT, check=True)

    for what in measures:
        table: Table = {}
        machine: list[Row] = []
        measure(what, repeats, args.quick, table, machine)
        ratios = [compare(t, table) for t in TARGETS[args.name] if t.measure == what.name]
        show(args.name, what, table, ratios)
        about = {"benchmark": args.name, "date": datetime.date.today().isoformat(), "commit": commit()}
        about |= {"repeats": repeats, "quick": args.quick}
        alone = len(BENCHMARKS[args.name]) == 1
        out = RESULTS / (f"{args.name}.json" if alone else f"{args.name}-{what.name}.json")
        if args.out is not None:
            out = args.out if len(measures) == 1 else args.out.with_stem(f"{args.out.stem}-{what.name}")
        write(out, {**about, **record(what, table, machine, ratios)})
    return 0


def write(out: Path, result: Row) -> None:
    """The result as JSON, all of it or nothing."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(finite(result), indent=1) + "\n")
    partial.replace(out)
    print(f"matmul {result['machine']['matmul_gflops']:.0f} GFLOP/s; wrote {out}")


def commit() -> str:
    """The commit that was measured, with a plus if the tree had changes; empty outside a repository."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "src"], cwd=ROOT, capture_output=True)
    return done.stdout.strip() + ("+" if changed.returncode == 1 else "")


if __name__ == "__main__":
    sys.exit(main())
