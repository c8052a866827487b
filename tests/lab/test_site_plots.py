"""Plots: where marks lie, which arm they are of, and numbers in words."""

from __future__ import annotations

import html
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import made_works
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.lab.site import plots
from partita.lab.site.evidence import Curve, read
from partita.lab.site.figures import Axis, aligned, axis, interval, short, tick_words
from partita.lab.site.fronts import fronts
from partita.lab.site.text import highlight, prose, words

quick = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.fixture
def entry(tmp_path):
    def make(**changes):
        path = tmp_path / "made.json"
        path.write_text(json.dumps([made_works.comparison("made", 3, **changes)]))
        return read(path)[0]

    return make


def marks(figure, tag, class_=None):
    """The elements of a plot with a class, as numbers."""
    root = ElementTree.fromstring(str(figure))
    found = [e.attrib for e in root.iter(tag) if class_ is None or e.get("class") == class_]
    return [{k: float(v) if re.fullmatch(r"-?[\d.]+", v) else v for k, v in e.items()} for e in found]


def test_numbers_in_words():
    assert aligned(0.12, 0.05, 0.2) == ["0.120", "0.050", "0.200"]
    assert aligned(475.2, None, -0.4) == ["475", "–", "0"]
    assert aligned(2e-9, -1e-9) == ["2e-09", "-1e-09"]
    assert aligned(math.inf, -math.inf, 1.0) == ["inf", "-inf", "1.00"]
    assert interval(1.31, (1.1, math.inf)) == "1.31 [1.10, inf]"
    assert interval(None, None) == "–"
    assert [short(v) for v in (0.5, 12345.6, None, -0.0)] == ["0.5", "1.235e+04", "–", "0"]


def test_ticks_are_round_and_inside():
    assert Axis(-0.03, 0.21, 0, 1).ticks() == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert tick_words([0.0, 0.05, 0.1]) == ["0.00", "0.05", "0.10"]
    assert tick_words([0, 10000, 20000]) == ["0", "10k", "20k"]
    assert tick_words([0, 500000, 1000000]) == ["0.0", "0.5M", "1.0M"]
    assert tick_words([-5, 0, 5]) == ["-5", "0", "5"]


@quick
@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=8))
def test_an_axis_holds_its_values_in_order(values):
    found = axis(values, 200.0, 10.0)
    assert all(found.low <= v <= found.high for v in values)
    assert 1 <= len(found.ticks()) <= 12
    places = [found.at(v) for v in sorted(values)]
    assert places == sorted(places, reverse=True)  # upwards on the page is towards zero


def test_values_per_seed_lie_where_they_should(entry):
    made = entry(values={"treatment": [0.5, 0.9, 0.4], "control": [0.25, 0.5, 0.6]}, seed_list=[0, 1, 2])
    figure = plots.values(made, "plot")
    control, treatment = marks(figure, "circle", "control"), marks(figure, "circle", "treatment")
    assert len(control) == len(treatment) == 3
    assert {c["cx"] for c in control} < {c["cx"] for c in treatment} or max(c["cx"] for c in control) < treatment[0][
        "cx"
    ]
    scale = (control[0]["cy"] - control[1]["cy"]) / 0.25  # units a value of one
    assert treatment[1]["cy"] == pytest.approx(control[1]["cy"] - 0.4 * scale, abs=0.2)
    assert treatment[2]["cy"] == pytest.approx(control[0]["cy"] - 0.15 * scale, abs=0.2)
    assert len(marks(figure, "line", "pair")) == 2
    (dashed,) = marks(figure, "line", "pair dashed")
    assert (dashed["y1"], dashed["y2"]) == (control[2]["cy"], treatment[2]["cy"])
    assert "higher on 2 of 3 seeds and lower on 1" in figure
    (mean,) = marks(figure, "line", "mean treatment")
    assert mean["y1"] == pytest.approx(control[0]["cy"] - 0.35 * scale, abs=0.2)  # 0.6
    lower = plots.values(
        entry(values={"treatment": [0.5, 0.9], "control": [0.25, 1.0]}, seed_list=[], better="lower"), "p"
    )
    assert "lower on 1 of 2 seeds and higher on 1" in lower


def test_a_seed_without_a_number_is_left_out(entry):
    made = entry(values={"treatment": [None, 0.9], "control": [0.25, 0.5]}, seed_list=[0, 1])
    figure = plots.values(made, "plot")
    assert len(marks(figure, "circle", "treatment")) == 1
    assert len(marks(figure, "line", "pair")) == 1
    assert plots.values(entry(values={"treatment": [None], "control": [None]}, seed_list=[]), "plot") is None


@pytest.mark.parametrize("better", ["higher", "lower", "equal"])
def test_the_side_on_which_it_holds(entry, better):
    made = entry(effect=0.3, ci=[0.1, 0.5], threshold=0.2, better=better)
    figure = plots.effect(made, "plot")
    (side,), (mark,) = marks(figure, "rect"), marks(figure, "circle")
    inside = side["x"] <= mark["cx"] <= side["x"] + side["width"]
    assert inside is (better == "higher")
    edges = [m["x1"] for m in marks(figure, "line", "threshold")]
    assert len(edges) == (2 if better == "equal" else 1)
    assert (side["x"] if better != "lower" else side["x"] + side["width"]) == pytest.approx(edges[0], abs=0.2)


def test_an_open_interval_has_no_cap(entry):
    closed = plots.effect(entry(ci=[0.05, 0.2]), "plot")
    assert len(marks(closed, "line", "whisker")) == 3
    figure = plots.effect(entry(ci=[0.05, None]), "plot")
    across = marks(figure, "line", "whisker")
    assert len(across) == 2
    assert max(m["x2"] for m in across) == 344  # the edge of the plot
    assert plots.effect(entry(effect=None), "plot") is None


def test_the_dial_goes_from_weakest_to_strongest(entry):
    made = entry()
    figure = plots.dial(made, "plot")
    found = marks(figure, "circle", "treatment")
    assert [m["cx"] for m in found] == sorted(m["cx"] for m in found)
    assert [m["cy"] for m in found] == sorted((m["cy"] for m in found), reverse=True)  # it grows
    upright = [m for m in marks(figure, "line", "whisker") if m["x1"] == m["x2"]]
    middle = [(m["y1"] + m["y2"]) / 2 for m in upright]
    assert middle == pytest.approx([m["cy"] for m in found], abs=0.2)
    (zero,) = marks(figure, "line", "threshold")
    assert upright[0]["y1"] > zero["y1"] > upright[0]["y2"] and upright[3]["y1"] < zero["y1"]
    assert "0%: 0.0200 [-0.0300, 0.0700]" in html.unescape(figure)
    assert plots.dial(entry(dial=None), "plot") is None


def test_labels_of_the_dial_take_two_lines(entry):
    dial = made_works.comparison("made")["dial"]
    dial["settings"][0]["label"], dial["settings"][1]["label"] = "always the same", "one two three four five six"
    figure = plots.dial(entry(dial=dial), "plot")
    said = re.findall(r"<text[^>]*>([^<]*)</text>", figure)
    assert {"always the", "same", "one two", "50%"} <= set(said)
    assert any(word.startswith("three four") and word.endswith("…") for word in said)
    assert "one two three four five six" in figure  # whole for those who hear it


def test_curves_keep_their_arms_and_bands(entry):
    made = entry()
    figure = plots.curves(made, "plot")
    ends = {}
    for arm in ("treatment", "control"):
        (line,), (band,) = marks(figure, "path", f"curve {arm}"), marks(figure, "path", f"band {arm}")
        points = [tuple(map(float, p.split())) for p in line["d"][1:].split("L")]
        around = [tuple(map(float, p.split())) for p in band["d"][1:-1].split("L")]
        ends[arm] = points[-1][1]
        half = len(around) // 2
        for (x, y), (x_high, high), (x_low, low) in zip(points, around[:half], around[::-1][:half], strict=True):
            assert x == x_high == x_low
            assert high < y < low
            assert (y - high, low - y) == pytest.approx(
                (points[0][1] - around[0][1],) * 2, abs=0.2
            )  # as wide all along
    assert ends["treatment"] < ends["control"]  # higher on the page
    assert "made goes from 0 to 0.7056 at steps 2990" in figure


def test_the_whole_band_is_on_the_plot(entry):
    wide = {"x": [0, 1], "mean": [0.5, 0.5], "low": [0.1, 0.0], "high": [0.9, 1.0]}
    figure = plots.curves(entry(curves={"treatment": wide}), "plot")
    (band,) = marks(figure, "path", "band treatment")
    heights = [float(p.split()[1]) for p in band["d"][1:-1].split("L")]
    assert heights == sorted(heights[:2], reverse=True) + sorted(heights[2:], reverse=True)
    assert len(set(heights)) == 4
    assert (heights[2] - heights[1]) == pytest.approx((heights[3] - heights[0]) / 0.8, abs=0.2)


def test_a_long_curve_keeps_its_ends():
    long = tuple(map(float, range(1001)))
    found = plots.thinned(Curve(long, long, long, long))
    assert (found.x[0], found.x[-1]) == (0.0, 1000.0)
    assert len(found.x) <= plots.POINTS + 1
    assert found.mean == found.x
    few = Curve((1.0,), (2.0,), (2.0,), (2.0,))
    assert plots.thinned(few) == few


def test_identities_show_differences_against_tolerances(tmp_path):
    path = tmp_path / "made.json"
    path.write_text(
        json.dumps([made_works.identity("made", expected=[1.0, 2.0], measured=[1.5, 1.0], tolerance=[0.8, 0.75])])
    )
    (made,) = read(path)
    assert (plots.worst(made), plots.tolerated(made)) == (1.0, 0.75)
    figure = plots.checks(made, "plot")
    above, below = marks(figure, "circle")
    (zero,) = marks(figure, "line", "threshold")
    assert above["cy"] < zero["y1"] < below["cy"]
    for band, inside in zip(marks(figure, "rect"), (True, False), strict=True):
        mark = above if inside else below
        assert (band["y"] <= mark["cy"] <= band["y"] + band["height"]) is inside


def test_prose_keeps_equations():
    found = prose(
        "First `x` words\non two lines.\n\n    a = b      (eq. 1)\n      + c\n\n- one\n- two\n  more\n\nwhere <a>."
    )
    assert found == (
        "<p>First <code>x</code> words on two lines.</p>"
        '<pre class="equation">a = b      (eq. 1)\n  + c</pre>'
        "<ul><li>one</li><li>two more</li></ul><p>where &lt;a&gt;.</p>"
    )
    assert prose("Short.\n\n    a = b") == '<p>Short.</p><pre class="equation">a = b</pre>'


def test_values_in_words():
    value = {"a": 1, "b": True, "c": [0.1, None], "d": {}, "e": [[1, 2]]}
    assert words(value) == "a 1, b, c 0.1, none, d none, e [1, 2]"


def test_highlighting_marks_and_keeps_code():
    found = highlight('def f(x):  # why\n    return "a<b" * 2\n')
    assert found == (
        '<span class="k">def</span> <span class="d">f</span>(x):  <span class="c"># why</span>\n'
        '    <span class="k">return</span> <span class="s">&quot;a&lt;b&quot;</span> * <span class="n">2</span>\n'
    )


@quick
@given(st.text(alphabet="def class x1.5'\"#\\\n\r\f\t ()[]{}é\u2028<&:"))
def test_highlighting_never_changes_a_character(source):
    assert html.unescape(re.sub(r"</?span[^>]*>", "", highlight(source))) == source


def test_the_code_of_the_project_survives_highlighting():
    for path in Path(plots.__file__).parent.glob("*.py"):
        source = path.read_text()
        found = highlight(source)
        assert html.unescape(re.sub(r'</?span(?: class="\w")?>', "", found)) == source
        assert found.count('class="d"') == len(re.findall(r"^\s*(?:def|class) ", source, re.M))


FRONTS = {
    "metric": "return",
    "treatment": [[[0.0, 0.0, 0.0], [4.0, v, 1.0], [9.0, 2.0, 3.0]] for v in (1.0, 2.0)],
    "control": [[[0.0, 0.0, None], [16.0, 1.0, None]], [[0.0, 0.0, None], [25.0, 3.0, None]]],
}  # fmt: skip


def test_a_front_lies_over_the_root_of_the_divergence(entry):
    figure = fronts(entry(fronts=FRONTS), "plot")

    def points(kind):
        return [[tuple(map(float, p.split())) for p in m["d"][1:].split("L")] for m in marks(figure, "path", kind)]

    (treatment,), (control,) = points("curve treatment"), points("curve control")
    assert len(points("seed treatment")) == len(points("seed control")) == 2
    assert treatment[2][0] - treatment[0][0] == pytest.approx(1.5 * (treatment[1][0] - treatment[0][0]), abs=0.3)
    assert control[1][0] - control[0][0] == pytest.approx(1.5 * (treatment[2][0] - treatment[0][0]), abs=0.3)  # 4.5: 3
    assert treatment[1][1] - treatment[0][1] == pytest.approx(0.75 * (treatment[2][1] - treatment[0][1]), abs=0.3)
    assert len(points("proxy treatment")) == 1 and not points("proxy control")
    assert "made is at best 2, 9 nats from the start, and ends at 2, 9 nats from it" in html.unescape(figure)
    assert fronts(entry(fronts=None), "plot") is None


def test_fronts_of_other_shapes_are_refused(entry):
    with pytest.raises(UserError, match=r"fronts\.control: expected points of three numbers"):
        entry(fronts={**FRONTS, "control": [[[0.0, 1.0]]]})
