"""Configurations as plain JSON: every part by name with its settings, so that a file reproduces a run."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from partita.core import registry
from partita.core.errors import UserError, nearest
from partita.core.part import Part
from partita.core.policy import PolicyPart
from partita.core.recipe import Recipe
from partita.core.task import Task


@dataclass(frozen=True)
class Settings:
    """How a run is carried out.

    seed: of all randomness. save_every: steps between checkpoints (None: a tenth of the run). eval_every: steps between
    evaluations on held-out problems (0: before and after training only). eval_size: problems or episodes of an
    evaluation. eval_sampled: sample in evaluations, rather than take the likeliest action, and measure how far the
    policy has drifted from the one before training. until: stop once the mean return of the last 100 episodes (control)
    or the success of a step (language) reaches this. samples: stop once so many responses (language) or steps (control)
    have been sampled. seconds: stop after so long a training. threads: of torch (None: all cores for language, one for
    control). device: cpu, cuda, or auto. shard: of a language model's decoder layers each rank of `torchrun` keeps its
    part alone.
    """

    seed: int = 0
    save_every: int | None = None
    eval_every: int = 0
    eval_size: int = 200
    eval_sampled: bool = False
    until: float | None = None
    samples: int | None = None
    seconds: float | None = None
    threads: int | None = None
    device: str = "auto"
    shard: bool = False

    def __post_init__(self) -> None:
        for name, least in (("save_every", 1), ("eval_every", 0), ("eval_size", 0), ("threads", 1), ("samples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')}: expected {least} or more, got {value}")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise UserError(f"--seconds: expected a number above 0, got {self.seconds}")
        if self.device not in ("auto", "cpu", "cuda") and not self.device.startswith("cuda:"):
            raise UserError(f"--device: expected auto, cpu, cuda or cuda:N, got {self.device!r}")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    name: str
    recipe: Recipe
    task: Task
    policy: PolicyPart
    settings: Settings = Settings()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        slots = {s: encode(getattr(self.recipe, s)) for s in self.recipe.slots}
        return {
            "recipe": self.name,
            "loop": self.recipe.loop,
            **slots,
            **self.recipe.numbers(),
            "task": encode(self.task),
            "policy": encode(self.policy),
            "run": dataclasses.asdict(self.settings),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Config:
        """Undo `to_json`; UserError for anything unknown or of the wrong kind."""
        data = dict(data)
        data.pop("partita", None)
        try:
            name, loop = data.pop("recipe"), data.pop("loop", "on_policy")
            task, policy = decode("task", data.pop("task")), decode("policy", data.pop("policy"))
        except KeyError as error:
            raise UserError(f"config: the field {error} is missing") from error
        base = registry.recipe(name)
        if base.loop != loop:
            raise UserError(f"config: recipe {name} belongs to the loop {base.loop}, not {loop}")
        settings = _make(Settings, data.pop("run", {}), "run")
        known = {f.name for f in dataclasses.fields(base)}
        changes: dict[str, Any] = {}
        for key, value in data.items():
            if key not in known:
                raise UserError(f"config: no field `{key}`; {nearest(key, known)}")
            if key in base.slots:
                changes[key] = decode(key, value)
            else:
                changes[key] = _coerce(value, get_type_hints(type(base))[key])
        return Config(name, base.but(**changes), task, policy, settings)

    @staticmethod
    def read(path: Path) -> Config:
        """Read a configuration file, a run's own `config.json` for instance."""
        try:
            data = json.loads(path.read_text())
        except OSError as error:
            raise UserError(f"--config {path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"--config {path}: not JSON: {error}") from error
        if not isinstance(data, dict):
            raise UserError(f"--config {path}: expected a JSON object")
        return Config.from_json(data)


def encode(value: Any) -> Any:
    """A part (or a tuple of parts) as {"part": name, setting: value, ...}."""
    if isinstance(value, tuple):
        return [encode(v) for v in value]
    if value is None:
        return None
    assert isinstance(value, Part)
    return {"part": value.part_name(), **value.settings()}


def decode(slot: str, value: Any) -> Any:
    """Undo `encode`."""
    if isinstance(value, list):
        return tuple(decode(slot, v) for v in value)
    if value is None:
        return None
    if not isinstance(value, dict) or "part" not in value:
        raise UserError(f'config: {slot}: expected {{"part": NAME, ...}}, got {json.dumps(value)[:80]}')
    cls = registry.part_class(slot, value["part"])
    return _make(cls, {k: v for k, v in value.items() if k != "part"}, slot)


def _make(cls: Any, values: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in values:
        if key not in known:
            raise UserError(f"config: {where} has no field `{key}`; {nearest(key, known)}")
    return cls(**{k: _coerce(v, hints[k]) for k, v in values.items()})


def _coerce(value: Any, hint: Any) -> Any:
    """JSON has no tuples: turn lists into tuples where the field asks for one."""
    options = [hint, *get_args(hint)]
    if isinstance(value, list) and any(get_origin(o) is tuple or o is tuple for o in options):
        return tuple(tuple(v) if isinstance(v, list) else v for v in value)
    return value
