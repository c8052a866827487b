"""Reading evidence: what is absent is None, what is malformed is refused in one line that names file and field."""

from __future__ import annotations

import json
import math

import made_works
import pytest

from partita.core.errors import UserError
from partita.lab.site.evidence import Arms, Curve, read


@pytest.fixture
def file(tmp_path):
    def write(data):
        path = tmp_path / "made.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return write


def changed(place: str, value: object) -> list[dict]:
    """The full entry with one field, named by its path, replaced."""
    entry = made_works.comparison("made")
    held, names = entry, place.split(".")
    for name in names[:-1]:
        held = held[int(name)] if isinstance(held, list) else held[name]
    held[int(names[-1]) if isinstance(held, list) else names[-1]] = value
    return [entry]


def test_everything_is_read(file):
    (entry,) = read(file([made_works.comparison("made", 4)]))
    raw = made_works.comparison("made", 4)
    assert (entry.key, entry.verdict, entry.effect, entry.ci) == ("made", "unclear", 0.12, (0.05, 0.2))
    assert entry.values == Arms(tuple(raw["values"]["treatment"]), tuple(raw["values"]["control"]))
    assert [s.label for s in entry.dial.settings] == ["0%", "25%", "50%", "75%"]
    assert entry.dial.settings[2].ci == pytest.approx((0.05, 0.15))
    assert (entry.dial.growth.effect, entry.dial.growth.verdict) == (0.12, "holds")
    assert entry.curves.control.low[0] == pytest.approx(-0.05)
    assert (entry.seeds, entry.commit, entry.dirty, entry.duration) == (8, "abc1234", False, 123.4)


def test_three_fields_are_enough(file):
    (entry,) = read(file([{"key": "made", "statement": "s", "verdict": "holds"}]))
    assert (entry.kind, entry.better, entry.threshold, entry.effect, entry.ci, entry.seeds) == (
        "difference", "higher", 0.0, None, None, None,
    )  # fmt: skip
    assert (entry.values, entry.dial, entry.curves, entry.checks, entry.tuning) == (Arms(), None, None, (), None)


def test_defaults_follow_from_what_is_there(file):
    least = {"key": "made", "statement": "s", "verdict": "holds"}
    (ratio,) = read(file([least | {"kind": "ratio"}]))
    assert ratio.threshold == 1.0
    (seeds,) = read(file([least | {"values": {"treatment": [1, 2, 3], "control": [0, 1, 2]}}]))
    assert seeds.seeds == 3
    (alone,) = read(file(least))  # one entry without its list
    assert alone.statement == "s"


def test_numbers_that_are_not_finite_are_none_and_open_ends_are_open(file):
    values = '{"treatment": [NaN, 1.0, null], "control": [0.5, Infinity, 0.25]}'
    text = f'[{{"key": "made", "statement": "s", "verdict": "unclear", "values": {values}, "ci": [null, Infinity]}}]'
    (entry,) = read(file(text))
    assert entry.values == Arms((None, 1.0, None), (0.5, None, 0.25))
    assert entry.ci == (-math.inf, math.inf)


def test_a_band_may_be_absent(file):
    (entry,) = read(file(changed("curves.treatment", {"x": [0, 1], "mean": [0.5, 0.75]})))
    assert entry.curves.treatment == Curve((0.0, 1.0), (0.5, 0.75), (0.5, 0.75), (0.5, 0.75))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"expected": 2.0, "measured": 2.5, "tolerance": 1.0}, [("", 2.0, 2.5, 1.0)]),
        ({"expected": 2.0, "measured": [2.5, 1.5], "tolerance": 1.0}, [("[0]", 2.0, 2.5, 1.0), ("[1]", 2.0, 1.5, 1.0)]),
        ({"expected": [1, 4], "measured": [2, 8], "tolerance": [5, 6]}, [("[0]", 1, 2, 5), ("[1]", 4, 8, 6)]),
        ({"expected": -4.0, "measured": -3.0, "tolerance": 0.5, "relative": True}, [("", -4.0, -3.0, 2.0)]),
        ({"expected": {"a": [1]}, "measured": {"a": [2]}}, [("a[0]", 1, 2, None)]),
    ],
)
def test_identities(file, fields, expected):
    (entry,) = read(file([{"key": "made", "statement": "s", "verdict": "holds", "kind": "identity"} | fields]))
    assert [(c.label, c.expected, c.measured, c.tolerance) for c in entry.checks] == expected
    assert entry.checks[0].off == expected[0][2] - expected[0][1]


BAD = [
    ("key", None, "key: expected a text"),
    ("key", "other", "key: expected made, as the file is named"),
    ("statement", " ", "statement: expected a text"),
    ("verdict", "maybe", "verdict: expected one of holds, unclear, fails, got \"maybe\""),
    ("verdict", None, "verdict: expected one of"),
    ("kind", "product", "kind: expected one of difference, ratio, identity"),
    ("better", 1, "better: expected one of"),
    ("effect", "0.1", "effect: expected a number"),
    ("effect", True, "effect: expected a number"),
    ("ci", [1], "ci: expected two numbers, low and high"),
    ("ci", [2, 1], "ci: expected two numbers, low before high"),
    ("ci", "wide", "ci: expected a list"),
    ("values", [1, 2], "values: expected an object"),
    ("values.control", [1], r"values: expected as many values of both arms, paired by seed (8 and 1)"),
    ("values.treatment.3", "x", "values.treatment[3]: expected a number"),
    ("seed_list", [1, 2], "seed_list: expected 8 seeds"),
    ("dial", [], "dial: expected an object"),
    ("dial.settings", 3, "dial.settings: expected a list"),
    ("dial.settings.1", 3, "dial.settings[1]: expected an object"),
    ("dial.settings.2.ci", [0], "dial.settings[2].ci: expected two numbers"),
    ("dial.growth.verdict", "yes", "dial.growth.verdict: expected one of"),
    ("curves.control.mean", [1], "curves.control: expected x, mean, low and high of one length, not 300, 1, 300, 300"),
    ("tuning", 3, "tuning: expected an object"),
    ("versions", "2.0", "versions: expected an object"),
    ("note", 3, "note: expected a text"),
    ("duration", "long", "duration: expected a number"),
    ("expected", [1, 2], "measured: expected the same numbers as expected, 2 of them"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "said"), BAD)
def test_a_malformed_field_is_named(file, place, value, said):
    path = file(changed(place, value))
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: entry 1.{said}")
    assert "\n" not in text and len(text) < 300 + len(str(path))


def test_the_entry_is_counted(file):
    good = made_works.comparison("made")
    with pytest.raises(UserError, match=r"entry 2\.verdict"):
        read(file([good, good | {"verdict": "so so"}]))
    with pytest.raises(UserError, match="entry 2: expected an object"):
        read(file([good, 3]))


@pytest.mark.parametrize("text", ["[", "", "\x00", "[" * 100_000])
def test_what_is_not_json(file, text):
    with pytest.raises(UserError, match=r"made\.json: not JSON"):
        read(file(text))


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "made.json").mkdir()
    with pytest.raises(UserError, match=r"made\.json: cannot be read"):
        read(tmp_path / "made.json")
