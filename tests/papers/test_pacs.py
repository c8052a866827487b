"""PACS: labels, scores against the group, and the gradient that couples actor and critic."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.papers.reasoning.pacs import PACS, LabelledScore, decomposition
from partita.parts.aggregate import SequenceMean
from partita.policies.language import Language, LanguagePolicy
from partita.policies.tiny import character_tokenizer, tiny_config, tiny_model
from partita.tasks.language.probes import ProbeBandit, ProbeCredit

f64 = torch.float64


def batch_of(ratios, outcomes, groups=1):
    """Trajectories of two steps whose log-ratios sum to `ratios`; the second step of the first is padding."""
    n = len(ratios)
    mask = torch.ones(n, 2, dtype=torch.bool)
    mask[0, 1] = False
    share = torch.tensor(ratios, dtype=f64)[:, None] / mask.sum(1, keepdim=True)
    old = torch.randn(n, 2, dtype=f64, generator=torch.Generator().manual_seed(0)) * mask
    batch = Batch(
        mask=mask, logp=old, outcome=torch.tensor(outcomes, dtype=f64), group=torch.arange(n) // (n // groups)
    )
    return Outputs((old + share) * mask), batch


def bce(psi, label):
    return -label * math.log(1 / (1 + math.exp(-psi))) - (1 - label) * math.log(1 - 1 / (1 + math.exp(-psi)))


def test_scores_and_loss_by_hand():
    out, batch = batch_of([0.3, -0.1, 0.4], [1.0, 0.0, 1.0])
    part = LabelledScore(beta=2.0, balance=False)
    psi = [2 * (0.3 - 0.15), 2 * (-0.1 - 0.35), 2 * (0.4 - 0.1)]
    torch.testing.assert_close(part.scores(out, batch), torch.tensor(psi, dtype=f64))
    expected = [bce(p, r) for p, r in zip(psi, [1, 0, 1], strict=True)]
    loss = part(out, batch)
    torch.testing.assert_close(loss[:, 0], torch.tensor(expected, dtype=f64))
    assert loss[0, 1] == 0 and torch.equal(loss[1:, 0], loss[1:, 1])
    assert float((loss * SequenceMean()(batch)).sum()) == pytest.approx(sum(expected) / 3)


def test_right_and_wrong_weigh_the_same_within_a_mixed_group():
    out, batch = batch_of([0.0] * 8, [1, 0, 0, 0, 1, 1, 1, 1], groups=2)
    _, weight = LabelledScore().labels(batch)
    # group one: one of four is right: 4 / (2 * 1), 4 / (2 * 3); group two: all right, so left as it is
    assert weight.tolist() == pytest.approx([2.0, 2 / 3, 2 / 3, 2 / 3, 1, 1, 1, 1])
    assert LabelledScore(balance=False).labels(batch)[1].tolist() == [1.0] * 8
    assert bool(LabelledScore()(out, batch).isfinite().all())


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_the_labels_error_times_a_baselined_score_function(seed):
    assert decomposition(seed) < 1e-12


def test_on_policy_it_is_reinforce_with_leave_one_out_credit_of_the_labels():
    """At w = 1 psi is 0: the gradient is beta / 2 of that of RLOO on rewards of +-1/2, that is (R - 1/2) centred."""
    out, batch = batch_of([0.0] * 4, [1.0, 0.0, 0.0, 1.0])
    leaf = out.logp.clone().requires_grad_()
    loss = LabelledScore(balance=False)(Outputs(leaf), batch)
    (loss * SequenceMean()(batch)).sum().backward()
    error = torch.tensor([0.5, -0.5, -0.5, 0.5], dtype=f64)
    others = (error.sum() - error) / 3  # what the other scores' baselines give back
    torch.testing.assert_close(leaf.grad, -((error - others) / 4)[:, None] * batch.mask)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(shift=st.floats(-3, 3), seed=st.integers(0, 99))
def test_a_shift_of_all_scores_of_a_group_and_the_order_within_it_change_nothing(shift, seed):
    g = torch.Generator().manual_seed(seed)
    ratios = torch.randn(6, generator=g, dtype=f64)
    outcomes = (torch.rand(6, generator=g) < 0.5).double()
    part = LabelledScore()
    out, batch = batch_of(ratios.tolist(), outcomes.tolist(), groups=2)
    moved, _ = batch_of((ratios + shift).tolist(), outcomes.tolist(), groups=2)
    torch.testing.assert_close(part.scores(out, batch), part.scores(moved, batch))
    order = torch.randperm(6, generator=g)
    torch.testing.assert_close(part(Outputs(out.logp[order]), batch[order]), part(out, batch)[order])


def test_a_step_downhill_raises_the_scores_of_the_right_ones():
    out, batch = batch_of([0.0] * 4, [1.0, 0.0, 0.0, 1.0])
    leaf = out.logp.clone().requires_grad_()
    (LabelledScore()(Outputs(leaf), batch) * SequenceMean()(batch)).sum().backward()
    after = LabelledScore().scores(Outputs(leaf.detach() - leaf.grad), batch)
    assert bool((after[batch.outcome == 1] > 0).all()) and bool((after[batch.outcome == 0] < 0).all())


@pytest.mark.parametrize(("probe", "steps"), [(ProbeBandit(), 20), (ProbeCredit(), 45)])
def test_it_learns_the_probes(probe, steps):
    recipe = PACS.but(batch_size=12, lr=1e-2, steps=steps)
    model = tiny_model(tiny_config("qwen2", hidden=32, layers=1, heads=2, context=32))
    policy, run = LanguagePolicy(model, character_tokenizer(context=32), Language(), False), Run(0)
    train(recipe, policy, probe, run)
    assert run.metrics[0]["return"] < 0.45
    assert sum(m["return"] for m in run.metrics[-3:]) / 3 > 0.9 * probe.optimal_value
    assert run.metrics[-1]["label_error"] == 0.5  # one update a batch: no score has moved yet


def test_minibatches_and_micro_batches_keep_groups_whole_and_add_up():
    whole = PACS.but(batch_size=6, group_size=4, lr=1e-3, steps=2)
    weights = []
    for recipe in (whole, whole.but(micro_batch=8)):
        model = tiny_model(tiny_config("qwen2", hidden=16, layers=1, heads=2, context=32))
        policy = LanguagePolicy(model, character_tokenizer(context=32), Language(), False)
        train(recipe, policy, ProbeCredit(), Run(0))
        weights.append(torch.cat([p.detach().flatten() for p in policy.trainable().values()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"objective\.beta"):
        LabelledScore(beta=0.0)
