"""The benchmark of starting: what every side of `start-up` does, and how it is timed.

    python benchmarks/run.py start-up        # seconds to help, to an import, and to a first update: Partita, SB3, TRL

Every side starts processes of its own interpreter and looks at the clock from outside, from just before the process is
made. One start beforehand, not counted, leaves compiled files behind, as on any second day of use.

**help**, **import.** seconds: until the process is over. cpu_seconds: its processor time.

**ppo**, **sac**, **grpo**, **dpo.** seconds: until the first update is over, when the process is ended. For PPO, GRPO
and DPO that is all that is learnt from the first batch, for SAC the first gradient step of its networks. torch_seconds:
of `python -c "import torch"`, the median of `ALONE` starts around it; beyond_torch is the difference, cpu_beyond_torch
that of processor time. Partita tells of an update by its folder (a line in metrics.jsonl), peers by a file that a
callback makes; a look at it every `PAUSE` seconds.

What is asked of the sides, all else at their defaults (`partita-same` and `trl`: the model of `tiny_model.py`):

    ppo     CartPole; Partita a batch of 64 x 128 steps and 16 updates, SB3 one of 1 x 2048 and 320
    sac     Pendulum; 100 random steps, then one step and one update
    grpo    256 responses; Partita to arithmetic, by its bundled model of 0.3 million weights; `partita-same` to
            arithmetic, `trl` to random prompts of 12 tokens, both with 12 tokens at most
    dpo     32 pairs; Partita those of its preference laboratory, which it samples itself; `partita-same` and `trl`
            random ones of 64 + 64 tokens, from a file or from memory

Partita evaluates before it learns (200 episodes or problems), its peers do not; `no-eval` leaves that out.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.jobs import OURS, THEIRS, Limit, Measure, Side, Target

ALONE, PAUSE, PATIENCE = 2, 0.002, 300.0
RECIPES = ("ppo", "sac", "grpo", "dpo")


def processor() -> float:
    """Processor time of all processes that ended under this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def whole(*args: str) -> dict[str, float]:
    """Seconds that `python ARGS` takes from beginning to end, and of the processor."""
    used, start = processor(), time.perf_counter()
    done = subprocess.run([sys.executable, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"python {' '.join(args)}: exit code {done.returncode}\n{done.stderr.strip()[-2000:]}")
    return {"seconds": seconds, "cpu_seconds": processor() - used}


def until(sign: Path, *args: str) -> dict[str, float]:
    """Seconds from the start of `python ARGS` until the file `sign` is there and not empty, when it is killed."""
    alone = [whole("-c", "import torch") for _ in range(ALONE - 1)]
    with tempfile.TemporaryFile("w+") as words:
        used, start = processor(), time.perf_counter()
        process = subprocess.Popen([sys.executable, *args], stdin=subprocess.DEVNULL, stdout=words, stderr=words)
        try:
            while not (there := sign.exists() and sign.stat().st_size > 0):
                if process.poll() is not None or time.perf_counter() - start > PATIENCE:
                    break
                time.sleep(PAUSE)
            seconds = time.perf_counter() - start
        finally:
            process.kill()
            process.wait()
        if not there:
            words.seek(0)
            raise SystemExit(f"python {' '.join(args)}: no first update\n{words.read().strip()[-2000:]}")
    used = processor() - used
    alone.append(whole("-c", "import torch"))
    wall, work = (statistics.median(row[name] for row in alone) for name in ("seconds", "cpu_seconds"))
    return {
        "seconds": seconds,
        "torch_seconds": wall,
        "beyond_torch": seconds - wall,
        "cpu_seconds": used,
        "cpu_beyond_torch": used - work,
    }


def _side(name: str, script: str, *args: str) -> Side:
    environment = None if script == "partita" else script
    module = f"{OURS if environment is None else THEIRS}.{script}_start"
    return Side(name, environment, module, args, primed=True)


def _first(recipe: str) -> Measure:
    args = (recipe, "--model", "MODEL")
    sides = [_side("partita", "partita", *args), _side("partita-no-eval", "partita", *args, "--no-eval")]
    if recipe in ("grpo", "dpo"):
        sides.append(_side("partita-same", "partita", *args, "--no-eval", "--same"))
        sides.append(_side("trl", "trl", *args))
    else:
        sides.append(_side("sb3", "sb3", *args))
    return Measure(recipe, ("seconds", "torch_seconds", "beyond_torch", "cpu_beyond_torch"), tuple(sides))


BENCHMARKS = {
    "start-up": (
        Measure("help", ("seconds", "cpu_seconds"), (_side("partita", "partita", "help"), _side("trl", "trl", "help"))),
        Measure(
            "import",
            ("seconds", "cpu_seconds"),
            tuple(_side(name, name, "import") for name in ("partita", "sb3", "trl")),
        ),
        *map(_first, RECIPES),
    )
}

TARGETS: dict[str, tuple[Target | Limit, ...]] = {
    "start-up": (
        *(Limit(name, "seconds", "partita", most=0.3) for name in ("help", "import")),
        Target("help", "seconds", "partita", "trl"),
        *(Target("import", "seconds", "partita", peer) for peer in ("sb3", "trl")),
        *(Limit(name, "beyond_torch", "partita", most=3.0) for name in RECIPES),
        *(Target(name, "seconds", ours, "sb3") for name in ("ppo", "sac") for ours in ("partita", "partita-no-eval")),
        *(Target(name, "seconds", ours, "trl") for name in ("grpo", "dpo") for ours in ("partita", "partita-same")),
    )
}
