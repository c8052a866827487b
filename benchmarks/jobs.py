"""What is compared: for each benchmark its measures, their sides, and the targets set for them."""

from __future__ import annotations

from dataclasses import dataclass, field

OURS, THEIRS = "benchmarks.ours", "benchmarks.peers"


@dataclass(frozen=True)
class Side:
    """One process to start: `python -m MODULE ARGS` with the interpreter of `environment` (None: our own).

    quick: arguments that are added when only the harness itself is tried. variables: added to its environment;
    CACHE stands for a folder that lasts through the benchmark. primed: started once, unmeasured, to fill that folder.
    floor: it does less than the others have to, and shows what none of them can beat.
    """

    name: str
    environment: str | None
    module: str
    args: tuple[str, ...]
    quick: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    primed: bool = False
    floor: bool = False

    @property
    def role(self) -> str:
        """What it is in a comparison: ours, peer or floor."""
        return "floor" if self.floor else "ours" if self.module.startswith(OURS) else "peer"


@dataclass(frozen=True)
class Measure:
    """Numbers that every side reports (`fields`), taken alternately; the first side is ours."""

    name: str
    fields: tuple[str, ...]
    sides: tuple[Side, ...]


@dataclass(frozen=True)
class Target:
    """Ours over theirs (for `ours` over `theirs` sides of a measure) must be at least, or at most, a number."""

    measure: str
    field: str
    ours: str
    theirs: str
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Limit:
    """The median of a side must be at least, or at most, a number of its own, whatever others need."""

    measure: str
    field: str
    ours: str
    least: float | None = None
    most: float | None = None


CACHED = {"JAX_COMPILATION_CACHE_DIR": "CACHE", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
FEW = ("--warm", "16384", "--steps", "16384")
SHORTLY = ("--warm", "1", "--steps", "2")


def _ours(what: str, *args: str, name: str = "partita", quick: tuple[str, ...] = ()) -> Side:
    return Side(name, None, f"{OURS}.partita_cartpole", (what, *args), quick)


def _sb3(what: str, quick: tuple[str, ...] = ()) -> Side:
    return Side("sb3", "sb3", f"{THEIRS}.sb3_cartpole", (what, "--threads", "1"), quick)


def _rejax(what: str, quick: tuple[str, ...] = ()) -> Side:
    return Side("rejax", "rejax", f"{THEIRS}.rejax_cartpole", (what,), quick)


def _grpo(size: str, *steps: str) -> Measure:
    args = (size, "--model", "MODEL", *steps)
    ours = Side("partita", None, f"{OURS}.partita_grpo", args, SHORTLY)
    theirs = Side("trl", "trl", f"{THEIRS}.trl_grpo", args, SHORTLY)
    small = Side("trl-lean", "trl", f"{THEIRS}.trl_grpo", (*args, "--micro", "16"), SHORTLY)
    fields = ("tokens_per_second", "median_step_seconds", "cpu_seconds", "peak_mb", "increase_mb")
    return Measure(size, fields, (ours, theirs, small))


def _dpo(size: str, reference: str, *steps: str) -> Measure:
    args = (size, reference, "--model", "MODEL", *steps)
    quick = ("--steps", "2")
    ours = Side("partita", None, f"{OURS}.partita_dpo", args, quick)
    theirs = Side("trl", "trl", f"{THEIRS}.trl_dpo", args, quick)
    small = Side("trl-lean", "trl", f"{THEIRS}.trl_dpo", (*args, "--micro", "4"), quick)
    fields = ("pairs_per_second", "median_step_seconds", "cpu_seconds", "peak_mb", "increase_mb")
    return Measure(f"{size}-{reference}", fields, (ours, theirs, small) if reference == "known" else (ours, theirs))


BENCHMARKS: dict[str, tuple[Measure, ...]] = {
    "cartpole": (
        Measure(
            "speed",
            ("steps_per_second", "peak_mb"),
            (
                _ours("speed", quick=FEW),
                _ours("speed", "--compile", name="partita-compiled", quick=FEW),
                _ours("speed", "--compile", "--threads", "2", name="partita-compiled-2", quick=FEW),
                _ours("speed", "--as", "sb3", "--steps", "65536", name="partita-as-sb3", quick=FEW),
                _sb3("speed", FEW),
                _rejax("speed", ("--iterations", "4")),
            ),
        ),
        Measure(
            "solve",
            ("seconds_to_475", "steps", "peak_mb"),
            (
                _ours("solve"),
                _sb3("solve"),
                Side("sbx", "sbx", f"{THEIRS}.sbx_cartpole", ("solve",), variables={"JAX_PLATFORMS": "cpu"}),
                _rejax("solve"),
                Side(
                    "rejax-cached", "rejax", f"{THEIRS}.rejax_cartpole", ("solve",), variables=CACHED, primed=True
                ),
            ),
        ),
    ),
    "grpo": (_grpo("short"), _grpo("long", "--warm", "1", "--steps", "3")),
    "dpo": tuple(
        _dpo(size, reference, "--steps", steps)
        for size, steps in (("short", "10"), ("long", "4"))
        for reference in ("known", "fresh")
    ),
}  # fmt: skip

TARGETS: dict[str, tuple[Target, ...]] = {
    "cartpole": (
        *(
            Target("speed", "steps_per_second", ours, peer, least=least)
            for ours in ("partita", "partita-compiled", "partita-compiled-2")
            for peer, least in (("sb3", 20.0), ("rejax", 1.5))
        ),
        Target("speed", "steps_per_second", "partita-as-sb3", "sb3"),
        *(Target("solve", "seconds_to_475", "partita", peer, most=0.5) for peer in ("sb3", "sbx", "rejax")),
        Target("solve", "seconds_to_475", "partita", "rejax-cached"),
    ),
    "grpo": tuple(
        target
        for size, least in (("short", 2.0), ("long", 3.0))
        for target in (
            Target(size, "tokens_per_second", "partita", "trl", least=least),
            Target(size, "peak_mb", "partita", "trl", most=0.5),
            Target(size, "increase_mb", "partita", "trl"),
            Target(size, "cpu_seconds", "partita", "trl"),
            Target(size, "peak_mb", "partita", "trl-lean"),
        )
    ),
    "dpo": tuple(
        target
        for size in ("short", "long")
        for reference in ("known", "fresh")
        for target in (
            Target(f"{size}-{reference}", "pairs_per_second", "partita", "trl", least=2.0),
            Target(f"{size}-{reference}", "peak_mb", "partita", "trl", most=0.5),
            Target(f"{size}-{reference}", "increase_mb", "partita", "trl"),
            Target(f"{size}-{reference}", "cpu_seconds", "partita", "trl"),
            *([Target(f"{size}-known", "peak_mb", "partita", "trl-lean")] if reference == "known" else []),
        )
    ),
}
