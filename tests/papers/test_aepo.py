"""AEPO: the temperature rule and the credit by hand, what the rollout leaves behind, and entropy that follows it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import agrees, roll, task
from surrogates import late, learn

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.baselines.grpo import GRPO
from partita.papers.reasoning.aepo import AEPO, RECIPES, REGULATED, OneSided, Regulated
from partita.parts.credit import GroupRelative
from partita.parts.rollout import Sample
from partita.policies.language import Language
from partita.tasks.language.arithmetic import Arithmetic
from partita.tasks.language.probes import ProbeBandit, ProbeCredit

f64 = torch.float64


@pytest.mark.parametrize(
    ("entropy", "switch", "linear"),
    [(0.1, 1.2, 1.2), (0.4, 1.2, 1.1), (0.5, 0.8, 1.0), (0.6, 0.8, 0.9), (0.9, 0.8, 0.8)],
)
def test_the_temperature_by_hand(entropy, switch, linear):
    assert Regulated(target=0.5).regulated(entropy) == switch
    assert Regulated(target=0.5, rule="linear").regulated(entropy) == pytest.approx(linear)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    entropy=st.floats(0, 5), more=st.floats(0, 5), target=st.floats(0, 3), rule=st.sampled_from(["switch", "linear"])
)
def test_the_more_uncertain_the_cooler_and_never_out_of_bounds(entropy, more, target, rule):
    part = Regulated(target=target, rule=rule, low=0.7, high=1.6)
    cooler, warmer = part.regulated(entropy + more), part.regulated(entropy)
    assert 0.7 <= cooler <= warmer <= 1.6


def graded(rewards, source, group=None):
    n = len(rewards)
    return Batch(
        mask=torch.tensor([[True, True]] * n), reward=torch.tensor([[0.0, r] for r in rewards], dtype=f64),
        group=torch.zeros(n, dtype=torch.int64) if group is None else torch.tensor(group),
        source=None if source is None else torch.tensor(source),
    )  # fmt: skip


def test_credit_by_hand():
    batch = graded([1.0, 0.0, 0.0, 0.0, 1.0, 0.5], [0, 0, 0, 0, 2, 2])
    found = OneSided(std=False, weight=2.0)(batch)
    assert found[:, 0].tolist() == [0.75, -0.25, -0.25, -0.25, 2.0, 1.0] and torch.equal(found[:, 0], found[:, 1])
    std = math.sqrt(3 * 0.25**2 + 0.75**2) / math.sqrt(3)
    assert OneSided(eps=0.0)(batch)[0, 0].item() == pytest.approx(0.75 / std)


def test_without_regulated_trajectories_credit_is_that_of_the_group():
    batch = graded([1.0, 0.0, 0.5, 0.0], [0, 0, 0, 0], [0, 0, 1, 1])
    for std in (False, True):
        expected = GroupRelative(std=std)(batch)
        assert torch.equal(OneSided(std=std)(batch), expected)
        assert torch.equal(OneSided(std=std)(batch.but(source=None)), expected)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 99), shift=st.floats(-2, 2))
def test_own_advantages_know_nothing_of_regulated_ones_and_follow_a_permutation(seed, shift):
    g = torch.Generator().manual_seed(seed)
    rewards = torch.rand(8, generator=g, dtype=f64)
    source, group = [0, 0, 0, 2, 0, 0, 0, 2], [0, 0, 0, 0, 1, 1, 1, 1]
    part, own = OneSided(), torch.tensor(source) == 0
    found = part(graded(rewards.tolist(), source, group))
    other = torch.where(own, rewards, rewards + shift)
    torch.testing.assert_close(part(graded(other.tolist(), source, group))[own], found[own])
    order = torch.randperm(8, generator=g)
    torch.testing.assert_close(part(graded(rewards.tolist(), source, group)[order]), found[order])


@pytest.fixture(scope="module")
def skilled():
    return Language().build(None, False, torch.Generator().manual_seed(0))


def test_further_rows_are_right_answers_at_the_regulated_temperature(skilled):
    on = task("countdown", level=1)
    own = roll(Sample(), group=4, count=8, on=on, by=skilled)
    part = Regulated(target=9.0, high=1.5, share=0.5)
    batch = roll(part, group=4, count=8, on=on, by=skilled)
    mine, further = batch[batch.source == 0], batch[batch.source == REGULATED]
    assert len(mine) == 32 and 0 < len(further) < 16 and bool((further.outcome > 0).all())
    width = own.logp.shape[1]
    assert torch.equal(mine.logp[:, :width], own.logp) and torch.equal(mine.sampler_logp, mine.logp)
    assert set(further.group.tolist()) <= {0, 1, 2, 3}
    prompts = [r["prompt"] for r in own.records[::4]]
    assert all(r["prompt"] == prompts[g] for r, g in zip(further.records, further.group.tolist(), strict=True))
    agrees(batch, skilled)
    hotter = further.but(inputs={**further.inputs, "temperature": further.inputs["temperature"] * 1.5})
    with torch.no_grad():
        torch.testing.assert_close(skilled.evaluate(hotter).logp, further.sampler_logp, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(further.sampler_logp, further.logp)


def test_what_is_watched_is_the_policys_own(skilled):
    on = task("countdown", level=1)
    own = roll(Sample(), group=4, count=8, on=on, by=skilled)
    part = Regulated(target=0.0, low=0.5, share=1.0)
    found, plain = part.metrics(roll(part, group=4, count=8, on=on, by=skilled)), Sample().metrics(own)
    assert found["success"] == plain["success"] and found["length"] == plain["length"]
    assert found["samples"] == 2 * plain["samples"] and found["tokens"] > plain["tokens"]
    assert found["temperature"] == 0.5 and 0 < found["regulated"] < 32
    assert found["policy_entropy"] == pytest.approx(float((own.entropy * own.mask).sum() / own.mask.sum()))


def test_the_temperature_multiplies_that_of_the_sampler(skilled):
    on = task("countdown", level=1)
    batch = roll(Regulated(temperature=0.7, target=9.0, high=1.5, share=1.0), group=4, count=8, on=on, by=skilled)
    further = batch[batch.source == REGULATED]
    assert bool((further.inputs["temperature"] == 0.7).all()) and len(further)
    hotter = further.but(inputs={**further.inputs, "temperature": torch.full_like(further.logp, 0.7 * 1.5)})
    with torch.no_grad():
        torch.testing.assert_close(skilled.evaluate(hotter).logp, further.sampler_logp, rtol=1e-4, atol=1e-4)


def test_without_a_share_training_is_grpo():
    runs = [
        learn(recipe, ProbeCredit(), steps=3).metrics
        for recipe in (AEPO.but(rollout=Regulated(share=0.0)), AEPO.but(rollout=Sample()), GRPO)
    ]
    assert [[m["loss"] for m in run] for run in runs].count([m["loss"] for m in runs[2]]) == 3


def test_further_rows_reach_the_update():
    """A group of two gives a batch of 2 n trajectories and as many again: none may be cut off."""
    run = learn(AEPO.but(rollout=Regulated(share=1.0, target=9.0), group_size=2), ProbeBandit(), steps=2)
    plain = learn(GRPO.but(group_size=2), ProbeBandit(), steps=2)
    assert run.metrics[0]["regulated"] > 0 and run.metrics[0]["loss"] != plain.metrics[0]["loss"]


def test_entropy_falls_faster_the_cooler_the_answers(skilled):
    """All answers to strings are right here, so that the two temperatures alone decide where entropy goes."""
    found = {}
    for name, target in (("hot", 9.0), ("cold", 0.0)):
        by, run = Language().build(None, False, torch.Generator().manual_seed(0)), Run(0)
        part = Regulated(target=target, high=1.6, low=0.4, share=1.0)
        train(AEPO.but(rollout=part, steps=6, batch_size=4, lr=1e-3), by, AnyAnswer(), run)
        found[name] = run.metrics[-1]["policy_entropy"]
        assert run.metrics[0]["temperature"] == (1.6 if name == "hot" else 0.4)
    assert found["hot"] > run.metrics[0]["policy_entropy"] > found["cold"]


class AnyAnswer(Arithmetic):
    """Arithmetic whose every answer is right."""

    def verify(self, problem, response):
        from dataclasses import replace

        return replace(super().verify(problem, response), score=1.0)


@pytest.mark.parametrize(("probe", "steps"), [(ProbeBandit(), 20), (ProbeCredit(), 45)])
def test_it_learns_the_probes(probe, steps):
    run = learn("aepo", probe, steps=steps, rollout=Regulated(target=0.1, share=0.25))
    assert run.metrics[0]["return"] < 0.45 and late(run) > 0.9


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name):
    run = learn(name, Arithmetic(level=1), steps=2, batch_size=2, group_size=2)
    assert all(math.isfinite(m["loss"]) for m in run.metrics)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Regulated(target=-0.1), "rollout.target"), (lambda: Regulated(high=0.9), "rollout.high"),
        (lambda: Regulated(low=1.1), "rollout.high"), (lambda: Regulated(low=0.0), "rollout.high"),
        (lambda: Regulated(share=1.5), "rollout.share"), (lambda: Regulated(rule="pid"), "rollout.rule"),
        (lambda: Regulated(temperature=0.0), "rollout.temperature"), (lambda: OneSided(weight=-1.0), "credit.weight"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(make, field):
    with pytest.raises(UserError, match=field):
        make()
