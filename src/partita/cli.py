"""The command line. Each command imports what it needs when it runs, so that help is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from partita import __version__, commands
from partita.core.errors import UserError, nearest

HELP = """partita: policy optimisation, in parts

  partita train RECIPE [--task T] [--SLOT PART] [--FIELD VALUE] ...   train a policy by recipe
  partita train --config FILE | --resume DIR                          again, or on from where it stopped
  partita solve RECIPE            a known problem exactly: value_iteration, policy_iteration, ...; --task T
  partita play DIR                evaluate a trained policy; --gif FILE or --mp4 FILE to watch it
  partita evaluate DIR_OR_MODEL   pass@k, cot_pass@k or success on a task, with intervals; --task T --metric M
  partita evaluate --endpoint URL a served model plays a world; --model NAME --world W
  partita evaluate DIR --ope fqe  what a run's policy would earn, from logged data alone; also is, wis, dr
  partita report [DIR ...]        one HTML page comparing runs; without runs, a site of all works and evidence
  partita compare A B ...         recipes over the same seeds: table, intervals, page; --task T --seeds N --jobs N
  partita claim KEY               a work's claim, treatment against control, written as evidence; --check, --all
  partita figure KEY              a work's figures, measured beside the theory's lines, for its page
  partita tune RECIPE             search settings on tuning seeds; --search lr=1e-4..1e-2:log --trials N
  partita record TASK             episodes by scripted behaviours or a run's policy; --behaviour MIX --out DIR
  partita export DIR              the language model of a run as a folder that transformers and vLLM load; --to hf
  partita serve DIR               the same behind the OpenAI-compatible completions protocol; --port N
  partita data DIR_OR_FILE        what logged data, or a file of preferences, hold, and which rows are useless
  partita doctor DIR              what is going wrong in a run, and which parts address it
  partita papers                  the works held here; --json, --family F
  partita show KEY                one work: summary, equations, what it changes, evidence
  partita diff A B                two recipes slot by slot, with their equations
  partita parts [SLOT]            every part that can fill a slot
  partita COMMAND --help          more about a command
"""

NAMES = (
    "train", "solve", "compare", "claim", "figure", "tune", "record", "data", "doctor", "play", "evaluate", "report",
    "export", "serve", "papers", "show", "diff", "parts",
)  # fmt: skip
COMMANDS: dict[str, Callable[[list[str]], None]] = {name: getattr(commands, name) for name in NAMES}


def main(argv: list[str] | None = None) -> None:
    """Run a command; bad input prints one line and exits with code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if int(os.environ.get("RANK", "0")):  # the first of several ranks speaks for all
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    try:
        if not words or words[0] in ("--help", "-h", "help"):
            print(HELP, end="")
        elif words[0] in ("--version", "-V"):
            print(f"partita {__version__}")
        elif words[0] not in COMMANDS:
            raise UserError(f"{words[0]}: no such command; {nearest(words[0], COMMANDS)}")
        elif words[1:] in (["--help"], ["-h"]):
            print((COMMANDS[words[0]].__doc__ or "").strip())
        elif words[0] != "train" and os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError(f"{words[0]}: runs as one process; under torchrun only partita train does not")
        else:
            COMMANDS[words[0]](words[1:])
    except UserError as error:
        if os.environ.get("PARTITA_TRACEBACK"):
            raise
        print(f"partita: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(0)
    except KeyboardInterrupt as stopped:
        print(f"partita: {stopped.args[0] if stopped.args else 'interrupted'}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
