import math

import pytest
import torch
from batches import make, padded
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.parts.focus import AllSteps, TruncatedImportance


def _batch(logp, sampler, mask=None):
    logp, sampler = torch.tensor(logp, dtype=torch.float64), torch.tensor(sampler, dtype=torch.float64)
    acted = torch.ones_like(logp).bool() if mask is None else torch.tensor(mask).bool()
    return Batch(mask=acted, logp=logp, sampler_logp=sampler, advantage=torch.zeros_like(logp))


def test_truncated_importance_by_hand():
    batch = _batch([[math.log(0.5), math.log(0.2), math.log(0.9)]], [[math.log(0.25), math.log(0.4), math.log(0.1)]])
    assert TruncatedImportance(cap=5.0)(batch).tolist() == [pytest.approx([2.0, 0.5, 5.0])]
    assert TruncatedImportance()(batch).tolist() == [pytest.approx([2.0, 0.5, 2.0])]
    assert TruncatedImportance(cap=math.inf)(batch).tolist() == [pytest.approx([2.0, 0.5, 9.0])]


def test_without_another_sampler_all_steps_weigh_one():
    batch = make()
    same = batch.but(sampler_logp=None)
    assert torch.equal(TruncatedImportance()(same), AllSteps()(same))
    alike = batch.but(sampler_logp=batch.logp)
    assert torch.equal(TruncatedImportance(cap=1.0)(alike), AllSteps()(alike))


def test_steps_that_were_not_acted_weigh_nothing():
    batch = _batch([[-1.0, 0.0]], [[-2.0, -1000.0]], mask=[[1, 0]])
    assert TruncatedImportance(cap=math.inf)(batch).tolist() == [[pytest.approx(math.e), 0.0]]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.floats(0.2, 3.0))
def test_the_full_weight_moves_the_gradient_to_the_policy(seed, temperature):
    """E_q[w A grad log pi] = E_pi[A grad log pi], summed over all actions."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, generator=g, dtype=torch.float64, requires_grad=True)
    advantage = torch.randn(6, generator=g, dtype=torch.float64)
    policy = logits.log_softmax(0)
    sampler = (logits.detach() / temperature).log_softmax(0)
    weight = TruncatedImportance(cap=math.inf)(_batch([policy.tolist()], [sampler.tolist()]))[0]
    ours = torch.autograd.grad((sampler.exp() * weight * advantage * policy).sum(), logits)[0]
    want = torch.autograd.grad((logits.softmax(0) * advantage).sum(), logits)[0]
    torch.testing.assert_close(ours, want)


def test_padding_changes_nothing():
    batch = make()
    weight = TruncatedImportance()(padded(batch, 3))
    assert torch.equal(weight[:, :-3], TruncatedImportance()(batch)) and not weight[:, -3:].any()


@pytest.mark.parametrize("cap", [0.0, -1.0, math.nan])
def test_a_cap_must_be_positive(cap):
    with pytest.raises(UserError, match=r"focus\.cap: expected a number above 0"):
        TruncatedImportance(cap=cap)
