"""Stable-Baselines3 from the start of a process: to its import, or the end of its first update.

    python -m benchmarks.peers.sb3_start import
    python -m benchmarks.peers.sb3_start ppo

`benchmarks/starting.py` has the definitions. With --sign the process is the one that is timed. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.protocol import report
from benchmarks.starting import until, whole

# Environment and steps until the first update is over, at the library's defaults.
WHAT = {"ppo": ("CartPole-v1", 2048), "sac": ("Pendulum-v1", 101)}


def learn(what: str, sign: Path, seed: int) -> None:
    """Learn until the first update is over."""
    import stable_baselines3

    environment, steps = WHAT[what]
    model = getattr(stable_baselines3, what.upper())("MlpPolicy", environment, seed=seed, device="cpu")
    model.learn(steps)
    if model._n_updates < 1:
        raise SystemExit("no update: not as agreed")
    sign.write_text("over\n")


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("what", choices=["import", *WHAT])
    flags.add_argument("--model", default=None, help="has no meaning here")
    flags.add_argument("--sign", type=Path, default=None, help="the file that says that the first update is over")
    flags.add_argument("--seed", type=int, default=0)
    args = flags.parse_args()
    if args.sign is not None:
        learn(args.what, args.sign, args.seed)
        return
    if args.what == "import":
        settings, found = "import stable_baselines3", whole("-c", "import stable_baselines3")
    else:
        settings = "defaults, {} on {}, {} steps".format(args.what.upper(), *WHAT[args.what])
        with tempfile.TemporaryDirectory() as folder:
            sign = Path(folder) / "sign"
            again = ("-m", "benchmarks.peers.sb3_start", args.what, "--sign", str(sign), "--seed", str(args.seed))
            found = until(sign, *again)
    report("sb3", ("stable-baselines3", "torch"), what=args.what, seed=args.seed, settings=settings, **found)


if __name__ == "__main__":
    main()
