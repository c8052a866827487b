"""Claims: from a paper's statement to evidence, its verdict, and checking it again."""

from __future__ import annotations

import json
import types
from dataclasses import replace

import pytest

from partita import cli
from partita.core.errors import UserError
from partita.core.paper import Claim, Identity
from partita.lab import claim as command
from partita.lab import claims as claims_module
from partita.lab import evidence
from partita.lab.claims import Trial, arm_config
from partita.lab.jobs import perform
from partita.parts.rollout import Segments

CALLS: list[tuple[str, int]] = []
SHIFT = {"value": 0.0}


class Here:
    """Carries out jobs in this process."""

    def run(self, jobs, watch):
        for job in jobs:
            perform(job)
        watch(jobs)


def experiment(arm, seed, strength=1.0, rate=1.0, knob=0):
    """The treatment is better by `strength`, up to noise that both arms share; a rate of 2 is best for both."""
    CALLS.append((arm, seed))
    shared, own = (seed * 37 % 11) / 10, ((seed * 13 + len(arm)) % 7) / 100
    bonus = strength if arm == "treatment" else 0.0
    return {"value": shared + own + bonus - abs(rate - 2) + SHIFT["value"], "steps": 3}


def doubled(seed):
    CALLS.append(("identity", seed))
    return 2.0 + seed * 1e-4 + SHIFT["value"]


PLAIN = Claim("is better", "treatment", "control", "none", experiment=experiment, seeds=4)
DIAL = replace(PLAIN, dial=("noise", (("absent", {"strength": 0.0}), ("strong", {"strength": 0.5}))))


@pytest.fixture
def hold(monkeypatch, tmp_path):
    """Give the paper `mine` some claims, and evidence and runs a place of their own."""
    CALLS.clear()
    SHIFT["value"] = 0.0
    (tmp_path / "evidence").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evidence, "code", lambda: "code")

    def give(*statements):
        module = types.SimpleNamespace(CLAIMS=statements)
        monkeypatch.setattr(claims_module.registry, "paper_module", lambda key: module)
        return tmp_path / "evidence" / "mine.json"

    return give


def run(*words):
    command.claim(["mine", *words], Here())


def entries(path):
    return json.loads(path.read_text())


def test_evidence_holds_values_effect_interval_verdict_and_where_it_came_from(hold):
    path = hold(PLAIN)
    run()
    (entry,) = entries(path)
    values = entry["values"]
    differences = [t - c for t, c in zip(values["treatment"], values["control"], strict=True)]
    assert entry["verdict"] == "holds" and entry["effect"] == pytest.approx(sum(differences) / 4, abs=1e-6)
    assert entry["ci"][0] < entry["effect"] < entry["ci"][1] and entry["ci"][0] > 0.9
    assert entry["seed_list"] == [0, 1, 2, 3] and entry["seeds"] == 4 and entry["dial"] is None
    assert entry["rule"].startswith("holds if the 95% interval of the mean paired difference")
    assert {"date", "commit", "dirty", "versions", "machine", "duration", "note"} <= set(entry)
    assert set(entry["versions"]) >= {"partita", "torch", "python"} and entry["machine"]["cores"] >= 1


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"better": "lower"}, "fails"),
        ({"threshold": 2.0}, "fails"),
        ({"settings": {"strength": 0.0}}, "unclear"),
        ({"kind": "ratio", "threshold": 1.2}, "holds"),
        ({"kind": "ratio", "threshold": 9.0}, "fails"),
        ({"better": "equal", "threshold": 0.2, "settings": {"strength": 0.0}}, "holds"),
        ({"better": "equal", "threshold": 0.2}, "fails"),
    ],
)
def test_the_verdict_follows_from_the_interval_alone(hold, change, verdict):
    path = hold(replace(PLAIN, seeds=8, **{"settings": {"rate": 2.0}, **change}))
    run()
    assert entries(path)[0]["verdict"] == verdict


def test_a_dial_is_judged_where_it_is_strongest_and_its_growth_beside_it(hold):
    path = hold(replace(DIAL, seeds=8))
    run()
    dial = entries(path)[0]["dial"]
    assert [row["label"] for row in dial["settings"]] == ["absent", "strong"]
    assert dial["settings"][0]["effect"] == pytest.approx(0.0, abs=0.06)
    assert entries(path)[0]["effect"] == dial["settings"][1]["effect"] == pytest.approx(0.5, abs=0.06)
    assert dial["growth"]["verdict"] == "holds" and dial["growth"]["effect"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(("tolerance", "verdict"), [(1e-2, "holds"), (1e-6, "fails")])
def test_an_identity_compares_with_what_is_expected_for_every_seed(hold, tolerance, verdict):
    path = hold(Identity("two", doubled, expected=2.0, tolerance=tolerance, seeds=3))
    run()
    (entry,) = entries(path)
    assert entry["verdict"] == verdict and entry["measured"] == pytest.approx(2.0002)
    assert entry["expected"] == 2.0 and entry["values"]["measured"] == pytest.approx([2.0, 2.0001, 2.0002])


def test_several_statements_are_several_entries(hold):
    path = hold(PLAIN, Identity("two", doubled, 2.0, 0.1))
    run()
    assert [e["statement"] for e in entries(path)] == ["is better", "two"]


def test_statements_about_the_same_runs_share_them(hold):
    plain = replace(PLAIN, settings={"rate": 2.0})
    path = hold(plain, replace(plain, statement="is better by a third", kind="ratio", threshold=1.3))
    run()
    assert len(CALLS) == 8 and len(entries(path)) == 2
    assert entries(path)[0]["values"] == entries(path)[1]["values"]


def test_one_statement_can_be_measured_alone_and_the_others_stay(hold):
    second, third = replace(PLAIN, statement="again", better="lower"), Identity("two", doubled, 2.0, 0.1)
    path = hold(PLAIN, second, third)
    run("--statement", "2")
    assert [e["statement"] for e in entries(path)] == ["again"] and ("identity", 0) not in CALLS
    first = entries(path)[0]
    run("--statement", "1")
    assert [e["statement"] for e in entries(path)] == ["is better", "again"] and entries(path)[1] == first
    with pytest.raises(UserError, match="--statement 4: mine states 3"):
        run("--statement", "4")


def test_what_is_measured_is_written_before_the_next_statement(hold):
    path = hold(PLAIN, Identity("bad", broken, 2.0, 0.1))
    with pytest.raises(UserError):
        run()
    assert [e["statement"] for e in entries(path)] == ["is better"]


def broken(seed):
    raise RuntimeError("out of luck")


def test_both_arms_are_tuned_alike_on_other_seeds_and_the_record_is_kept(hold, tmp_path):
    path = hold(replace(PLAIN, search={"rate": (1.0, 2.0, 5.0)}))
    run()
    tuning = entries(path)[0]["tuning"]
    assert tuning["treatment"] == tuning["control"] == {"rate": 2.0} and tuning["trials"] == 3
    assert tuning["seeds"] == [1000, 1001] and not set(tuning["seeds"]) & set(entries(path)[0]["seed_list"])
    assert {s for _, s in CALLS} == {0, 1, 2, 3, 1000, 1001}
    assert CALLS.count(("treatment", 1000)) == CALLS.count(("control", 1000)) == 3
    held = json.loads((tmp_path / "evidence" / "tuning" / "mine.json").read_text())
    assert [row["mean"] for row in held[0]["treatment_trials"]][1] == max(
        row["mean"] for row in held[0]["treatment_trials"]
    )
    CALLS.clear()
    run("--out", "elsewhere")  # another folder: runs again, but with the tuning that is held
    assert {s for _, s in CALLS} == {0, 1, 2, 3}


def test_tuning_one_arm_more_than_the_other_is_refused(hold):
    hold(replace(PLAIN, search={"rate": (1.0, 2.0)}, search_treatment={"knob": (1, 2)}))
    with pytest.raises(UserError, match="4 trials for the treatment and 2 for the control"):
        run()
    path = hold(replace(PLAIN, search_treatment={"knob": (1, 2)}, search_control={"rate": (1.0, 2.0)}))
    run()
    assert entries(path)[0]["tuning"]["control"] == {"rate": 2.0}


def test_what_is_finished_is_kept(hold):
    hold(PLAIN)
    run("--seeds", "3")
    CALLS.clear()
    run("--seeds", "5")
    assert {seed for _, seed in CALLS} == {3, 4}


def test_a_quick_look_writes_no_verdict(hold, capsys):
    path = hold(DIAL)
    run("--quick")
    assert not path.exists() and {seed for _, seed in CALLS} == {0, 1}
    assert "no verdict was written" in capsys.readouterr().out


def test_checking_runs_two_seeds_anew_and_says_whether_they_fit(hold, capsys):
    path = hold(replace(DIAL, seeds=8), Identity("two", doubled, 2.0, 0.1, seeds=2))
    run()
    before = path.read_text()
    CALLS.clear()
    run("--check")
    assert set(CALLS) == {(arm, seed) for arm in ("treatment", "control", "identity") for seed in (0, 1)}
    assert len(CALLS) == 6  # of the dial only the strongest setting
    assert "the same numbers: ok" in capsys.readouterr().out
    SHIFT["value"] = 0.01  # another machine: other numbers, well within the spread of the seeds
    run("--check", "--out", "again")
    assert "expected within" in capsys.readouterr().out
    SHIFT["value"] = 9.0
    with pytest.raises(UserError, match="not consistent with the committed evidence"):
        run("--check", "--out", "broken")
    assert path.read_text() == before


def test_checking_passes_over_statements_without_evidence(hold, capsys):
    hold(PLAIN)
    run()
    hold(PLAIN, replace(PLAIN, statement="and more"))
    run("--check")
    said = capsys.readouterr().out
    assert "no evidence yet: and more" in said and "the committed evidence is consistent" in said


def test_the_analysis_can_be_written_after_the_evidence(hold):
    path = hold(PLAIN)
    run()
    before = entries(path)[0]
    hold(replace(PLAIN, analysis="the noise is shared"))
    run("--annotate")
    assert entries(path)[0] == {**before, "note": "the noise is shared"}


def test_arms_are_recipes_on_the_claims_task_with_its_settings(hold):
    claim = Claim(
        "x", "ppo", "a2c", "cartpole", metric="return", seeds=2,
        settings={"steps": 2, "batch_size": 4, "rollout": Segments(steps=16), "task.max_steps": 20, "eval_size": 4,
                  "eval_sampled": True, "policy.hidden": (8,)},
        dial=("length", (("short", {}), ("long", {"task.max_steps": 30}))),
    )  # fmt: skip
    first, last = (
        Trial(claim, hold(claim).parent, (0,)).config("control", changes) for changes in ({}, dict(claim.dial[1][1][1]))
    )
    assert first.name == "a2c" and first.recipe.steps == 2 and first.settings.eval_size == 4
    assert (first.task.max_steps, last.task.max_steps) == (20, 30)
    run()
    (entry,) = entries(evidence.evidence_folder() / "mine.json")
    assert len(entry["dial"]["settings"]) == 2 and len(entry["values"]["treatment"]) == 2
    assert entry["curves"]["x_name"] == "steps" and 2 <= len(entry["curves"]["treatment"]["x"]) <= 40
    assert entry["settings"]["rollout"] == {"part": "segments", "steps": 16, "compile": False}
    for points in (*entry["fronts"]["treatment"], *entry["fronts"]["control"]):
        assert (
            points[0][0] == pytest.approx(0.0, abs=1e-5) and points[1][0] != 0 and [p[2] for p in points] == [None] * 2
        )


def test_a_measure_of_the_finished_run_can_be_the_metric(hold):
    claim = Claim(
        "x", "ppo", "a2c", "cartpole", metric="value", measure=lines_of_metrics, seeds=2,
        settings={"steps": 2, "batch_size": 4, "rollout": Segments(steps=16), "eval_size": 0, "policy.hidden": (8,)},
    )  # fmt: skip
    path = hold(claim)
    run()
    assert entries(path)[0]["values"] == {"treatment": [2.0, 2.0], "control": [2.0, 2.0]}


def lines_of_metrics(folder):
    return len((folder / "metrics.jsonl").read_text().splitlines())


def test_names_of_settings_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="stepz: no such field; did you mean steps"):
        arm_config(Claim("x", "ppo", "a2c", "cartpole", settings={"stepz": 2}), "control", {})
    with pytest.raises(UserError, match=r"credit\.lambda: gae has no such setting"):
        arm_config(Claim("x", "ppo", "a2c", "cartpole", settings={"credit.lambda": 2}), "treatment", {})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "claim: expected KEY, or --all"),
        (["nope"], "paper nope: no such paper"),
        (["grpo"], "the work states no claim here"),
        (["mine", "--seeds", "1"], "--seeds: expected a whole number of 2 or more"),
        (["mine", "--check", "--quick"], "give one of --quick, --check, --annotate"),
        (["mine", "--check", "--seeds", "3"], "leave out --seeds"),
        (["mine", "--wrong"], "claim: no flag --wrong"),
        (["--all", "--family", "nope"], "no such family"),
        (["mine", "--jobs", "0"], "--jobs: expected a whole number of 1 or more"),
        (["mine", "--engine", "slurm"], "--engine slurm: expected processes or ray"),
    ],
)
def test_bad_words_are_refused_in_one_line(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["claim", *words])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and message in said and said.count("\n") == 1


def test_without_evidence_there_is_nothing_to_check_or_annotate(hold):
    hold(PLAIN)
    for flag in ("--check", "--annotate"):
        with pytest.raises(UserError, match="no evidence is held"):
            run(flag)
