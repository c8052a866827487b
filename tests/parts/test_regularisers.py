"""Regularisers: values by hand, and gradients against closed forms and finite differences."""

import math

import pytest
import torch
from batches import Table, make

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.parts.regularisers import KL, Entropy, ValueLoss


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def batch_of(**fields):
    return Batch(mask=torch.ones(1, 4, dtype=torch.bool), **fields)


@pytest.mark.parametrize(
    ("estimator", "value"),
    [("k1", math.log(2.5)), ("k2", math.log(0.4) ** 2 / 2), ("k3", 0.4 - 1 - math.log(0.4))],
)
def test_divergence_by_hand(estimator, value):
    batch = Batch(mask=torch.ones(1, 1, dtype=torch.bool), ref_logp=row(math.log(0.2)))
    loss = KL(weight=0.5, estimator=estimator)(Outputs(row(math.log(0.5))), batch)
    assert loss.item() == pytest.approx(0.5 * value)


def test_entropy_is_a_bonus():
    out = Outputs(row(0.0, 0.0, 0.0, 0.0), entropy=row(0.0, 0.5, 1.0, 2.0))
    assert Entropy(weight=0.1)(out, batch_of()).tolist()[0] == pytest.approx([0.0, -0.05, -0.1, -0.2])


def test_entropy_gradient_in_closed_form():
    policy, batch = Table(), make()
    loss = (Entropy(weight=1.0)(policy.evaluate(batch, entropy=True), batch)).sum()
    got = torch.autograd.grad(loss, policy.module.logits)[0]
    logits = policy.module.logits.detach()
    p, table = logits.softmax(-1), logits.log_softmax(-1)
    visits = torch.zeros(5, dtype=torch.float64)
    for b, t in batch.mask.nonzero().tolist():
        visits[batch.inputs["state"][b, t]] += 1
    entropy = -(p * table).sum(-1, keepdim=True)
    torch.testing.assert_close(got, visits[:, None] * p * (table + entropy))


def test_value_loss_without_and_with_clipping_by_hand():
    # V_old = 1 and G = 3 throughout; V moves inside the clip, up beyond it, far up beyond the target, and down.
    value = row(1.1, 2.0, 4.5, 0.0)
    batch = batch_of(value=row(1.0, 1.0, 1.0, 1.0), returns=row(3.0, 3.0, 3.0, 3.0))
    out = Outputs(torch.zeros_like(value), value=value.requires_grad_())
    plain = ValueLoss(weight=0.5)(out, batch)
    assert plain.tolist()[0] == pytest.approx([0.25 * 1.9**2, 0.25 * 1.0, 0.25 * 1.5**2, 0.25 * 9.0])
    torch.testing.assert_close(torch.autograd.grad(plain.sum(), value)[0], 0.5 * (value - 3).detach())
    clipped = ValueLoss(weight=0.5, clip=0.2)(out, batch)
    assert clipped.tolist()[0] == pytest.approx([0.25 * 1.9**2, 0.25 * 1.8**2, 0.25 * 1.8**2, 0.25 * 9.0])
    assert torch.autograd.grad(clipped.sum(), value)[0].tolist()[0] == pytest.approx([-0.95, 0.0, 0.0, -1.5])


@pytest.mark.parametrize("part", [KL(1.0, "k1"), KL(1.0, "k2"), KL(1.0, "k3"), ValueLoss(), ValueLoss(clip=0.1)])
def test_gradients_against_finite_differences(part):
    batch = make(b=4, t=3, groups=2, seed=1)
    out = Table(seed=1).evaluate(batch)
    logp, value = out.logp.detach().requires_grad_(), out.value.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, v: part(Outputs(a, value=v), batch) + 0 * (a + v), (logp, value))


def test_descent_pulls_towards_the_reference_and_the_return():
    logp = row(-1.0, -1.0).requires_grad_()
    batch = Batch(mask=torch.ones(1, 2, dtype=torch.bool), ref_logp=row(-0.5, -2.0))
    for estimator in ("k2", "k3"):
        gradient = torch.autograd.grad(KL(1.0, estimator)(Outputs(logp), batch).sum(), logp)[0]
        assert gradient[0, 0] < 0 < gradient[0, 1]


def test_settings_out_of_range_name_the_field():
    with pytest.raises(UserError, match=r"regularisers\.kl\.estimator: expected k1, k2 or k3, got 'k4'"):
        KL(estimator="k4")
    with pytest.raises(UserError, match=r"regularisers\.value_loss\.clip: expected a positive number"):
        ValueLoss(clip=0.0)
