"""What the pages are about, gathered once: works with their code, claims and evidence; parts; recipes."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from partita.core import registry
from partita.core.errors import UserError
from partita.core.part import Part
from partita.core.recipe import Recipe
from partita.lab.site import evidence, theory
from partita.lab.site.evidence import Entry

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # of keys, slots and parts: pages and anchors bear them


@dataclass(frozen=True)
class Claimed:
    """A claim as the code states it; names are empty where it has no arms."""

    statement: str
    treatment: str = ""
    control: str = ""
    task: str = ""
    metric: str = ""


@dataclass(frozen=True)
class Work:
    """A row of the catalogue. `module` is None where it cannot be imported here."""

    key: str
    title: str
    arxiv: str | None
    kind: str
    family: str
    loop: str
    changes: tuple[str, ...]
    recipes: tuple[str, ...]
    module: ModuleType | None
    doc: str
    source: str
    claims: tuple[Claimed, ...]
    found: tuple[Entry, ...]
    figures: tuple[dict[str, Any], ...] = ()

    @property
    def open_claims(self) -> tuple[Claimed, ...]:
        """The claims that no evidence speaks of."""
        said = {entry.statement for entry in self.found}
        return tuple(claim for claim in self.claims if claim.statement not in said)


@dataclass(frozen=True)
class Filling:
    """A part of a slot. `cls` is None where it cannot be imported here; `used` names the recipes that hold it."""

    slot: str
    name: str
    summary: str
    domains: tuple[str, ...]
    paper: str | None
    cls: type | None
    used: tuple[str, ...]


@dataclass(frozen=True)
class Library:
    """All that the site shows."""

    works: Mapping[str, Work]
    slots: Mapping[str, Mapping[str, Filling]]
    recipes: Mapping[str, Recipe | None]
    homes: Mapping[str, str]  # recipe: the key of its paper
    strays: tuple[str, ...]  # evidence files of no work

    def filling(self, part: Part) -> Filling | None:
        """Where a part is told, or None for one that no slot page lists."""
        held = self.slots.get(part.slot, {}).get(part.part_name())
        return held if held is not None and held.cls is type(part) else None


def gather(folder: Path) -> Library:
    """Read the registry, import what it names, and read the evidence in `folder`."""
    index = registry.index()
    recipes = {name: _recipe(name) for name in index["recipes"]}
    used: dict[type, dict[str, None]] = {}
    for name, recipe in recipes.items():
        for part in recipe.parts() if recipe is not None else ():
            used.setdefault(type(part), {})[name] = None
    slots = {slot: _fillings(slot, names, used) for slot, names in index["parts"].items()}
    works = {key: _work(key, entry, folder) for key, entry in index["papers"].items()}
    strays = sorted(p.name for p in folder.glob("*.json") if p.stem not in works and "." not in p.stem)
    homes = {name: entry["paper"] for name, entry in index["recipes"].items()}
    return Library(works, slots, recipes, homes, tuple(strays))


def _recipe(name: str) -> Recipe | None:
    try:
        return registry.recipe(name)
    except ImportError:
        return None


def _fillings(slot: str, names: Mapping[str, Any], used: Mapping[type, Mapping[str, None]]) -> dict[str, Filling]:
    _check("slot", slot)
    out = {}
    for name, entry in names.items():
        _check("part", name)
        try:
            cls = registry.load(entry["target"])
        except ImportError:
            cls = None
        users = tuple(used.get(cls, ())) if cls is not None else ()
        out[name] = Filling(slot, name, entry["summary"], tuple(entry["domains"]), entry["paper"], cls, users)
    return out


def _work(key: str, entry: Mapping[str, Any], folder: Path) -> Work:
    _check("paper", key)
    try:
        module = registry.paper_module(key)
    except ImportError:
        module = None
    path = folder / f"{key}.json"
    return Work(
        key=key, title=entry["title"], arxiv=entry["arxiv"], kind=entry["kind"], family=entry["family"],
        loop=entry["loop"] or "", changes=tuple(entry["changes"]), recipes=tuple(entry["recipes"]), module=module,
        doc=(module.__doc__ if module is not None else None) or entry["summary"],
        source=_source(entry["module"]),
        claims=_claims(module, entry),
        found=tuple(evidence.read(path)) if path.exists() else (),
        figures=tuple(theory.read(folder, key)),
    )  # fmt: skip


def _check(what: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"{what} {name!r}: cannot name a page; use letters, digits and underscores")


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    return Path(spec.origin).read_text(encoding="utf-8") if spec is not None and spec.origin is not None else ""


def _claims(module: ModuleType | None, entry: Mapping[str, Any]) -> tuple[Claimed, ...]:
    if module is None:
        return (_claimed(entry["claim"].get),) if entry["claim"] is not None else ()
    return tuple(_claimed(lambda name, of=claim: getattr(of, name, None)) for claim in registry.claims_of(module))


def _claimed(get: Any) -> Claimed:
    return Claimed(*(get(f.name) or "" for f in fields(Claimed)))


def defaults(cls: type) -> dict[str, str]:
    """The settings of a part with the values that they have unless told otherwise."""
    out = {}
    for f in fields(cls) if is_dataclass(cls) else ():
        if not f.init:
            continue
        if f.default is not MISSING:
            out[f.name] = repr(f.default)
        elif f.default_factory is not MISSING:
            out[f.name] = repr(f.default_factory())
        else:
            out[f.name] = "to be given"
    return out


def base_of(cls: type) -> type:
    """The class that all parts of a slot share."""
    slot = getattr(cls, "slot", "")
    return [c for c in cls.__mro__ if issubclass(c, Part) and c is not Part and getattr(c, "slot", "") == slot][-1]


def doc_of(cls: type) -> str:
    """The docstring of a class without its margin; empty where it is the signature that dataclasses make up."""
    text = (cls.__doc__ or "").strip()
    if text.startswith(f"{cls.__name__}("):
        return ""
    first, *rest = text.expandtabs().splitlines() or [""]
    margin = min((len(line) - len(line.lstrip()) for line in rest if line.strip()), default=0)
    return "\n".join((first, *(line[min(margin, 4) :].rstrip() for line in rest)))  # more than 4 is an equation
