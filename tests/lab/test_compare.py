"""`partita compare`: what its words mean, what it refuses, and that arms meet the same conditions."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace

import pool_jobs
import pytest

from partita import cli
from partita.core.errors import UserError
from partita.lab.compare import ENDLESS, labelled, merged, seeds, understood
from partita.lab.comparison import Comparison
from partita.lab.jobs import Job
from partita.lab.pool import Pool
from partita.lab.run import read_rows
from partita.lab.watch import Watch, share
from partita.parts.credit import LeaveOneOut


def words(text: str) -> list[str]:
    return text.split()


def test_arms_share_flags_and_have_their_own():
    found = understood(
        ["ppo", "mine=grpo --credit leave_one_out --lr 2e-3", *words("--task cartpole --lr 1e-3 --steps 7")]
    )
    assert list(found.arms) == ["ppo", "mine"]
    assert found.arms["ppo"].recipe.lr == 1e-3 and found.arms["mine"].recipe.lr == 2e-3
    assert found.arms["mine"].recipe.credit == LeaveOneOut()
    assert all(arm.recipe.steps == 7 and arm.task.part_name() == "cartpole" for arm in found.arms.values())
    assert (found.seeds, found.metric, found.better) == (tuple(range(8)), "return", "higher")
    assert str(found.folder) == "runs/compare-ppo-mine-cartpole"


def test_an_arms_own_flag_replaces_the_shared_one_with_all_its_words():
    common = words("--policy.hidden 8 8 --lr 1 --no-x --task t")
    assert merged(common, words("--policy.hidden 4")) == words("--lr 1 --no-x --task t --policy.hidden 4")
    assert merged(common, ["--lr=2"]) == words("--policy.hidden 8 8 --no-x --task t --lr=2")


@pytest.mark.parametrize(
    ("text", "label", "spec"),
    [
        ("grpo", "grpo", ["grpo"]),
        ("a.b=grpo --lr 1e-3", "a.b", ["grpo", "--lr", "1e-3"]),
        ("grpo --lr 1e-3", "grpo-lr-1e-3", ["grpo", "--lr", "1e-3"]),
        ("grpo --lr=1e-3", "grpo-lr=1e-3", ["grpo", "--lr=1e-3"]),
    ],
)
def test_labels(text, label, spec):
    assert labelled(text) == (label, spec)


def test_seeds_in_words():
    assert seeds("3") == (0, 1, 2)
    assert seeds("3,9,5") == (3, 9, 5)
    assert seeds("100:103") == (100, 101, 102)


def test_budgets():
    base = words("ppo a2c --task cartpole --seeds 1")
    steps, samples, time = (understood([*base, "--budget", b]) for b in ("steps=9", "samples=4096", "seconds=1.5"))
    assert all(arm.recipe.steps == 9 for arm in steps.arms.values())
    for arm in samples.arms.values():
        assert (arm.recipe.steps, arm.settings.samples, arm.settings.seconds) == (ENDLESS, 4096, None)
        assert arm.settings.save_every == 20
    assert all(arm.settings.seconds == 1.5 for arm in time.arms.values())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ppo --task cartpole", "name two or more arms"),
        ("ppo ppo --task cartpole", "two arms are called ppo"),
        ("ppo grop", "recipe grop: no such recipe; did you mean grpo"),
        ("ppo a2c --seeds 0", "--seeds: expected different seeds, got none"),
        ("ppo a2c --seeds 1,2,1", "--seeds: expected different seeds, got 1, 2, 1"),
        ("ppo a2c --seeds eight", "--seeds: expected a whole number"),
        ("ppo a2c --seed 3", "--seed is for a single run"),
        ("ppo a2c --resume runs/x", "--resume is for a single run"),
        ("ppo a2c --budget minutes=3", "expected steps=N, samples=N or seconds=X"),
        ("ppo a2c --budget steps=2.5", "expected a whole number above 0"),
        ("ppo a2c --budget seconds=-1", "expected a number above 0"),
        ("ppo a2c --lr-schedule linear --budget samples=99", "--lr-schedule linear needs a number of steps"),
        ("ppo a2c --metric return:median", "no summary 'median'"),
        ("ppo a2c --metric return --eval-size 0", "--eval-size is 0"),
        ("ppo a2c --better more", "--better: expected higher or lower"),
        ("ppo a2c --threshold high", "--threshold: expected a number"),
        ("ppo a2c --stepps 3", "--stepps: no such flag; did you mean"),
        ("ppo a2c --jobs 0", "--jobs: expected a whole number of 1 or more"),
        ("ppo a2c --engine slurm", "--engine slurm: expected processes or ray"),
        ("ppo a2c --task cartpole --seeds", "--seeds: a value is missing"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(text, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", *words(text)])
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert says in told and len(told.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ("two=ppo --task acrobot", "arm two: its task is acrobot"),
        ("two=ppo --out here", "--out is for a single run"),
        ("two='ppo", 'arm "two=\'ppo"'),
        ("x" * 101 + "=ppo", "a label is made of up to 100"),
        ("two=ppo --lr=fast", "--lr: cannot read 'fast'"),
    ],
)
def test_bad_arms(arm, says):
    with pytest.raises(UserError) as error:
        understood(["ppo", arm, *words("--task cartpole")])
    assert says in str(error.value)


def comparison(folder, **more) -> Comparison:
    """PPO and a copy of it that differs in nothing that the first step's sampling sees."""
    a, b = pool_jobs.small(), pool_jobs.small(credit=replace(pool_jobs.small().recipe.credit, gae_lambda=0.5))
    return Comparison(folder, {"one": a, "two": b}, more.pop("seeds", (1, 2)), more.pop("metric", "return"), **more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Comparison:
    found = comparison(tmp_path_factory.mktemp("compared"))
    found.run(Pool(2))
    return found


def test_arms_meet_the_same_problems_at_the_same_seed(finished):
    firsts = {}
    for label in finished.arms:
        for seed in finished.seeds:
            folder = finished.job(label, seed).folder / "run"
            rows = read_rows(folder / "metrics.jsonl")
            before = read_rows(folder / "evaluations.jsonl")[0]
            firsts[label, seed] = ([rows[0].get(k) for k in ("return", "length", "steps")], before)
            assert rows[-1]["samples"] == rows[0]["samples"]
    for seed in finished.seeds:
        assert firsts["one", seed] == firsts["two", seed]
    assert firsts["one", 1] != firsts["one", 2]
    losses = [read_rows(finished.job(label, 1).folder / "run" / "metrics.jsonl")[-1]["loss"] for label in finished.arms]
    assert losses[0] != losses[1]  # the arms are not one and the same


def test_more_seeds_and_arms_keep_what_is_done(finished):
    done = finished.job("one", 2).folder / "result.json"
    before = done.stat().st_mtime_ns
    more = comparison(finished.folder, seeds=(1, 2, 3))
    more.run(Pool(2))
    assert done.stat().st_mtime_ns == before
    assert {k: v[:2] for k, v in more.values().items()} == finished.values()
    assert len(more.values()["two"]) == 3
    third = replace(more, arms={**more.arms, "three": pool_jobs.small()})
    third.open()
    assert Comparison.read(finished.folder) == replace(third, arms=Comparison.read(finished.folder).arms)
    with pytest.raises(UserError, match=r"three/seed_1: is not finished"):
        third.values()
    finished.open()


def test_another_arm_under_the_same_name_is_refused(finished):
    other = replace(finished, arms={**finished.arms, "two": pool_jobs.small("grpo")})
    with pytest.raises(UserError, match="holds a comparison whose two differs; choose another folder"):
        other.run(Pool(1))
    held = json.loads((finished.folder / "comparison.json").read_text())
    assert held["arms"]["two"]["recipe"] == "ppo"


def test_one_process_at_a_time(finished):
    with open(finished.folder / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is comparing in it"):
            finished.run(Pool(1))


def test_a_metric_that_no_run_has_stops_the_comparison_early(tmp_path):
    found = comparison(tmp_path, metric="entropie", seeds=(1, 2, 3, 4))
    with pytest.raises(UserError, match="has no metric 'entropie'; did you mean entropy"):
        found.run(Pool(1))
    assert sum(job.result() is not None for job in found.jobs) < len(found.jobs)
    assert len(replace(found, metric="entropy", seeds=(1,)).jobs) == 2


def test_results_of_an_unreadable_folder(tmp_path):
    with pytest.raises(UserError, match="not a comparison"):
        Comparison.read(tmp_path)
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Comparison.read(tmp_path)
    with pytest.raises(UserError, match="cannot be read; choose another"):
        comparison(tmp_path).open()


def test_the_whole_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = words("compare ppo a2c --task cartpole --seeds 2 --steps 2 --batch-size 2 --rollout.steps 8")
    command += words("--eval-size 2 --epochs 1 --minibatches 1")
    cli.main([*command, "--jobs", "2"])
    said = capsys.readouterr().out
    assert "a2c seed 1" in said and "(4 of 4)" in said
    assert "return on cartpole, higher is better, 2 paired seeds" in said
    folder = tmp_path / "runs" / "compare-ppo-a2c-cartpole"
    assert f"runs/{folder.name}: finished; report in runs/{folder.name}/report.html" in said
    page = (folder / "report.html").read_text()
    assert json.loads((folder / "summary.json").read_text())["baseline"] == "ppo"
    cli.main(command)
    assert "4 of 4 were finished before" in capsys.readouterr().out
    assert (folder / "report.html").read_text() == page
    cli.main(["report", str(folder), "--out", str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_text() == page


def test_progress_of_steps_samples_and_seconds(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "seconds": 1.0, "samples": 8}\n{"step": 4, "seconds": 3.0, "samples": 8}\n'
    )
    for config, expected in (
        ({"steps": 16}, 0.25),
        ({"steps": ENDLESS, "run": {"samples": 64}}, 0.5),
        ({"steps": ENDLESS, "run": {"seconds": 4.0}}, 0.75),
        ({"steps": 2}, 1.0),
        ({}, 0.0),
    ):
        assert share(Job(tmp_path, config)) == expected
    assert share(Job(tmp_path / "absent", {"steps": 3})) == 0.0


def test_progress_in_lines(tmp_path, capsys):
    found = pool_jobs.made_up(tmp_path, {"one": [1.0, 2.0], "two": [3.0, 4.0]})
    last = found.job("two", 1).folder / "result.json"
    held = last.read_text()
    last.unlink()
    with Watch("compare") as watch:
        watch(found.jobs)
        last.write_text(held)
        watch(found.jobs)
        watch(found.jobs)
    assert capsys.readouterr().out.splitlines() == [
        "compare: 3 of 4 were finished before",
        "compare: two seed 1  return 4.000  3.0 s  (4 of 4)",
    ]
