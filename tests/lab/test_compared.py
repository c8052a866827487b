"""What is said of a finished comparison: numbers worked out by hand, as data, as a table and as a page."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pool_jobs
import pytest
from test_report import parsed

from partita.core.errors import UserError
from partita.lab.compare_page import page
from partita.lab.compared import bands, few, mean, number, part, shown, smoothed, summary, table
from partita.lab.comparison import Comparison

ONE, TWO, THREE = [1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 5.0, 6.0], [0.0, 1.0, 2.0, 1.0]
T = 3.182446305284263  # Student's t of 3 degrees at 0.975


def arms(folder, **more) -> Comparison:
    curves = {"one": [0.0, 1.0, 2.0], "two": [0.0, 2.0, 4.0], "three": [1.0, 1.0, 1.0]}
    return pool_jobs.made_up(folder, {"one": ONE, "two": TWO, "three": THREE}, curves, **more)


def two(folder, **more) -> Comparison:
    found = arms(folder, **more)
    return replace(found, arms={k: found.arms[k] for k in ("one", "two")})


def test_differences_from_the_first_arm(tmp_path):
    found = summary(two(tmp_path))
    assert found["baseline"] == "one" and list(found["against"]) == ["two"]
    row = found["against"]["two"]
    half = T * (1 / 3) ** 0.5 / 2  # differences 1, 1, 2, 2: mean 1.5, variance 1/3, four seeds
    assert row["difference"] == pytest.approx([1.5, 1.5 - half, 1.5 + half])
    assert row["p"] == row["p_alone"] == 0.125  # 2 of 16 sign patterns
    assert row["verdict"] == "holds"
    # of 16 pairs two is above in 1 + 2 + 4 + 4 and ties in 1 + 1
    assert row["improvement"][0] == 12 / 16
    assert found["arms"]["one"]["mean"][0] == 2.5 and found["arms"]["one"]["iqm"][0] == 2.5
    assert found["arms"]["one"]["before"] == 0.5
    assert json.loads((tmp_path / "summary.json").read_text()) == found


def test_several_arms_are_corrected_together(tmp_path):
    alone = summary(two(tmp_path / "a"))["against"]["two"]
    found = summary(arms(tmp_path / "b"))["against"]
    assert found["two"]["difference"][0] == alone["difference"][0]
    assert found["two"]["difference"][1] < alone["difference"][1]
    assert found["two"]["difference"][2] > alone["difference"][2]
    assert (found["two"]["p"], found["two"]["p_alone"]) == (0.25, 0.125)  # Holm: twice the smaller of two equal
    assert found["three"]["difference"][0] == -1.5  # -1, -1, -1, -3


def test_lower_may_be_better(tmp_path):
    found = summary(two(tmp_path, better="lower"))["against"]["two"]
    assert found["verdict"] == "fails"
    assert found["difference"][0] == 1.5
    assert found["improvement"][0] == 4 / 16


def test_efficiency(tmp_path):
    found = summary(arms(tmp_path, threshold=1.5))["arms"]
    # samples 10, 20, 30, and the curve 0, 1, 2: mean height 1; with three steps the running mean is over all three
    assert found["one"]["area_samples"] == [1.0, 1.0, 1.0]
    assert found["two"]["area_seconds"] == [2.0, 2.0, 2.0]
    assert found["one"]["time_to_samples"] == {"median": None, "reached": 0, "values": [None] * 4}
    assert found["two"]["time_to_samples"] == {"median": 30.0, "reached": 4, "values": [30.0] * 4}
    assert found["two"]["time_to_seconds"]["median"] == 6.0


def test_arms_of_different_length_are_compared_where_both_have_been(tmp_path):
    curves = {"long": [0.0, 0.0, 0.0, 8.0, 8.0], "short": [4.0, 4.0, 4.0]}
    found = summary(pool_jobs.made_up(tmp_path, {"long": [1.0, 2.0], "short": [1.0, 2.0]}, curves))
    assert found["arms"]["long"]["area_samples"][0] == 0.0
    assert found["arms"]["short"]["area_samples"][0] == 4.0
    assert found["against"]["short"]["difference"] == [0.0, 0.0, 0.0]
    assert found["against"]["short"]["verdict"] == "unclear" and found["against"]["short"]["p"] == 1.0


def test_part_of_a_curve():
    curve = ([0.0, 10.0, 20.0, 30.0], [0.0, 1.0, 3.0, 3.0])
    assert part(curve, 5.0, 25.0) == ([5.0, 10.0, 20.0, 25.0], [0.5, 1.0, 3.0, 3.0])
    assert part(curve, 10.0, 20.0) == ([10.0, 20.0], [1.0, 3.0])


def test_smoothing_keeps_short_curves_and_means():
    short = ([1.0, 2.0], [3.0, 5.0])
    assert smoothed(short) == short
    y = [float(i % 2) for i in range(80)]
    found = smoothed((list(map(float, range(80))), y))[1]
    assert found[40] == pytest.approx(2 / 5)  # 0 1 0 1 0 around an even place
    assert found[0] == pytest.approx(1 / 3)
    assert len(found) == 80


def test_bands(tmp_path):
    held = two(tmp_path)
    flat = [0.0, 2.0, 4.0]
    assert bands(held, "samples", 3)["two"] == {"x": [10.0, 20.0, 30.0], "mean": flat, "low": flat, "high": flat}
    assert bands(held, "samples")["two"]["x"] == [10.0, 20.0, 30.0]  # nothing between the steps
    one = replace(held, seeds=(0,))
    assert bands(one, "step", 2)["one"] == {"x": [1.0, 3.0], "mean": [0.0, 2.0], "low": [None] * 2, "high": [None] * 2}
    assert bands(replace(one, metric="entropy"), "step") == {}


def test_one_seed_has_no_interval(tmp_path):
    one = replace(two(tmp_path), seeds=(0,))
    found = summary(one)
    assert found["arms"]["one"]["mean"] == [1.0, None, None]
    assert found["against"]["two"]["verdict"] == "unclear"
    lines = table(found)
    assert lines[0] == "return on cartpole, higher is better, 1 seed: no interval"
    assert "1.000  " in lines[3] and "[" not in lines[3]


def test_intervals_of_shares_end_where_shares_do(tmp_path):
    found = two(tmp_path)
    for seed, value in enumerate((0.0, 1.0, 1.0, 1.0)):
        for label in found.arms:
            job = found.job(label, seed)
            job.folder.joinpath("result.json").write_text(
                json.dumps({**(job.result() or {}), "after": {"metric": "success", "mean": value}})
            )
    told = summary(replace(found, metric="success"))["arms"]["one"]["mean"]
    assert told[0] == 0.75 and 0.0 <= told[1] < 0.75 and told[2] == 1.0
    free = summary(replace(found, metric="return"))["arms"]["one"]["mean"]
    assert free[2] == pytest.approx(0.75 + T * 0.25)  # s = 1/2, four seeds


def test_few_seeds_are_called_few(tmp_path):
    said = "4 seeds are few: no p below 0.125 is possible"
    assert any(line.startswith(said) for line in table(summary(two(tmp_path))))
    assert few(6) == "" and few(1) == "" and few(5).startswith("5 seeds are few: no p below 0.0625")


def test_table(tmp_path):
    lines = table(summary(arms(tmp_path, threshold=1.5)))
    assert lines[0] == "return on cartpole, higher is better, 4 paired seeds; 95% intervals"
    assert lines[2].split("  ") and "difference from one" in lines[2]
    assert len({line.index("6.0 s") for line in lines[3:6]}) == 1  # columns line up
    assert any(line.startswith("two against one: ") and "p 0.25 (Holm, exact sign-flip" in line for line in lines)
    assert "one: return 1.5 reached by 0 of 4 seeds" in lines
    assert "two: return 1.5 reached after 30 samples (median; 4 of 4 seeds)" in lines


def test_numbers_in_words():
    assert shown([0.41234, 0.38, 0.44]) == "0.412 [0.380, 0.440]"
    assert shown([123.45, 100.0, None]) == "123.5" or shown([123.45, 100.0, None]) == "123.4"
    assert number(-0.0001) == "0.000" and number(123456.0) == "1.235e+05"
    found = mean([2.0, 4.0])
    assert (found.value, found.high - found.value) == pytest.approx((3.0, 12.706204736432095))


# -- the page ------------------------------------------------------------


def test_the_page_says_what_was_found(tmp_path):
    found = arms(tmp_path, threshold=1.5)
    text = page(found).read_text()
    read = parsed(text)
    for words in (
        "one, two and three on cartpole", "over 4 paired seeds (0 to 3)", "Difference from one", "p (Holm)",
        "Probability of improvement", "Interquartile mean", "Performance profile", "By steps", "By samples",
        "By wall-clock", "Every seed", "Samples to 1.5", "not reached", "How it is computed", "Environment",
        "two differs from one in", "credit",
    ):  # fmt: skip
        assert words in read.text, words
    for value in (*ONE, *TWO, *THREE):
        assert f"\n{number(value)}\n" in read.text
    assert shown(summary(found)["against"]["two"]["difference"]).split(" ", 1)[1] in read.text
    assert read.tags.count("svg") >= 6 and "script" not in read.tags and read.links == []
    assert "A_i" in read.text or "A_t" in read.text  # equations of what differs
    assert not re.search(r'(?:d|x|y|cx|cy|y1|y2)="[^"]*(?:nan|inf|None)', text)


def test_the_page_is_the_same_every_time(tmp_path):
    found = arms(tmp_path)
    assert page(found).read_text() == page(Comparison.read(tmp_path), target=tmp_path / "b.html").read_text()


def test_the_page_of_one_seed_and_of_runs_without_curves(tmp_path):
    found = replace(two(tmp_path), seeds=(2,))
    read = parsed(page(found).read_text())
    assert "over 1 seed (2), no intervals" in read.text
    for label in found.arms:
        path = found.job(label, 2).folder / "run" / "metrics.jsonl"
        path.write_text(path.read_text().replace('"return"', '"other"'))
    read = parsed(page(found).read_text())
    assert "no return at every step" in read.text and "By samples" not in read.text


def test_an_unfinished_comparison_shows_the_seeds_that_are_done(tmp_path):
    found = arms(tmp_path)
    (found.job("two", 1).folder / "result.json").unlink()
    assert "over 3 paired seeds (0, 2, 3). 1 more are not finished." in parsed(page(found).read_text()).text
    for seed in (0, 2, 3):
        (found.job("two", seed).folder / "result.json").unlink()
    with pytest.raises(UserError, match="no seed is finished in all arms yet"):
        page(found)


def test_where_the_page_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="is a folder; name a file"):
        page(arms(tmp_path), target=tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        page(arms(tmp_path / "other"), target=tmp_path / "absent" / "page.html")
