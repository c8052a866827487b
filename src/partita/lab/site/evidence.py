"""Evidence as the pages read it: one JSON file a paper, an entry per statement, checked field by field.

Required of an entry are `key`, `statement` and `verdict`; everything else may be absent and is then said to be
not recorded. A field that is there and is not what it should be is refused in one line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from partita.core.errors import UserError

VERDICTS = ("holds", "unclear", "fails")
KINDS = ("difference", "ratio", "identity")
BETTER = ("higher", "lower", "equal")

Values = tuple[float | None, ...]
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Arms:
    """A number per seed for each arm, paired; None where a run gave no finite number."""

    treatment: Values = ()
    control: Values = ()


@dataclass(frozen=True)
class Setting:
    """One position of a dial: its label, the values of both arms, the effect and its interval."""

    label: str
    values: Arms
    effect: float | None
    ci: Bounds | None


@dataclass(frozen=True)
class Growth:
    """How the effect grows from the weakest position of a dial to the strongest."""

    effect: float | None
    ci: Bounds | None
    verdict: str | None


@dataclass(frozen=True)
class Dial:
    """The mechanism that was turned, and what was measured at each position, weakest first."""

    name: str
    settings: tuple[Setting, ...]
    growth: Growth | None


@dataclass(frozen=True)
class Curve:
    """A learning curve: its mean over seeds with a band, all of the same length."""

    x: Values
    mean: Values
    low: Values
    high: Values


@dataclass(frozen=True)
class Curves:
    """The learning curves of both arms over one axis."""

    x_name: str
    metric: str
    treatment: Curve | None
    control: Curve | None


@dataclass(frozen=True)
class Fronts:
    """What each arm reached for how far it went: for every seed (drift, value, proxy) at each evaluation."""

    metric: str
    treatment: tuple[tuple[Values, ...], ...]
    control: tuple[tuple[Values, ...], ...]


@dataclass(frozen=True)
class Check:
    """A number that a theorem gives, what was measured of it, and the difference that is allowed."""

    label: str
    expected: float | None
    measured: float | None
    tolerance: float | None

    @property
    def off(self) -> float | None:
        """measured - expected."""
        return None if self.expected is None or self.measured is None else self.measured - self.expected


@dataclass(frozen=True)
class Entry:
    """The evidence for one statement; fields are those of the file, None or empty where it has none."""

    key: str
    statement: str
    verdict: str
    kind: str
    better: str
    threshold: float
    rule: str
    note: str
    treatment: str
    control: str
    task: str
    metric: str
    effect: float | None
    ci: Bounds | None
    seeds: int | None
    date: str
    values: Arms
    seed_list: tuple[Any, ...]
    dial: Dial | None
    curves: Curves | None
    fronts: Fronts | None
    checks: tuple[Check, ...]
    tuning: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    task_settings: Mapping[str, Any]
    commit: str
    dirty: bool
    versions: Mapping[str, Any]
    machine: Mapping[str, Any]
    duration: float | None


@dataclass(frozen=True)
class Place:
    """A value and where in which file it stands, so that an error can name both."""

    file: Path
    name: str
    value: Any

    def error(self, expected: str) -> UserError:
        """The line that refuses the value."""
        found = json.dumps(self.value, ensure_ascii=True)
        found = found if len(found) <= 60 else found[:57] + "..."
        return UserError(
            f"{self.file}: {self.name}: expected {expected}, got {found}; correct it, or write the file again "
            f"with partita claim {self.file.stem}"
        )

    def get(self, key: str) -> Place:
        """The field of that name; its value is None where it is absent."""
        return Place(self.file, f"{self.name}.{key}", self.value.get(key))

    def items(self) -> list[Place]:
        """The elements of a list; none where the value is absent."""
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            raise self.error("a list")
        return [Place(self.file, f"{self.name}[{i}]", v) for i, v in enumerate(self.value)]

    def mapping(self) -> Mapping[str, Any]:
        """An object; empty where the value is absent."""
        if self.value is not None and not isinstance(self.value, dict):
            raise self.error("an object")
        return self.value or {}

    def text(self, required: bool = False) -> str:
        """A string; empty where the value is absent and need not be there."""
        if self.value is None and not required:
            return ""
        if not isinstance(self.value, str) or (required and not self.value.strip()):
            raise self.error("a text")
        return self.value

    def choice(self, options: tuple[str, ...], default: str | None = None) -> str:
        """One of some words."""
        if self.value is None and default is not None:
            return default
        if self.value not in options:
            raise self.error(f"one of {', '.join(options)}")
        return str(self.value)

    def number(self) -> float | None:
        """A finite number; None where the value is absent or not finite."""
        if self.value is None:
            return None
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.error("a number")
        try:
            found = float(self.value)
        except OverflowError:
            return None
        return found if math.isfinite(found) else None

    def numbers(self) -> Values:
        """A list of numbers, None where one is null or not finite."""
        return tuple(item.number() for item in self.items())

    def bounds(self) -> Bounds | None:
        """The two ends of an interval; an end that is null or not finite leaves that side open."""
        found = self.numbers()
        if self.value is None:
            return None
        if len(found) != 2:
            raise self.error("two numbers, low and high")
        low = -math.inf if found[0] is None else found[0]
        high = math.inf if found[1] is None else found[1]
        if low > high:
            raise self.error("two numbers, low before high")
        return low, high


def read(path: Path) -> list[Entry]:
    """The entries of an evidence file; UserError naming the file and the field that is malformed."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}; write it again with partita claim {path.stem}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    entries = raw if isinstance(raw, list) else [raw]
    return [_entry(Place(path, f"entry {i}", value)) for i, value in enumerate(entries, 1)]


def _entry(place: Place) -> Entry:
    if not isinstance(place.value, dict):
        raise place.error("an object")
    get = place.get
    key = get("key").text(required=True)
    if key != place.file.stem:
        raise get("key").error(f"{place.file.stem}, as the file is named")
    kind = get("kind").choice(KINDS, "difference")
    threshold = get("threshold").number()
    values = _arms(get("values"))
    seed_list = tuple(item.value for item in get("seed_list").items())
    count = max(len(values.treatment), len(values.control))
    if seed_list and count and len(seed_list) != count:
        raise get("seed_list").error(f"{count} seeds, one for each value")
    seeds = get("seeds").number()
    tuning = get("tuning")
    return Entry(
        key=key,
        statement=get("statement").text(required=True),
        verdict=get("verdict").choice(VERDICTS),
        kind=kind,
        better=get("better").choice(BETTER, "higher"),
        threshold=threshold if threshold is not None else 1.0 if kind == "ratio" else 0.0,
        rule=get("rule").text(),
        note=get("note").text(),
        treatment=get("treatment").text(),
        control=get("control").text(),
        task=get("task").text(),
        metric=get("metric").text(),
        effect=get("effect").number(),
        ci=get("ci").bounds(),
        seeds=int(seeds) if seeds is not None else len(seed_list) or count or None,
        date=get("date").text(),
        values=values,
        seed_list=seed_list,
        dial=None if get("dial").value is None else _dial(get("dial")),
        curves=None if get("curves").value is None else _curves(get("curves")),
        fronts=None if get("fronts").value is None else _fronts(get("fronts")),
        checks=_checks(place),
        tuning=None if tuning.value is None else tuning.mapping(),
        settings=get("settings").mapping(),
        task_settings=get("task_settings").mapping(),
        commit=get("commit").text(),
        dirty=bool(get("dirty").value),
        versions=get("versions").mapping(),
        machine=get("machine").mapping(),
        duration=get("duration").number(),
    )


def _arms(place: Place) -> Arms:
    if not place.mapping():
        return Arms()
    treatment, control = place.get("treatment").numbers(), place.get("control").numbers()
    if treatment and control and len(treatment) != len(control):
        raise place.error(f"as many values of both arms, paired by seed ({len(treatment)} and {len(control)})")
    return Arms(treatment, control)


def _dial(place: Place) -> Dial:
    place.mapping()
    settings = []
    for item in place.get("settings").items():
        item.mapping()
        label = item.get("label")
        name = label.text() if isinstance(label.value, str | None) else str(label.value)
        settings.append(Setting(name, _arms(item.get("values")), item.get("effect").number(), item.get("ci").bounds()))
    grown, growth = place.get("growth"), None
    if grown.mapping():
        verdict = grown.get("verdict")
        word = None if verdict.value is None else verdict.choice(VERDICTS)
        growth = Growth(grown.get("effect").number(), grown.get("ci").bounds(), word)
    return Dial(place.get("name").text() or "dial", tuple(settings), growth)


def _curves(place: Place) -> Curves:
    place.mapping()
    treatment, control = (_curve(place.get(arm)) for arm in ("treatment", "control"))
    return Curves(place.get("x_name").text() or "steps", place.get("metric").text(), treatment, control)


def _curve(place: Place) -> Curve | None:
    if not place.mapping():
        return None
    x, mean, low, high = (place.get(name).numbers() for name in ("x", "mean", "low", "high"))
    low, high = low or mean, high or mean
    if not len(x) == len(mean) == len(low) == len(high):
        sizes = ", ".join(str(len(v)) for v in (x, mean, low, high))
        raise place.error(f"x, mean, low and high of one length, not {sizes}")
    return Curve(x, mean, low, high)


def _fronts(place: Place) -> Fronts:
    place.mapping()
    arms = {}
    for arm in ("treatment", "control"):
        arms[arm] = tuple(tuple(point.numbers() for point in seed.items()) for seed in place.get(arm).items())
        if any(len(point) != 3 for seed in arms[arm] for point in seed):
            raise place.get(arm).error("points of three numbers, drift, value and proxy")
    return Fronts(place.get("metric").text(), **arms)


def _checks(place: Place) -> tuple[Check, ...]:
    """Expected and measured numbers side by side, from numbers, lists (nested or not) or objects alike.

    One expected number stands for all that were measured, as one tolerance does; a relative one is a share of it.
    """
    expected, measured = _flat(place.get("expected")), _flat(place.get("measured"))
    if not expected and not measured:
        return ()
    if len(expected) == 1:
        expected = dict.fromkeys(measured, next(iter(expected.values())))
    if expected.keys() != measured.keys():
        raise place.get("measured").error(f"the same numbers as expected, {len(expected)} of them")
    tolerance = _flat(place.get("tolerance"))
    shared = next(iter(tolerance.values())) if len(tolerance) == 1 else None
    relative = bool(place.get("relative").value)

    def allowed(name: str, of: float | None) -> float | None:
        width = tolerance.get(name, shared)
        return width if width is None or not relative else None if of is None else width * abs(of)

    return tuple(Check(k, v, measured[k], allowed(k, v)) for k, v in expected.items())


def _flat(place: Place, label: str = "") -> dict[str, float | None]:
    if isinstance(place.value, list):
        nested = [(f"{label}[{i}]", item) for i, item in enumerate(place.items())]
    elif isinstance(place.value, dict):
        nested = [(f"{label}.{k}" if label else k, place.get(k)) for k in place.value]
    else:
        return {} if place.value is None else {label: place.number()}
    return {k: v for name, item in nested for k, v in _flat(item, name).items()}
