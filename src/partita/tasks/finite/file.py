"""Finite processes in JSON files, read and written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from partita.core.errors import UserError, nearest
from partita.tasks.control._checks import check_positive
from partita.tasks.finite.mdp import FiniteMDP, assembled
from partita.tasks.finite.task import Tabular

FIELDS = ("states", "actions", "outcomes", "start", "discount", "horizon")


@dataclass(frozen=True)
class FiniteFile(Tabular):
    """A process from a JSON file. max_steps: where an episode is cut, if the file names no horizon.

        {"states": ["low", "high"], "actions": ["wait", "work"], "discount": 0.9, "start": "low",
         "outcomes": [["low", "work", "high", 0.7, 1.5], ...]}

    An outcome is state, action, next state, probability, reward. States and actions are lists of names, or numbers of
    them, which outcomes then number from 0. start: a state (the first), or a probability for each. horizon may be left
    out. Pairs without outcomes do not exist.
    """

    path: str = ""
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_positive(self, "max_steps")

    @property
    def horizon(self) -> int:
        return self.process.horizon or self.max_steps

    def finite(self) -> FiniteMDP:
        return read(Path(self.path))


def read(path: Path) -> FiniteMDP:
    """The process in a file."""
    if path == Path():
        raise UserError("task.path: finite_file needs a file; give --task FILE.json")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        found = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected an object with {', '.join(FIELDS)}")
    try:
        return made(found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def made(found: dict[str, Any]) -> FiniteMDP:
    """The process that an object of JSON describes."""
    for name in found:
        if name not in FIELDS:
            raise UserError(f"{name}: no such field; {nearest(name, FIELDS)}")
    for name in ("states", "actions", "outcomes"):
        if name not in found:
            raise UserError(f"{name}: missing")
    states, actions = (_listed(name, found[name]) for name in ("states", "actions"))
    outcomes = found["outcomes"]
    if not isinstance(outcomes, list) or not outcomes:
        raise UserError("outcomes: expected a list of [state, action, next state, probability, reward]")
    rows: list[tuple[int, int, int, float, float]] = []
    for i, row in enumerate(outcomes):
        where = f"outcomes[{i}]"
        if not isinstance(row, list) or len(row) != 5:
            raise UserError(f"{where}: expected [state, action, next state, probability, reward], got {row!r}")
        a, b, c = (_index(where, x, names) for x, names in zip(row, (states, actions, states), strict=False))
        rows.append((a, b, c, _number(where, row[3]), _number(where, row[4])))
    start: Any = found.get("start")
    if isinstance(start, list):
        start = [_number("start", x) for x in start]
    else:
        start = 0 if start is None else _index("start", start, states)
    horizon = found.get("horizon")
    if horizon is not None and not (isinstance(horizon, int) and not isinstance(horizon, bool)):
        raise UserError(f"horizon: expected a number of decisions, got {horizon!r}")
    named = {n: tuple(x) for n, x in (("states", states), ("actions", actions)) if not isinstance(x, int)}
    discount = _number("discount", found.get("discount", 0.95 if horizon is None else 1.0))
    return assembled(rows, _count(states), _count(actions), start, discount=discount, horizon=horizon, **named)


def written(mdp: FiniteMDP) -> dict[str, Any]:
    """The object of JSON that describes a process."""
    chance = sparse.coo_array(mdp.transitions)
    gains = None if mdp.gains is None else sparse.csr_array(mdp.gains)
    outcomes = []
    for row, after, p in zip(*(x.tolist() for x in (*chance.coords, chance.data)), strict=True):
        state, action = divmod(row, mdp.choices)
        if p and (mdp.allowed is None or mdp.allowed[state, action]):
            paid = mdp.reward[state, action] if gains is None else gains[row, after]
            words = (mdp.states[state] if mdp.states else state, mdp.actions[action] if mdp.actions else action)
            outcomes.append([*words, mdp.states[after] if mdp.states else after, p, float(paid)])
    about = {"states": list(mdp.states) or mdp.size, "actions": list(mdp.actions) or mdp.choices}
    ends = {} if mdp.horizon is None else {"horizon": mdp.horizon}
    return {**about, "discount": mdp.discount, **ends, "start": np.asarray(mdp.start).tolist(), "outcomes": outcomes}


def _listed(name: str, value: Any) -> list[str] | int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, list) and value and all(isinstance(x, str) for x in value):
        if len(set(value)) < len(value):
            twice = next(x for x in value if value.count(x) > 1)
            raise UserError(f"{name}: {twice!r} stands there twice")
        return value
    raise UserError(f"{name}: expected a list of names, or how many there are, got {value!r}")


def _count(names: list[str] | int) -> int:
    return names if isinstance(names, int) else len(names)


def _index(where: str, value: Any, names: list[str] | int) -> int:
    if isinstance(names, list) and value in names:
        return names.index(value)
    if isinstance(names, int) and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < names:
        return value
    raise UserError(f"{where}: {value!r} is none of {names if isinstance(names, int) else ', '.join(names[:8])}")


def _number(where: str, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
        return float(value)
    raise UserError(f"{where}: expected a finite number, got {value!r}")
