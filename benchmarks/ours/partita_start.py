"""Partita from the start of a process: to its help, its import, or the end of its first update.

    python -m benchmarks.ours.partita_start help
    python -m benchmarks.ours.partita_start grpo                            # at its defaults
    python -m benchmarks.ours.partita_start grpo --no-eval --same --model FOLDER

The command line as it is; `benchmarks/starting.py` has the definitions. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.protocol import report
from benchmarks.starting import RECIPES, until, whole

WORDS = {
    "ppo": ("--task", "cartpole"),
    "sac": ("--task", "pendulum", "--updates", "1"),
    "grpo": ("--task", "arithmetic"),
    "dpo": ("--task", "lab"),
}


def words(recipe: str, model: str | None, folder: Path, seed: int) -> list[str]:
    """What follows `partita train RECIPE`; with a model, the peer's workload on it."""
    if model is None:
        return list(WORDS[recipe])
    if recipe == "grpo":
        from benchmarks.tiny_model import COMPLETIONS, GROUP, SIZES

        sizes = ["--batch-size", str(COMPLETIONS // GROUP), "--group-size", str(GROUP)]
        return ["--task", "arithmetic", "--policy.model", model, *sizes, "--rollout.max-tokens", str(SIZES["short"][1])]
    from benchmarks.dpo import PAIRS, rows

    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows("short", "known", 1, seed)))
    return ["--task", str(path), "--policy.model", model, "--batch-size", str(PAIRS)]


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("what", choices=["help", "import", *RECIPES])
    flags.add_argument("--model", default=None)
    flags.add_argument("--same", action="store_true", help="the model, and as much of it, as the peer has (grpo, dpo)")
    flags.add_argument("--no-eval", action="store_true", help="no evaluation before the first step")
    flags.add_argument("--seed", type=int, default=0)
    args = flags.parse_args()
    settings = "nothing but the import"
    if args.what == "help":
        settings, found = "partita --help", whole("-m", "partita", "--help")
    elif args.what == "import":
        found = whole("-c", "import partita")
    else:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            given = words(args.what, args.model if args.same else None, folder, args.seed)
            given += ["--eval-size", "0"] if args.no_eval else []
            settings = f"partita train {args.what} {' '.join(given)}".replace(place, "FOLDER")
            settings = settings if args.model is None else settings.replace(args.model, "MODEL")
            given += ["--seed", str(args.seed), "--quiet", "--out", str(folder / "run")]
            found = until(folder / "run" / "metrics.jsonl", "-m", "partita", "train", args.what, *given)
    report("partita", ("partita", "torch"), what=args.what, seed=args.seed, settings=settings, **found)


if __name__ == "__main__":
    main()
