"""Where the time of an update goes: matrix products, other operators, autograd, and Python between them.

    python benchmarks/anatomy.py                 # every case, each a process on one core
    python benchmarks/anatomy.py --case sac      # one of them, printed

A case is one of our sides of another benchmark, run as it is there, with some functions of the library on the clock.
Some calls of each are watched by torch's profiler, which makes them slower, the more so the smaller their operators
are; shares are of those calls, by medians:

    whole      milliseconds of a call that is not watched, mean; share: of the loop's time
    products   matrix products; gflops is their rate, matmul_gflops the machine's in the same process
    operators  all other operators of torch
    autograd   what it does between the operators of a backward pass
    between    all else: Python, and in `simulator` MuJoCo

watched: milliseconds of a call that is. Of a compiled call the products are those that its program asks a library for,
operators the loops that the compiler wrote, and what it computes is not counted (gflops).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib
import io
import json
import os
import runpy
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.run import RESULTS, call, commit  # noqa: E402
from benchmarks.tables import PARTS  # noqa: E402

SKIPPED, COUNTED = 3, 2  # calls before all others, and of how many of them operations are counted
WATCHED = 6  # calls by the profiler, before those on the clock
PRODUCTS = frozenset(
    ("mkldnn::_linear_pointwise", "aoti_torch_cpu__linear_pointwise")
    + tuple(f"aten::{name}" for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "mv", "addmv"))
)
MINIBATCH = ("partita.loops.descent", "Descent.__call__")
SEGMENT = ("partita.parts.rollout.segments", "play")
BLOCKS = ("partita.parts.rollout.segments", "Blocks.__call__")
SIMULATOR = ("partita.tasks.control.gym", "GymEnvs.step")
UPDATE = ("partita.loops.replay", "improve")


@dataclass(frozen=True)
class Case:
    """A script of `benchmarks.ours` with its arguments, and the functions to look at, by what they are called here."""

    script: str
    args: tuple[str, ...]
    places: dict[str, tuple[str, str]]

    @property
    def compiled(self) -> bool:
        return "--compile" in self.args


_CARTPOLE = ("speed", "--warm", "32768", "--steps", "65536")
_REPLAY = ("--threads", "1", "--seconds", "3")
_BOTH = ("--dtype", "bfloat16", "--compile")
CASES = {
    "ppo, CartPole": Case("partita_cartpole", _CARTPOLE, {"minibatch": MINIBATCH, "segment": SEGMENT}),
    "ppo, CartPole, compiled": Case(
        "partita_cartpole", (*_CARTPOLE, "--compile"), {"minibatch": MINIBATCH, "segment": BLOCKS}
    ),
    "ppo, HalfCheetah": Case(
        "partita_cheetah",
        ("many", "--steps", "30720"),
        {"minibatch": MINIBATCH, "segment": SEGMENT, "simulator": SIMULATOR},
    ),
    "sac": Case("partita_sac", _REPLAY, {"update": UPDATE}),
    "sac, compiled": Case("partita_sac", (*_REPLAY, "--compile"), {"update": UPDATE}),
    "sac, compiled, bfloat16": Case("partita_sac", (*_REPLAY, *_BOTH), {"update": UPDATE}),
    "td3_bc": Case("partita_offline", ("td3_bc", *_REPLAY), {"update": UPDATE}),
    "td3_bc, compiled": Case("partita_offline", ("td3_bc", *_REPLAY, "--compile"), {"update": UPDATE}),
    "td3_bc, compiled, bfloat16": Case("partita_offline", ("td3_bc", *_REPLAY, *_BOTH), {"update": UPDATE}),
    "iql": Case("partita_offline", ("iql", *_REPLAY), {"update": UPDATE}),
    "iql, compiled": Case("partita_offline", ("iql", *_REPLAY, "--compile"), {"update": UPDATE}),
    "iql, compiled, bfloat16": Case("partita_offline", ("iql", *_REPLAY, *_BOTH), {"update": UPDATE}),
}


@dataclass
class Piece:
    """A function of the library on the clock, and what the profiler says of some of its calls, in seconds."""

    compiled: bool
    kin: list[Piece] = field(default_factory=list)  # pieces of the case; the clock starts when none is watched any more
    spans: list[tuple[float, float]] = field(default_factory=list)
    seen: list[Counter[str]] = field(default_factory=list)
    flops: int = 0
    calls: int = 0
    over: int = 0

    def __post_init__(self) -> None:
        self.kin.append(self)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, on the clock."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            try:
                return self._take(lambda: function(*args, **kwargs))
            finally:
                self.over += 1

        return timed

    def _take(self, call: Callable[[], Any]) -> Any:
        if SKIPPED - COUNTED < self.calls <= SKIPPED and not self.compiled:
            return self._count(call)
        if SKIPPED < self.calls <= SKIPPED + WATCHED:
            return self._watch(call)
        on = all(piece.over >= SKIPPED + WATCHED for piece in self.kin if piece is not self)
        start = time.perf_counter()
        out = call()
        if on and self.calls > SKIPPED + WATCHED:
            self.spans.append((start, time.perf_counter()))
        return out

    def _count(self, call: Callable[[], Any]) -> Any:
        from benchmarks.machine import operations

        with operations() as counter:
            out = call()
        self.flops += counter.get_total_flops()
        return out

    def _watch(self, call: Callable[[], Any]) -> Any:
        from torch.profiler import ProfilerActivity, profile

        spent: Counter[str] = Counter()
        with profile(activities=[ProfilerActivity.CPU]) as watch:
            start = time.perf_counter()
            out = call()
            spent["watched"] = time.perf_counter() - start
        for event in watch.key_averages():
            what = kind(event.key, self.compiled)
            spent[what] += event.self_cpu_time_total / 1e6
            spent["count"] += event.count * (what in PARTS[:2])
        self.seen.append(spent)
        return out

    def found(self) -> dict[str, float | int | None]:
        """What it comes to: milliseconds, and shares."""
        durations = [end - start for start, end in self.spans]
        times = [time for piece in self.kin for span in piece.spans for time in span]
        row: dict[str, float | int | None] = {
            "whole": 1e3 * statistics.fmean(durations), "calls": len(durations),
            "share": sum(durations) / (max(times) - min(times)),
        }  # fmt: skip
        usual = {name: statistics.median(call[name] for call in self.seen) for name in ("watched", "count", *PARTS)}
        shares = {name: usual[name] / usual["watched"] for name in PARTS[:-1]}
        shares["between"] = 1 - sum(shares.values())
        return row | shares | {
            "watched": 1e3 * usual["watched"], "count": usual["count"],
            "gflops": self.flops / COUNTED / usual["products"] / 1e9 if self.flops and usual["products"] else None,
        }  # fmt: skip


def kind(event: str, compiled: bool) -> str:
    """Which of the parts of a call an event of the profiler belongs to; what only calls others is none of them."""
    if event in PRODUCTS or (event.startswith("aoti_torch_") and "mm" in event):
        return "products"
    if "::" in event[:8] or "cpp_fused" in event:
        return "operators"
    return "calling" if compiled else "autograd"


def owner(module: str, dotted: str) -> tuple[Any, str]:
    """The module or class that holds a function, and its name there."""
    *above, attribute = dotted.split(".")
    return functools.reduce(getattr, above, importlib.import_module(module)), attribute


def take(name: str) -> list[dict[str, Any]]:
    """Run a case in this process; a row for each of its functions."""
    from benchmarks.machine import matmul_gflops
    from benchmarks.replay import limit

    os.environ["TORCHINDUCTOR_CPP_ENABLE_KERNEL_PROFILE"] = "1"  # the profiler is told of the loops of programs
    limit(1)
    case, pieces, kin = CASES[name], {}, []
    with contextlib.ExitStack() as patched:
        for label, where in case.places.items():
            place, attribute = owner(*where)
            pieces[label] = Piece(case.compiled, kin)
            patched.enter_context(mock.patch.object(place, attribute, pieces[label].around(getattr(place, attribute))))
        patched.enter_context(mock.patch.object(sys, "argv", [case.script, *case.args]))
        patched.enter_context(contextlib.redirect_stdout(io.StringIO()))
        runpy.run_module(f"benchmarks.ours.{case.script}", run_name="__main__")
    rate = matmul_gflops()
    return [{"case": name, "piece": label, **piece.found(), "matmul_gflops": rate} for label, piece in pieces.items()]


def main(argv: list[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description="Where the time of an update goes.")
    flags.add_argument(
        "--case", choices=list(CASES), default=None, help="one, as a JSON line, instead of a file of all"
    )
    flags.add_argument("--out", type=Path, default=RESULTS / "anatomy.json")
    args = flags.parse_args(argv)
    if args.case is not None:
        print(json.dumps({"pieces": take(args.case)}))
        return 0
    machine, rows = call(sys.executable, "benchmarks.machine", []), []
    for name in CASES:
        for row in call(sys.executable, "benchmarks.anatomy", ["--case", name])["pieces"]:
            rows.append(row)
            shown = (f"{k} {row[k]:.3g}" for k in ("whole", "watched", "share", *PARTS) if row[k])
            print(f"{name:26} {row['piece']:10} {'  '.join(shown)}", flush=True)
    about = {"benchmark": "anatomy", "date": datetime.date.today().isoformat(), "commit": commit()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps({**about, "machine": {**machine, "load_after": os.getloadavg()[0]}, "cases": rows}, indent=1) + "\n"
    )
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
