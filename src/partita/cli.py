"""The command line. Each command imports what it needs when it runs, so that help is instant."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from partita import __version__
from partita.core.errors import UserError, nearest
from partita.core.words import take

HELP = """partita: policy optimisation, in parts

  partita train RECIPE [--task T] [--SLOT PART] [--FIELD VALUE] ...   train a policy by recipe
  partita train --config FILE | --resume DIR                          again, or on from where it stopped
  partita play DIR                evaluate a trained policy; --gif FILE or --mp4 FILE to watch it
  partita report DIR ...          one HTML page comparing runs
  partita papers                  the works held here; --json, --family F
  partita show KEY                one work: summary, equations, what it changes, evidence
  partita diff A B                two recipes slot by slot, with their equations
  partita parts [SLOT]            every part that can fill a slot
  partita COMMAND --help          more about a command
"""


def papers(argv: list[str]) -> None:
    """partita papers [--json] [--family F]: the works held here."""
    from partita.lab.catalogue import rows

    family = take(argv, "--family")
    as_json = _switch(argv, "--json")
    _nothing_left(argv, "papers")
    found = rows(family)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    width = max((len(r["key"]) for r in found), default=0)
    for row in found:
        claim = row["claim"]
        verdict = "-" if claim is None else claim["verdict"] or "no evidence yet"
        print(f"{row['key']:{width}}  {row['family']:12} {row['kind']:10} {verdict:16} {row['title']}")
    print(f"{len(found)} works")


def show(argv: list[str]) -> None:
    """partita show KEY: summary, equations, what it changes, evidence."""
    from partita.lab.catalogue import show as lines

    key = _positional(argv, "show", "KEY", 1)[0]
    print("\n".join(lines(key)))


def diff(argv: list[str]) -> None:
    """partita diff A B: two recipes slot by slot, fields that differ, equations of both."""
    from partita.lab.catalogue import diff as lines

    a, b = _positional(argv, "diff", "A B", 2)
    print("\n".join(lines(a, b)))


def parts(argv: list[str]) -> None:
    """partita parts [SLOT]: every part that can fill a slot."""
    from partita.core import registry

    table = registry.index()["parts"]
    if argv and argv[0] not in table:
        raise UserError(f"parts {argv[0]}: no such slot; {nearest(argv[0], table)}")
    for slot, names in table.items():
        if argv and slot != argv[0]:
            continue
        print(slot)
        for name, entry in names.items():
            print(f"  {name:22} {entry['summary']}")


def train(argv: list[str]) -> None:
    """partita train RECIPE [flags]: train a policy by recipe; `partita train RECIPE --help` lists every flag.

    --task T            what to train on; --env gym:ID for Gymnasium, FILE.jsonl for a dataset
    --SLOT PART         another part for a slot: a name, a paper's key, or FILE.py:CLASS; then --SLOT.FIELD VALUE
    --config FILE       a run's own config.json reproduces it
    --resume DIR        continue a run that was stopped, to the same result
    --out DIR --seed N --steps N --lr X --until X --eval-every N --smoke --quiet
    """
    from partita.lab.session import train as run

    run(argv)


def play(argv: list[str]) -> None:
    """partita play DIR [--episodes N] [--sampled] [--seed N] [--gif FILE] [--mp4 FILE]: evaluate a trained policy."""
    from partita.lab.play import play as run

    options = {name: take(argv, f"--{name}") for name in ("episodes", "seed", "gif", "mp4")}
    sampled = _switch(argv, "--sampled")
    folder = _positional(argv, "play", "DIR", 1)[0]
    run(
        Path(folder), _integer("--episodes", options["episodes"], 100), _integer("--seed", options["seed"], 0),
        not sampled, options["gif"], options["mp4"],
    )  # fmt: skip


def report(argv: list[str]) -> None:
    """partita report DIR ... [--out FILE]: one self-contained HTML page comparing runs."""
    from partita.lab.report import write

    out = take(argv, "--out")
    if not argv:
        raise UserError("report: name one or more run folders")
    _no_flags(argv, "report")
    folders = [Path(a) for a in argv]
    target = Path(out) if out else (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    print(f"wrote {write(folders, target)}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train, "play": play, "report": report, "papers": papers, "show": show, "diff": diff, "parts": parts,
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Run a command; bad input prints one line and exits with code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in ("--help", "-h", "help"):
            print(HELP, end="")
        elif words[0] in ("--version", "-V"):
            print(f"partita {__version__}")
        elif words[0] not in COMMANDS:
            raise UserError(f"{words[0]}: no such command; {nearest(words[0], COMMANDS)}")
        elif words[1:] in (["--help"], ["-h"]):
            print((COMMANDS[words[0]].__doc__ or "").strip())
        else:
            COMMANDS[words[0]](words[1:])
    except UserError as error:
        if os.environ.get("PARTITA_TRACEBACK"):
            raise
        print(f"partita: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(0)
    except KeyboardInterrupt:
        print("partita: interrupted", file=sys.stderr)
        sys.exit(130)


def _switch(argv: list[str], flag: str) -> bool:
    if flag in argv:
        argv.remove(flag)
        return True
    return False


def _integer(flag: str, text: str | None, default: int) -> int:
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise UserError(f"{flag}: expected a whole number, got {text!r}")
    return value


def _no_flags(argv: list[str], command: str) -> None:
    for word in argv:
        if word.startswith("-"):
            raise UserError(f"{command}: no flag {word}; see partita {command} --help")


def _nothing_left(argv: list[str], command: str) -> None:
    _no_flags(argv, command)
    if argv:
        raise UserError(f"{command}: unexpected {argv[0]!r}; see partita {command} --help")


def _positional(argv: list[str], command: str, names: str, count: int) -> list[str]:
    _no_flags(argv, command)
    if len(argv) != count:
        raise UserError(f"{command}: expected {names}, got {' '.join(argv) or 'nothing'}")
    return argv


if __name__ == "__main__":
    main()
