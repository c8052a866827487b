"""Flags: a typed command line for every recipe and part, through tyro.

`--SLOT NAME` chooses the part that fills a slot; its fields are then `--SLOT.FIELD`. What is left are the numbers
of the recipe and the settings of the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from partita.core import registry
from partita.core.errors import UserError, nearest
from partita.core.part import Part, snake_case
from partita.core.words import take
from partita.lab.config import Config, Settings
from partita.lab.train import default_policy

SHORT = {"--env": "--task", "--model": "--policy.model", "--strict": "--task.strict"}
EPISODES = (".hdf5", ".h5", ".npz", ".parquet")  # files of logged data


def parse(argv: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """A configuration from `train`'s arguments, and the options that are not part of it (out, resume, smoke)."""
    words = [_short(word) for word in argv]
    config = _base(words)
    recipe = config.recipe
    many = set(recipe.many)
    choices = choose(words, (*recipe.slots, "task", "policy"), many)
    if "task" in choices:
        config = replace(config, task=task_named(choices["task"][0], config.task, recipe.loop))
    if config.task.domain == "control" and not hasattr(type(config.task), "observation_shape"):
        raise UserError(f"task {config.task.part_name()}: nothing acts in it; use partita solve")
    if "policy" in choices:
        config = replace(config, policy=part_named("policy", choices["policy"][0], config.policy))
    elif config.task.domain not in config.policy.domains:
        config = replace(config, policy=default_policy(config.task, recipe))
    for slot in recipe.slots:
        if slot not in choices:
            continue
        held = getattr(recipe, slot)
        if slot in many:
            mine = {p.part_name(): p for p in held}
            names = [n for n in choices[slot] if n != "none"]
            recipe = recipe.but(**{slot: tuple(part_named(slot, n, mine.get(n)) for n in names)})
        else:
            recipe = recipe.but(**{slot: part_named(slot, choices[slot][0], held)})
    settle: Any = recipe
    return _numbers(words, replace(config, recipe=settle.settle(config.task)))


def _short(word: str) -> str:
    name, equals, value = word.partition("=")
    if name.startswith("--"):
        name = SHORT.get(name, name)
        return name + equals + value
    return word


def _base(words: list[str]) -> Config:
    """The configuration that the flags change: that of --config, or the recipe's with the task still to be chosen."""
    path = take(words, "--config")
    if words and not words[0].startswith("-"):
        name = words.pop(0)
        recipe = registry.recipe(name)
        if recipe.loop == "exact":
            raise UserError(f"recipe {name}: nothing is learnt there; use partita solve {name}")
        if path is not None:
            raise UserError(f"recipe {name} and --config {path}: give one of them")
        task = _default_task(recipe)
        return Config(name, recipe, task, default_policy(task, recipe))
    if path is None:
        known = registry.index()["recipes"]
        raise UserError(f"train: name a recipe ({', '.join(known)}) or give --config FILE")
    return Config.read(Path(path))


def _default_task(recipe: Any) -> Any:
    grouped = recipe.group_size > 1 if hasattr(recipe, "group_size") else False
    language = grouped or any("control" not in part.domains for part in recipe.parts())
    names: tuple[str, ...] = ("arithmetic", "lookup", "lab")  # one answer, turns, comparisons
    if recipe.loop == "preference":
        names = ("lab",)
    elif recipe.loop == "replay":
        names = ("offline",) if recipe.explore is None else ("cartpole", "pendulum")
    elif not language:
        names = ("cartpole", "lot_sizing")
    for name in names:
        task = registry.part_class("task", name)()
        if all(part.refuses(recipe, task) is None for part in recipe.parts()):
            return task
    return registry.part_class("task", names[0])()


def choose(words: list[str], slots: Sequence[str], many: set[str]) -> dict[str, list[str]]:
    """Remove `--SLOT NAME ...` from the words; the names by slot."""
    out: dict[str, list[str]] = {}
    for slot in slots:
        while (first := take(words, f"--{slot}")) is not None:
            names = first.split(",")
            out.setdefault(slot, []).extend(n for n in names if n)
            if slot not in many and len(out[slot]) > 1 and ":" not in first and "." not in first:
                raise UserError(f"--{slot}: takes one part, got {', '.join(out[slot])}")
            out[slot] = out[slot] if slot in many else [first]
    return out


def part_named(slot: str, name: str, held: Part | None) -> Any:
    """The part of that name with its defaults, or the one that is held where it is of the same kind."""
    cls = registry.part_class(slot, name)
    return held if type(held) is cls else _make(cls, f"--{slot} {name}")


def _make(cls: Any, what: str, **settings: Any) -> Any:
    required = [
        f.name
        for f in fields(cls)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in settings]
    if missing:
        raise UserError(f"{what}: {', '.join(missing)} must be given")
    return cls(**settings)


def task_named(name: str, held: Any, loop: str) -> Any:
    """A task by name; `gym:ID` is a Gymnasium environment, a path to .jsonl a dataset, or comparisons where a loop
    learns from these; a folder, or a file of episodes, logged data."""
    if name.startswith("gym:"):
        return _make(registry.part_class("task", "gym"), f"--task {name}", id=name[4:])
    if name.endswith(".jsonl"):
        kind = "comparisons" if loop == "preference" else "dataset"
        return _make(registry.part_class("task", kind), f"--task {name}", path=name)
    if name not in registry.index()["parts"]["task"] and _logged(Path(name)):
        return _make(registry.part_class("task", "offline"), f"--task {name}", data=name)
    return part_named("task", name, held)


def _logged(path: Path) -> bool:
    return path.suffix in EPISODES or path.is_dir()


@dataclass(frozen=True)
class Options:
    """What a command line says besides the configuration.

    out: the run's folder (default: a new one under runs/). smoke: two tiny steps, to see that everything fits.
    quiet: no progress line. track: also write to tensorboard or wandb, when installed.
    """

    out: str | None = None
    smoke: bool = False
    quiet: bool = False
    track: tuple[str, ...] = ()


def _numbers(words: list[str], config: Config) -> tuple[Config, dict[str, Any]]:
    """Let tyro read every remaining flag into the fields of the configuration as it stands."""
    recipe = config.recipe
    table: list[tuple[str, Any, Any]] = []
    for slot in recipe.slots:
        held = getattr(recipe, slot)
        if held is None:
            continue
        if slot in recipe.many:
            parts = [(_identifier(p), type(p), field(default=p)) for p in held]
            if parts:
                group = dataclasses.make_dataclass(f"{slot}_", parts, frozen=True)
                table.append((slot, group, field(default=group())))
        elif any(f.init for f in fields(held)):
            table.append((slot, type(held), field(default=held)))
    for name in ("task", "policy"):
        held = getattr(config, name)
        if any(f.init for f in fields(held)):
            table.append((name, type(held), field(default=held)))
    hints = _hints(type(recipe))
    table += [(n, hints[n], field(default=v)) for n, v in recipe.numbers().items()]
    for group_type, values in ((Settings, config.settings), (Options, Options())):
        own = _hints(group_type)
        table += [(f.name, own[f.name], field(default=getattr(values, f.name))) for f in fields(group_type)]
    flags: Any = dataclasses.make_dataclass("train", table, frozen=True)
    flags.__doc__ = _help(config)
    known(words, flags, {*recipe.slots, "task", "policy", "model", "env", "config", "resume"})
    found = read(flags, words, f"partita train {config.name}")
    slots = {}
    for slot in recipe.slots:
        if not hasattr(found, slot):
            continue
        value = getattr(found, slot)
        slots[slot] = tuple(getattr(value, f.name) for f in fields(value)) if slot in recipe.many else value
    numbers = {name: getattr(found, name) for name in recipe.numbers()}
    settings = Settings(**{f.name: getattr(found, f.name) for f in fields(Settings)})
    options = {f.name: getattr(found, f.name) for f in fields(Options)}
    policy, task = (getattr(found, n, getattr(config, n)) for n in ("policy", "task"))
    return Config(config.name, recipe.but(**slots, **numbers), task, policy, settings), options


def _identifier(part: Part) -> str:
    """What flags call a part among several: its name, or that of its class where it comes from a user's file."""
    return snake_case(type(part).__name__)


def _hints(cls: Any) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(cls)


def _names(cls: Any, prefix: str = "") -> Iterator[str]:
    for f in fields(cls):
        if not f.init:
            continue
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            yield from _names(f.type, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}"


def known(words: list[str], flags: Any, chosen: set[str]) -> None:
    """Refuse flags that a dataclass has no field for, with the nearest that exist, `chosen` among them."""
    names = set(_names(flags))
    for word in words:
        if not word.startswith("--") or word in ("--help",):
            continue
        flag = word[2:].partition("=")[0].replace("-", "_")
        plain = re.sub(r"(^|\.)no_", r"\1", flag)
        if flag not in names and plain not in names:
            close = nearest(flag, {n.replace("_", "-") for n in names | chosen})
            raise UserError(f"--{word[2:].partition('=')[0]}: no such flag; {close}")


def read(flags: Any, words: list[str], program: str) -> Any:
    """Fill a dataclass from words, by tyro; UserError in one line where they cannot be read."""
    import tyro

    if "--help" in words or "-h" in words:
        return tyro.cli(flags, prog=program, args=words, description=flags.__doc__)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(
                flags, prog=program, args=words, description="", config=(tyro.conf.HelptextFromCommentsOff,)
            )
    except SystemExit as error:
        raise UserError(_plain(said.getvalue())) from error


def _plain(text: str) -> str:
    """One line of what tyro has to say about flags that it could not read."""
    text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─┃]|-{4,}", " ", text)
    text = " ".join(text.split())
    found = re.search(r"Error parsing (--\S+): no type matching (.+?) could be .*?from \[(.*?)\]", text)
    if found:
        kinds = found[2].replace("{None}|", "").replace("|", " or ").lower()
        return f"{found[1]}: cannot read {found[3]}; expected {kinds}"
    missing = re.search(r"Missing value for argument '(\S+)'", text)
    if missing:
        return f"{missing[1]}: a value is missing"
    text = re.sub(r"^(Parsing error|Value error|Missing argument|Invalid choice)\s*", "", text)
    text = re.sub(r"For full helptext.*|See .*--help.*", "", text)
    return text.strip()[:300] or "the flags could not be read"


def _help(config: Config) -> str:
    parts = registry.index()["parts"]
    lines = ["Choose the part of a slot by name, then set its fields:"]
    for slot in (*config.recipe.slots, "task", "policy"):
        known = parts.get(slot, {})
        lines.append(f"  --{slot} {{{','.join(known)}}}")
    for cls in (type(config.recipe), Settings, Options):
        about = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[1:]
        lines += ["", *("\n".join(about).splitlines())]
    return "\n".join(lines)
