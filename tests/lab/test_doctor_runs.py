"""The doctor on runs that were really made ill, and on healthy ones, which it must pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from partita.core import registry
from partita.lab.doctor import RULES, diagnoses, render
from partita.lab.flags import parse
from partita.lab.run import read_rows
from partita.lab.train import train
from partita.parts.objective import ClippedSurrogate
from partita.parts.regularisers import Entropy, ValueLoss
from partita.parts.rollout import Sample, Segments
from partita.policies.language import Language
from partita.tasks.control.classic import Cartpole
from partita.tasks.language.arithmetic import Arithmetic

PARTS = Path(__file__).with_name("doctor_parts.py")


def own(slot, name):
    return registry.part_class(slot, f"{PARTS}:{name}")()


def control(**changes):
    return ("ppo", changes.pop("task", "cartpole")), dict(
        rollout=Segments(64), batch_size=16, eval_size=32, threads=1, save_every=1000, **changes
    )


def language(recipe, level, **changes):
    policy = Language(model="tiny-0.3m")
    return (recipe, Arithmetic(level=level)), dict(policy=policy, threads=1, save_every=1000, **changes)


MADE = {
    "healthy_ppo": lambda: control(steps=30, lr=3e-3),
    "healthy_grpo": lambda: language("grpo_kl", 2, steps=20, batch_size=8, eval_size=48, lr=3e-4),
    "huge_lr": lambda: control(steps=16, lr=0.1),
    "tiny_lr": lambda: control(steps=24, lr=1e-12),
    "entropy_malus": lambda: control(steps=24, lr=3e-3, regularisers=(ValueLoss(), Entropy(weight=-1.0))),
    "narrow_clip": lambda: control(steps=10, objective=ClippedSurrogate(clip_low=1e-4, clip_high=1e-4)),
    "wrong_critic": lambda: control(steps=24, lr=3e-3, regularisers=(ValueLoss(weight=-0.5),)),
    "outliers": lambda: control(steps=46, reward=(own("reward", "Outliers"),)),
    "nothing_to_learn": lambda: control(steps=6, task=Cartpole(max_steps=5)),
    "impossible": lambda: language("grpo", 6, steps=20, batch_size=2, eval_size=8),
    "burnt": lambda: language("grpo_kl", 1, steps=12, batch_size=4, eval_size=0, lr=0.03),
    "late": lambda: language("reinforce", 1, steps=8, batch_size=16, eval_size=0, rollout=own("rollout", "Late")),
    "nucleus": lambda: language("grpo", 1, steps=6, batch_size=4, eval_size=0, rollout=Sample(top_p=0.5)),
    "fooled": lambda: language(
        "grpo", 1, steps=16, batch_size=4, eval_size=48, reward=(own("reward", "PaysForLength"),)
    ),
}


@pytest.fixture(scope="module")
def doctor(tmp_path_factory):
    """Make a run the first time that it is asked for; its diagnosis."""
    root, held = tmp_path_factory.mktemp("ill"), {}

    def of(name):
        if name not in held:
            given, changes = MADE[name]()
            train(*given, out=root / name, **changes)
            held[name] = diagnoses(root / name)[0]
        return held[name]

    of.root = root
    return of


def found(diagnosis, rule):
    return next((f for f in diagnosis.findings if f.rule == rule), None)


@pytest.mark.parametrize("name", ["healthy_ppo", "healthy_grpo"])
def test_a_healthy_run_passes_clean(name, doctor):
    diagnosis = doctor(name)
    assert diagnosis.findings == () and diagnosis.healthy
    said = "\n".join(render(diagnosis))
    assert f"nothing wrong found in {diagnosis.case.steps} steps" in said
    told = {v.rule for v in (*diagnosis.passed, *diagnosis.skipped)}
    assert told == {rule.name() for rule in RULES}
    always = {"no_learning", "reward_divergence", "entropy_collapse", "dead_gradients", "stale_data", "clip_saturation"}
    mine = {"kl_runaway", "useless_critic"} if "ppo" in name else {"reference_runaway", "degenerate_groups"}
    assert {v.rule for v in diagnosis.passed} >= always | mine


@pytest.mark.parametrize(
    ("name", "rule", "severity", "since", "flag"),
    [
        ("huge_lr", "kl_runaway", "problem", (1, 2), "--lr 0.03"),
        ("huge_lr", "entropy_collapse", None, (1, 12), "--regularisers.entropy.weight 0.01"),
        ("entropy_malus", "entropy_collapse", None, (2, 12), "--regularisers.entropy.weight 0.01"),
        ("tiny_lr", "no_learning", "problem", (1, 1), "--lr 0.001"),
        ("wrong_critic", "useless_critic", "problem", (1, 4), "--regularisers.value-loss.weight 0.5"),
        ("narrow_clip", "clip_saturation", "problem", (1, 1), "--objective clipped_weight"),
        ("outliers", "gradient_spikes", "warning", (15, 15), f"--reward {PARTS}:Outliers,scaled_by_return"),
        ("nothing_to_learn", "solved_before", "warning", (0, 0), None),
        ("impossible", "degenerate_groups", "problem", (1, 1), "--task.level 1"),
        ("impossible", "dead_gradients", "problem", (1, 1), "--task.level 1"),
        ("impossible", "no_learning", "problem", (1, 1), "--task.level 1"),
        ("burnt", "reference_runaway", "problem", (2, 4), "--regularisers.kl.weight 0.12"),
        ("late", "stale_data", "problem", (2, 3), "--rollout sample"),
        ("nucleus", "stale_data", None, (1, 6), "--rollout.top-p 1"),
        ("fooled", "reward_divergence", "problem", (0, 0), "--reward outcome"),
        ("fooled", "length_explosion", "problem", (3, 14), f"--reward {PARTS}:PaysForLength,soft_overlong"),
    ],
)  # fmt: skip
def test_an_ill_run_is_told(name, rule, severity, since, flag, doctor):
    finding = found(doctor(name), rule)
    assert finding is not None
    assert since[0] <= finding.since_step <= since[1]
    assert severity is None or finding.severity == severity
    assert flag is None or flag in [f for f, _ in finding.remedies]
    assert any(c.isdigit() for c in finding.evidence)


def test_every_flag_proposed_is_one_that_train_takes(doctor):
    tried = set()
    for name in MADE:
        config = str(doctor.root / name / "config.json")
        for flag in {flag for finding in doctor(name).findings for flag, _ in finding.remedies} - tried:
            before = parse(["--config", config])[0]
            assert parse(["--config", config, *flag.split()])[0] != before, flag
            tried.add(flag)
    assert len(tried) > 20


def test_what_is_not_ill_is_not_found(doctor):
    """Each illness by its own rule: those that do not follow from it stay silent."""
    assert {f.rule for f in doctor("outliers").findings} == {"gradient_spikes"}
    assert {f.rule for f in doctor("nothing_to_learn").findings} == {"solved_before"}
    critic = {f.rule for f in doctor("tiny_lr").findings} - {"no_learning"}
    assert critic <= {"useless_critic"}  # an untrained critic explains nothing, to either side of it
    assert {f.rule for f in doctor("impossible").findings} == {"no_learning", "degenerate_groups", "dead_gradients"}
    assert found(doctor("fooled"), "stale_data") is None and found(doctor("late"), "kl_runaway") is None


def test_the_metrics_that_rules_read(doctor):
    """Fresh data start at KL zero though the policy moves; groups and a reward of one's own are logged, others not."""
    doctor("healthy_ppo"), doctor("impossible"), doctor("fooled")
    ppo, hard, long = (
        read_rows(doctor.root / n / "metrics.jsonl") for n in ("healthy_ppo", "impossible", "fooled")
    )  # fmt: skip
    assert all(abs(row["start_kl"]) < 1e-9 < row["kl"] for row in ppo)
    assert all("degenerate" not in row and "reward" not in row for row in ppo)
    assert all(row["degenerate"] == 1.0 and "reward" not in row for row in hard)
    assert all(abs(row["reward"] - row["length"] / 8) < 1e-5 for row in long)
