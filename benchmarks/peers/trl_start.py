"""TRL from the start of a process: to its help, its import, or the end of its first update.

    python -m benchmarks.peers.trl_start import
    python -m benchmarks.peers.trl_start grpo --model FOLDER

`import` is of its two trainers, since `import trl` alone loads next to nothing. The first update is that of
`trl_grpo.py` and `trl_dpo.py` beside this file; `benchmarks/starting.py` has the definitions. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.protocol import report
from benchmarks.starting import until, whole

IMPORT = "from trl import DPOTrainer, GRPOTrainer"
SCRIPTS = {
    "grpo": ("benchmarks.peers.trl_grpo", "short", "--warm", "1", "--steps", "1"),
    "dpo": ("benchmarks.peers.trl_dpo", "short", "fresh", "--steps", "1"),
}


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("what", choices=["help", "import", *SCRIPTS])
    flags.add_argument("--model", default=None)
    flags.add_argument("--seed", type=int, default=0)
    args = flags.parse_args()
    if args.what == "help":
        settings, found = "trl --help", whole("-c", "from trl.cli import main; main()", "--help")
    elif args.what == "import":
        settings, found = IMPORT, whole("-c", IMPORT)
    else:
        settings = " ".join(SCRIPTS[args.what][1:])
        with tempfile.TemporaryDirectory() as folder:
            sign = Path(folder) / "sign"
            own = ("--model", args.model, "--sign", str(sign), "--seed", str(args.seed))
            found = until(sign, "-m", *SCRIPTS[args.what], *own)
    report("trl", ("trl", "torch", "transformers"), what=args.what, seed=args.seed, settings=settings, **found)


if __name__ == "__main__":
    main()
