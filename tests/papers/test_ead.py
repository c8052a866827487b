import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import agrees, learnt, policy, roll, task

from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.reasoning.ead import AnnealedDecoding
from partita.parts.focus import AllSteps, TruncatedImportance
from partita.parts.rollout import Sample
from partita.tasks.language.probes import ProbeBandit, ProbeCredit, ProbeDelayedVerifier

FLAT = AnnealedDecoding(high=1.0, low=1.0)


def test_the_temperatures_by_hand():
    tau = AnnealedDecoding(high=1.2, low=0.1, decay=2.0, growth=3.0, warmup=1)
    assert tau.temperatures(4).tolist() == pytest.approx([1.0, 2.2 - math.exp(0.5), 0.1, 0.1])  # 2.2 - e < 0
    assert tau.temperatures(4, step=1).tolist()[1:] == pytest.approx([2.2 - math.exp(t / 5) for t in (1, 2, 3)])
    assert tau.but(most=4.0).temperatures(3, step=9).tolist()[2] == pytest.approx(2.2 - math.exp(0.5))
    assert tau.but(warmup=0).temperatures(1).tolist() == pytest.approx([1.2])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(0.5, 2.0), st.floats(0.05, 0.5), st.floats(1, 100), st.integers(0, 200))
def test_it_calms_along_the_response_and_later_in_training(high, low, decay, step):
    rollout = AnnealedDecoding(high=high, low=low, decay=decay, warmup=0)
    tau = rollout.temperatures(50, step)
    assert (tau.diff() <= 0).all() and tau[0] == pytest.approx(high) and (tau >= low).all()
    assert (rollout.temperatures(50, step + 1) >= tau).all()


def test_logp_is_the_policys_own_and_sampler_logp_what_was_drawn_from():
    rollout = AnnealedDecoding(high=1.5, low=0.3, decay=6.0, growth=0.0, warmup=2)
    batch = roll(rollout)
    agrees(batch)  # at inputs["temperature"], all ones
    assert (batch.inputs["temperature"] == 1).all()
    tau = rollout.temperatures(batch.mask.shape[1]).float().expand(batch.mask.shape)
    tempered = batch.but(inputs={**batch.inputs, "temperature": tau})
    with torch.no_grad():
        drawn = policy().evaluate(tempered).logp
    torch.testing.assert_close(drawn, batch.sampler_logp, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch.logp[:, :2], batch.sampler_logp[:, :2], rtol=1e-4, atol=1e-4)  # the warm-up
    assert (batch.logp - batch.sampler_logp)[:, 3:].abs().max() > 0.1


def test_a_temperature_of_one_is_plain_sampling():
    plain, annealed = roll(Sample()), roll(FLAT)
    assert torch.equal(plain.inputs["tokens"], annealed.inputs["tokens"])
    torch.testing.assert_close(plain.logp, annealed.logp, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(annealed.sampler_logp, annealed.logp, rtol=1e-4, atol=1e-4)
    assert AnnealedDecoding(warmup=100).temperatures(60).tolist() == [1.0] * 60


def test_the_step_of_training_slows_it():
    rollout = AnnealedDecoding(high=1.5, low=0.1, decay=1.0, growth=1000.0, warmup=0)
    cold = roll(rollout)
    rollout.begin(5)
    hot = roll(rollout)
    assert hot.entropy[hot.mask].mean() > cold.entropy[cold.mask].mean()  # at temperature 1 both: other prefixes
    assert not torch.equal(hot.inputs["tokens"], cold.inputs["tokens"])
    assert rollout.fresh()._live == {}


def test_with_temperature_one_training_is_that_of_grpo():
    runs = []
    for recipe in (recipe_of("grpo"), recipe_of("ead").but(rollout=FLAT)):
        run, by = Run(0), policy(scale=0.0, context=32, layers=1)
        train(recipe.but(steps=3, batch_size=4, group_size=4, lr=1e-2), by, ProbeCredit(), run)
        runs.append(torch.cat([p.detach().flatten() for p in by.module.parameters()]))
    torch.testing.assert_close(*runs, rtol=1e-3, atol=1e-4)


def test_recipes():
    for name, base in (("ead", "grpo"), ("ead_dapo", "dapo"), ("ead_short", "grpo")):
        ours, theirs = recipe_of(name), recipe_of(base)
        assert ours.but(rollout=theirs.rollout, focus=AllSteps()) == theirs
        assert ours.focus == TruncatedImportance(cap=2.0)
    assert recipe_of("ead").rollout == AnnealedDecoding(1.2, 0.1, 25.0, 5.0, 40000.0, 10)


@pytest.mark.parametrize(("probe", "steps"), [(ProbeBandit(), 16), (ProbeDelayedVerifier(), 30)])
def test_it_learns(probe, steps):
    assert learnt("ead_short", probe, steps) > 0.9


def test_a_greedy_baseline_and_costs():
    batch = roll(AnnealedDecoding(), group=2, needs=frozenset({"greedy"}))
    assert batch.baseline.shape == (6,)
    seen = AnnealedDecoding().metrics(batch)
    assert seen["tokens_decoded"] == float(batch.mask.sum()) and 0 < seen["own_ratio"] < 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"high": 0.0}, "rollout.high: expected a number above 0"),
        ({"low": 1.3}, "rollout.low: expected at most high"),
        ({"decay": math.inf}, "rollout.decay"),
        ({"warmup": -1}, "rollout.warmup: expected 0 or more"),
        ({"growth": -1.0}, "rollout.growth"),
        ({"max_tokens": 0}, "rollout.max_tokens"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(UserError, match=message):
        AnnealedDecoding(**settings)


def test_worlds_are_refused():
    with pytest.raises(UserError, match="takes turns; use --rollout sample"):
        recipe_of("ead").check(task("keydoor"), policy())
