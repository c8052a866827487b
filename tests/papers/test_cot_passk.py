"""CoT-Pass@K of a policy: what is counted, on the same problems for both arms, and what training does to it."""

from pathlib import Path

import pytest
import torch

from partita.core.errors import UserError
from partita.core.registry import part_class
from partita.core.task import Outcome
from partita.lab.claims import Trial
from partita.papers.diagnosis import cot_passk
from partita.papers.diagnosis.cot_passk import CLAIMS, Judged, judge, measure
from partita.parts.rollout import taught
from partita.policies.language import Language
from partita.tasks.language.probes import ProbeBandit


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def policy():
    return Language().build(None, False, seeded())


RIGHT = torch.tensor([[True, True, False, False], [True, False, False, False], [False] * 4])
CHAIN = torch.tensor([[True, False, True, False], [False, True, True, True], [True] * 4])


def test_both_metrics_by_hand():
    found = Judged(RIGHT, CHAIN)
    assert found.pass_at(1).tolist() == pytest.approx([0.5, 0.25, 0.0])
    assert found.cot_pass_at(1).tolist() == pytest.approx([0.25, 0.0, 0.0])
    assert found.pass_at(2).tolist() == pytest.approx([5 / 6, 0.5, 0.0])
    assert found.cot_pass_at(4).tolist() == [1.0, 0.0, 0.0]
    assert found.faithful() == pytest.approx(1 / 3)


def test_no_right_answer_has_no_faithful_share_and_no_chains_no_cot():
    assert Judged(torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)).faithful() == 0
    with pytest.raises(UserError, match="cot_pass@k: the task checks no chains"):
        Judged(RIGHT, None).cot_pass_at(1)


def test_where_every_chain_is_right_it_is_pass_at_k_and_where_none_is_it_is_zero():
    assert torch.equal(Judged(RIGHT, torch.ones_like(CHAIN)).cot_pass_at(2), Judged(RIGHT, CHAIN).pass_at(2))
    assert not bool(Judged(RIGHT, ~RIGHT).cot_pass_at(4).any())


def test_judging_agrees_with_the_task_and_is_the_same_in_pieces(policy, monkeypatch):
    task = part_class("task", "strings")(level=4)
    problems = task.problems(6, seeded(1))
    whole = judge(policy, task, problems, 16, seeded(2))
    assert whole.right.shape == whole.chain.shape == (6, 16)
    assert bool((whole.right & ~whole.chain).any()) and bool((whole.right & whole.chain).any())
    monkeypatch.setattr(cot_passk, "RESPONSES", 32)
    pieces = judge(policy, task, problems, 16, seeded(2))
    assert torch.equal(pieces.right[:2], judge(policy, task, problems[:2], 16, seeded(2)).right)
    assert pieces.right.shape == whole.right.shape


def test_samples_of_a_problem_stand_in_its_row(policy, monkeypatch):
    """Worked answers in place of samples: right for every second problem only."""
    task = part_class("task", "arithmetic")(level=2)
    problems = task.problems(4, seeded(3))

    def give(self, policy, task, problems, group_size, generator):
        batch = taught(policy, task, problems, group_size, generator)
        even = (torch.arange(len(problems)) % 2 == 0).repeat_interleave(group_size)
        return batch.but(outcome=batch.outcome * even)

    monkeypatch.setattr(cot_passk.Sample, "sample", give)
    found = judge(policy, task, problems, 3, seeded(4))
    assert found.right.tolist() == [[True] * 3, [False] * 3] * 2 and bool(found.chain.all())
    assert found.faithful() == 1


def test_a_task_without_chains_has_answers_only(policy):
    found = judge(policy, ProbeBandit(), ProbeBandit().problems(3, seeded()), 4, seeded())
    assert found.chain is None and found.right.shape == (3, 4)
    assert bool((found.pass_at(4) >= found.pass_at(1)).all())


def test_part_of_a_point_is_not_right(policy, monkeypatch):
    task = part_class("task", "arithmetic")(level=1)
    monkeypatch.setattr(type(task), "verify", lambda self, problem, response: Outcome(0.5))
    assert not bool(judge(policy, task, task.problems(2, seeded()), 3, seeded()).right.any())


SMALL = dict(steps=2, batch_size=6, problems=12, samples=16, k=4)


def test_the_arms_differ_by_training_and_a_seed_gives_the_same_numbers_again():
    control, again = (measure("control", 2000, **SMALL) for _ in range(2))
    treatment = measure("treatment", 2000, lr=3e-3, **SMALL)
    assert control == again and treatment != control
    assert control["hidden"] == pytest.approx(control["pass@k"] - control["cot_pass@k"])
    assert control["value"] == control["cot_pass@k"]
    assert control["pass@k"] > control["cot_pass@k"]
    assert measure("control", 2000, metric="pass@k", **SMALL)["value"] == control["pass@k"]
    assert measure("control", 2001, **SMALL) != control


def test_training_teaches_right_chains():
    """The library's own run of the experiment in small: Pass@1 with chains rises within a few steps."""
    small = dict(level=3, problems=40, samples=8, k=1)
    before = measure("control", 2000, **small)
    after = measure("treatment", 2000, steps=14, batch_size=12, lr=5e-4, **small)
    assert after["value"] > before["value"] + 0.04


def test_the_claims_can_be_carried_out():
    for claim in CLAIMS:
        trial = Trial(claim, Path("x"), (0,))
        for place in range(len(trial.settings)):
            job = trial.job("control", place, 0)
            assert job.call == "partita.papers.diagnosis.cot_passk:measure" and job.arguments["arm"] == "control"
    assert [s["k"] for _, s in CLAIMS[0].dial[1]] == [1, 8, 32]
