"""Changes to a configuration under the flags' own names: {"lr": 3e-3, "credit": "rloo", "task.level": 2}."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from partita.core import registry
from partita.core.errors import UserError, nearest
from partita.core.part import Part
from partita.lab.config import Config, Settings, decode, encode


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with some fields replaced, in the order given.

    A slot (`credit`, `task`, `policy`) takes a part, its name, or {"part": name, setting: value}; `regularisers` a
    sequence of them. `SLOT.FIELD` takes a value, as do the numbers of the recipe and the settings of the run.
    """
    for name, value in changes.items():
        config = _changed(config, name, _tuples(value))
    return config


def _tuples(value: Any) -> Any:
    """Settings hold tuples; what was read from JSON has lists in their place."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _changed(config: Config, name: str, value: Any) -> Config:
    recipe = config.recipe
    head, _, rest = name.partition(".")
    if head in (*recipe.slots, "task", "policy"):
        held = getattr(config if head in ("task", "policy") else recipe, head)
        new = _inside(head, held, rest, value, recipe.many) if rest else _filled(head, value, recipe.many)
        return replace(config, **{head: new}) if head in ("task", "policy") else _with(config, **{head: new})
    if not rest and head in recipe.numbers():
        return _with(config, **{head: value})
    settings = [f.name for f in fields(Settings)]
    if not rest and head in settings:
        return replace(config, settings=replace(config.settings, **{head: value}))
    known = [*recipe.slots, *recipe.numbers(), *settings, "task", "policy"]
    raise UserError(f"{name}: no such field; {nearest(head, known)}")


def _with(config: Config, **change: Any) -> Config:
    return replace(config, recipe=config.recipe.but(**change))


def _filled(slot: str, value: Any, many: tuple[str, ...]) -> Any:
    if slot in many:
        return tuple(_part(slot, v) for v in ((value,) if isinstance(value, str | Part) else value))
    return _part(slot, value)


def _part(slot: str, value: Any) -> Any:
    if isinstance(value, str):
        return registry.part_class(slot, value)()
    return decode(slot, dict(value)) if isinstance(value, Mapping) else value


def _inside(slot: str, held: Any, path: str, value: Any, many: tuple[str, ...]) -> Any:
    """The part (or the parts) of a slot with one of its fields replaced."""
    if slot in many:
        which, _, path = path.partition(".")
        names = [p.part_name() for p in held]
        if which not in names:
            raise UserError(f"{slot}.{which}: not among its parts ({', '.join(names) or 'it has none'})")
        return tuple(_inside(slot, p, path, value, ()) if p.part_name() == which else p for p in held)
    if held is None:
        raise UserError(f"{slot}.{path}: the slot is empty; choose a part for it first")
    known = list(held.settings())
    if path not in known:
        raise UserError(f"{slot}.{path}: {held.part_name()} has no such setting; {nearest(path, known)}")
    return held.but(**{path: value})


def plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes as JSON can hold them."""
    return {name: _plain(value) for name, value in changes.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return encode(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value
