"""`partita compare`: from the words of a command line to a finished comparison."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from partita.core import registry
from partita.core.errors import UserError
from partita.core.words import switch, take, whole
from partita.lab.comparison import Comparison, default_metric
from partita.lab.config import Config
from partita.lab.flags import parse
from partita.lab.jobs import Engine, unfinished
from partita.lab.measures import check
from partita.lab.watch import Watch

ENDLESS = 1_000_000  # steps of a run whose budget is counted otherwise
OURS = ("--out", "--quiet", "--smoke", "--track", "--resume", "--config")  # flags of `train` that arms cannot have


def compare(argv: Sequence[str], engine: Engine) -> None:
    """Run the comparison that the words ask for, or go on with it; print its table and write its page."""
    words = list(argv)
    quiet = switch(words, "--quiet")
    comparison = understood(words)
    from partita.lab.compare_page import page  # while the runs' process loads
    from partita.lab.compared import summary, table

    try:
        with Watch("compare", quiet) as watch:
            comparison.run(engine, watch)
    except KeyboardInterrupt:
        done = len(comparison.jobs) - len(unfinished(comparison.jobs))
        told = f"interrupted: {done} of {len(comparison.jobs)} runs are finished; the same command goes on"
        raise KeyboardInterrupt(told) from None
    found = summary(comparison)
    print("\n".join(table(found)))
    print(f"{comparison.folder}: finished; report in {page(comparison, found)}")


def understood(words: list[str]) -> Comparison:
    """The comparison that the words describe; none may be left."""
    options = {name: take(words, f"--{name}") for name in ("seeds", "budget", "metric", "better", "threshold", "out")}
    given, common = split(words)
    if len(given) < 2:
        raise UserError("compare: name two or more arms, for example: partita compare grpo dapo --task countdown")
    arms: dict[str, Config] = {}
    for text in given:
        label, spec = labelled(text)
        if label in arms:
            raise UserError(f"compare: two arms are called {label}; name them: one={label} 'two={label} --lr 1e-3'")
        arms[label] = arm(spec, common)
    arms = {label: budgeted(config, options["budget"]) for label, config in arms.items()}
    first = next(iter(arms.values()))
    for label, config in arms.items():
        if config.task != first.task:
            raise UserError(
                f"arm {label}: its task is {config.task.part_name()} with other settings; give all the same"
            )
    metric = options["metric"] or default_metric(first)
    check(metric)
    threshold = None if options["threshold"] is None else number("--threshold", options["threshold"])
    folder = Path(options["out"] or Path("runs") / f"compare-{'-'.join(arms)}-{first.task.part_name()}")
    return Comparison(folder, arms, seeds(options["seeds"] or "8"), metric, options["better"] or "higher", threshold)


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arms (the words before the first flag) and the flags that all of them share."""
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    common = list(words[first:])
    alone(common)
    return list(words[:first]), common


def alone(words: Sequence[str]) -> None:
    """Refuse the flags that only make sense for a single run."""
    for flag in (word.partition("=")[0] for word in words):
        if flag == "--seed":
            raise UserError("compare: --seed is for a single run; --seeds 8 are seeds 0 to 7, --seeds 3,5 are those")
        if flag in OURS:
            raise UserError(f"compare: {flag} is for a single run; leave it out")


def labelled(text: str) -> tuple[str, list[str]]:
    """An arm's label and words: "grpo", "mine=grpo --lr 1e-3", or "grpo --lr 1e-3", which is its own label."""
    found = re.match(r"([\w.+-]+)=(?=\S)(?!=)", text)
    try:
        spec = shlex.split(text[found.end() :] if found else text)
    except ValueError as error:
        raise UserError(f"arm {text!r}: {error}") from error
    if not spec:
        raise UserError(f"arm {text!r}: no recipe in it")
    if found:
        return found[1], spec
    return re.sub(r"[^\w.+=]+", "-", " ".join(spec)).strip("-."), spec


def arm(spec: list[str], common: list[str]) -> Config:
    """The configuration of an arm; what it says itself comes after, and so above, what all of them share."""
    registry.recipe(spec[0])
    alone(spec)
    config, _ = parse([spec[0], *merged(common, spec[1:])])
    return config


def merged(common: list[str], own: list[str]) -> list[str]:
    """The flags of all arms but those that this arm gives itself, then its own."""
    mine = {word.partition("=")[0] for word in own if word.startswith("--")}
    kept: list[str] = []
    skip = False
    for word in common:
        if word.startswith("--"):
            skip = word.partition("=")[0] in mine
        if not skip:
            kept.append(word)
    return kept + own


def budgeted(config: Config, budget: str | None) -> Config:
    """The configuration with its length decided by --budget: steps=N, samples=N or seconds=X."""
    if budget is None:
        return config
    kind, _, text = budget.partition("=")
    if kind not in ("steps", "samples", "seconds") or not text:
        raise UserError(f"--budget {budget}: expected steps=N, samples=N or seconds=X")
    value = number("--budget", text)
    if value <= 0 or (kind != "seconds" and value != int(value)):
        raise UserError(f"--budget {budget}: expected a {'whole ' if kind != 'seconds' else ''}number above 0")
    recipe: Any = config.recipe
    if kind == "steps":
        return replace(config, recipe=recipe.but(steps=int(value)))
    if getattr(recipe, "lr_schedule", "constant") != "constant":
        raise UserError(f"--budget {budget}: --lr-schedule {recipe.lr_schedule} needs a number of steps; use steps=N")
    settings = replace(config.settings, save_every=config.settings.save_every or 20)
    settings = replace(settings, **({"samples": int(value)} if kind == "samples" else {"seconds": value}))
    return replace(config, recipe=recipe.but(steps=ENDLESS), settings=settings)


def seeds(text: str) -> tuple[int, ...]:
    """`8` is seeds 0 to 7; `3,5,9` are those; `100:108` is 100 to 107."""
    if "," in text:
        return tuple(whole("--seeds", word) for word in text.split(",") if word)
    if ":" in text:
        first, _, end = text.partition(":")
        return tuple(range(whole("--seeds", first), whole("--seeds", end)))
    return tuple(range(whole("--seeds", text)))


def number(flag: str, text: str) -> float:
    """A finite number from a word of the command line."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise UserError(f"{flag}: expected a number, got {text!r}")
    return value
