"""Hybrid post-training: the four parts of one gradient, and the gate between demonstrations and rollouts."""

import pytest
import torch

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.registry import part_class
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.hybrid import hpt
from partita.papers.hybrid.hpt import HPT, RECIPES, SETTINGS, Gated, Hybrid, Unified, largest_difference
from partita.parts.credit import GroupRelative
from partita.parts.rollout import Sample
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.language.probes import ProbeBandit, ProbeCredit

f64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def coefficient(part, logp, behaviour, advantage, source=None):
    """What multiplies grad log pi at one step."""
    batch = Batch(
        mask=torch.ones(1, 1, dtype=torch.bool), logp=torch.tensor([[behaviour]], dtype=f64),
        advantage=torch.tensor([[advantage]], dtype=f64),
        source=None if source is None else torch.tensor([source]),
    )  # fmt: skip
    leaf = torch.tensor([[logp]], dtype=f64, requires_grad=True)
    part(Outputs(leaf), batch).sum().backward()
    return -float(leaf.grad)


@pytest.mark.parametrize(
    ("name", "positive", "negative"),
    [  # pi = 0.3, mu = 0.2: w = 1.5; A = 0.6 has r = 0.4, A = -0.4 too
        ("current", 0.6 * 1.0, -0.4 * 1.0),
        ("old", 0.6 * 1.5, -0.4 * 1.5),
        ("larger", 0.6 * 1.0, -0.4 * 1.0),
        ("one", 0.6 * 0.3, -0.4 * 0.3),
        ("shaped", 0.6 * 0.1 * 0.3 / 0.4**2, -0.4 * 0.1 * 0.3 / 0.4**2),
    ],
)
def test_each_denominator_by_hand(name, positive, negative):
    part = Unified(positive=name, negative=name)
    pi, mu = torch.tensor([0.3, 0.2], dtype=f64).log().tolist()
    assert coefficient(part, pi, mu, 0.6) == pytest.approx(positive)
    assert coefficient(part, pi, mu, -0.4) == pytest.approx(negative)


def test_a_ratio_below_one_counts_where_the_denominator_is_the_larger():
    pi, mu = torch.tensor([0.1, 0.4], dtype=f64).log().tolist()
    assert coefficient(Unified(negative="larger"), pi, mu, -1.0) == pytest.approx(-0.25)


def test_the_implicit_negative_policy_by_hand():
    # mu = 0.2 = r pi + (1 - r) pi-, r = 0.4, pi = 0.3: pi- = (0.2 - 0.12) / 0.6 = 2 / 15, pi / pi- = 2.25
    pi, mu = torch.tensor([0.3, 0.2], dtype=f64).log().tolist()
    assert coefficient(Unified(negative="implicit_negative"), pi, mu, -0.4) == pytest.approx(-0.4 * 2.25)


@pytest.mark.parametrize(("advantage", "logp", "kept"), [(1, 0.5, 0), (-1, 0.5, 1), (1, -0.5, 1), (-1, -0.5, 0)])
def test_the_mask_stops_what_has_left_the_clip_in_the_direction_of_its_advantage(advantage, logp, kept):
    assert (coefficient(Unified(clip=0.2), logp, 0.0, advantage) != 0) == bool(kept)


def test_demonstrations_have_a_denominator_of_their_own():
    pi, mu = torch.tensor([0.3, 0.2], dtype=f64).log().tolist()
    part = Unified(positive="old", demonstration="current")
    assert coefficient(part, pi, mu, 1.0, source=1) == pytest.approx(1.0)
    assert coefficient(part, pi, mu, 1.0, source=0) == pytest.approx(1.5)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_method_is_a_setting_of_the_four_parts(name, monkeypatch):
    unified, objective, settings = SETTINGS[name]
    monkeypatch.setattr(hpt, "SETTINGS", {name: (unified, objective, settings)})
    assert max(largest_difference(seed) for seed in range(3)) < 1e-12


@pytest.mark.parametrize("wrong", [Unified("old", "current"), Unified("current", "old"), Unified("old", "old")])
def test_another_setting_is_another_gradient(wrong, monkeypatch):
    monkeypatch.setattr(hpt, "SETTINGS", {"x": (wrong, "reinforce", {})})
    assert largest_difference(0) > 1e-2


def test_a_sequence_takes_the_ratio_of_the_whole_trajectory_and_padding_changes_nothing():
    logp = torch.tensor([[-1.0, -2.0, 0.0]], dtype=f64)
    batch = Batch(
        mask=torch.tensor([[True, True, False]]), logp=torch.tensor([[-0.9, -1.8, 5.0]], dtype=f64),
        advantage=torch.tensor([[-1.0, -1.0, 0.0]], dtype=f64),
    )  # fmt: skip
    found = Unified(negative="larger", sequence=True).coefficient(logp, batch)
    expected = -torch.tensor(-0.3, dtype=f64).exp()
    torch.testing.assert_close(found[0, :2], expected.expand(2))
    assert Unified(sequence=True).unit == "trajectory" and Unified().unit == "step"


def graded(rewards, source):
    """A batch of one step a trajectory, all of one group."""
    n = len(rewards)
    return Batch(
        mask=torch.ones(n, 1, dtype=torch.bool), reward=torch.tensor(rewards, dtype=f64)[:, None],
        group=torch.zeros(n, dtype=torch.int64), source=torch.tensor(source),
    )  # fmt: skip


def test_credit_of_a_mixed_group_by_hand():
    batch = graded([1.0, 0.0, 0.0, 0.0, 1.0], [0, 0, 0, 0, 1])
    assert Hybrid(weight=2.0)(batch)[:, 0].tolist() == [0.75, -0.25, -0.25, -0.25, 2.0]
    assert Hybrid(weight=None)(batch)[:, 0].tolist() == pytest.approx([0.6, -0.4, -0.4, -0.4, 0.6])


def test_without_demonstrations_credit_is_group_relative():
    batch = graded([1.0, 0.0, 0.5], [0, 0, 0])
    for std in (False, True):
        expected = GroupRelative(std=std)(batch)
        torch.testing.assert_close(Hybrid(std=std)(batch), expected)
        torch.testing.assert_close(Hybrid(std=std)(batch.but(source=None)), expected)


@pytest.fixture(scope="module")
def policy():
    return Language().build(None, False, seeded())


@pytest.fixture(scope="module")
def task():
    return part_class("task", "arithmetic")(level=2)


def test_the_gate_replaces_the_groups_that_fail_and_only_those(policy, task):
    problems = task.problems(12, seeded(1))
    own = Sample()(policy, task, problems, 4, seeded(2), frozenset())
    rate = (own.outcome >= 1).view(12, 4).float().mean(1)
    assert 0 < int((rate <= 0.25).sum()) < 12
    batch = Gated(gate=0.25)(policy, task, problems, 4, seeded(2), frozenset())
    for i in range(12):
        rows = batch[batch.group == i]
        if rate[i] <= 0.25:
            assert rows.source.tolist() == [1] and rows.outcome.tolist() == [1.0]
        else:
            assert rows.source.tolist() == [0] * 4
            width = min(rows.logp.shape[1], own.logp.shape[1])
            assert torch.equal(rows.logp[:, :width], own[own.group == i].logp[:, :width])
        assert {r["prompt"] for r in rows.records} == {problems[i].prompt}


def test_keeping_the_groups_beside_their_demonstrations(policy, task):
    problems = task.problems(5, seeded(1))
    batch = Gated(gate=1.0, keep=True, demonstrations=2)(policy, task, problems, 3, seeded(2), frozenset())
    assert batch.source.bincount().tolist() == [15, 10] and batch.group.bincount().tolist() == [5] * 5
    assert set(Gated().metrics(batch)) >= {"success", "demonstrations"}
    assert Gated().metrics(batch)["demonstrations"] == 10
    own = batch[batch.source == 0]
    assert Gated().metrics(batch)["success"] == pytest.approx(float((own.outcome >= 1).float().mean()))


def test_supervised_first_then_reinforcement_and_the_count_survives_a_checkpoint(policy, task):
    part, problems = Gated(until=2).fresh(), task.problems(3, seeded(1))
    sources = []
    for _ in range(2):
        sources.append(part(policy, task, problems, 2, seeded(2), frozenset()).source.unique().tolist())
    again = Gated(until=2).fresh()
    again.load_state_dict(part.state_dict())
    sources.append(again(policy, task, problems, 2, seeded(2), frozenset()).source.unique().tolist())
    assert sources == [[1], [1], [0]]
    assert Gated(until=2).fresh().state_dict() == {} and part.fresh().state_dict() == {}


@pytest.mark.parametrize("probe", [ProbeBandit(), ProbeCredit()])
def test_it_learns_from_both_what_it_can_and_what_it_cannot_reach(probe):
    recipe = HPT.but(batch_size=12, lr=1e-2, steps=20)
    model = tiny_model(tiny_config("qwen2", hidden=32, layers=1, heads=2, context=32))
    policy, run = LanguagePolicy(model, character_tokenizer(context=32), Language(), False), Run(0)
    train(recipe, policy, probe, run)
    found = Sample().sample(policy, probe, probe.problems(16, seeded()), 1, seeded(), greedy=True)
    assert float(found.outcome.mean()) == probe.optimal_value
    assert any("demonstrations" in m for m in run.metrics)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name, policy, task):
    model = tiny_model(tiny_config("qwen2", hidden=16, layers=1, heads=2, context=96))
    fresh, run = LanguagePolicy(model, character_tokenizer(context=96), Language(), False), Run(0)
    train(RECIPES[name].but(steps=2, batch_size=2, group_size=2, lr=1e-3, minibatches=2), fresh, task, run)
    assert len(run.metrics) == 2 and all(m["loss"] == m["loss"] for m in run.metrics)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Unified(positive="older"), "objective.positive"),
        (lambda: Unified(clip=0.0), "objective.clip"),
        (lambda: Unified(shape=-1.0), "objective.shape"),
        (lambda: Gated(gate=1.5), "rollout.gate"),
        (lambda: Gated(demonstrations=0), "rollout.demonstrations"),
        (lambda: Gated(until=0), "rollout.until"),
        (lambda: Gated(temperature=0.0), "rollout.temperature"),
        (lambda: Hybrid(weight=0.0), "credit.weight"),
    ],
)
def test_settings_out_of_range_are_refused(make, field):
    with pytest.raises(UserError, match=field):
        make()


def test_a_task_without_worked_answers_is_refused(policy):
    world = part_class("task", "keydoor")()
    with pytest.raises(UserError, match="rollout gated needs worked answers, and task keydoor gives none"):
        HPT.settle(world, policy).check(world, policy)
