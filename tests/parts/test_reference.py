"""References: where each stands after some updates, and that looking through one changes nothing."""

import pytest
import torch
from batches import Table, make

from partita.core.errors import UserError
from partita.parts.reference import Ema, Frozen, Reset


def move(policy, amount):
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.add_(amount)


def started(part, policy):
    part = part.fresh()
    part.start(policy)
    return part


def test_frozen_stays_where_training_began():
    policy = Table()
    begun = policy.module.logits.detach().clone()
    reference = started(Frozen(), policy)
    for step in range(1, 4):
        move(policy, 1.0)
        reference.update(policy, step)
    assert torch.equal(reference.weights["logits"], begun)


def test_ema_by_hand():
    policy = Table()
    begun = policy.module.logits.detach().clone()
    reference = started(Ema(decay=0.75), policy)
    for step in (1, 2):
        move(policy, 1.0)
        reference.update(policy, step)
    # 0, then 0.25 * 1, then 0.75 * 0.25 + 0.25 * 2
    torch.testing.assert_close(reference.weights["logits"], begun + 0.6875)


def test_reset_moves_at_multiples():
    policy = Table()
    begun = policy.module.logits.detach().clone()
    reference, stood = started(Reset(every=3), policy), []
    for step in range(1, 8):
        move(policy, 1.0)
        reference.update(policy, step)
        stood.append(round(float((reference.weights["logits"] - begun).mean())))
    assert stood == [0, 0, 3, 3, 3, 6, 6]


def test_logp_is_that_of_the_kept_weights_and_leaves_the_policy_alone():
    policy, batch = Table(), make()
    expected = policy.evaluate(batch).logp.detach()
    reference = started(Frozen(), policy)
    with torch.no_grad():
        policy.module.logits.mul_(-2.0)
    now = policy.module.logits.detach().clone()
    out = reference.logp(policy, batch)
    assert torch.equal(out, expected) and not out.requires_grad
    assert torch.equal(policy.module.logits, now)
    assert not torch.allclose(policy.evaluate(batch).logp, expected)


def test_using_puts_weights_back_after_an_error():
    policy = Table()
    now = policy.module.logits.detach().clone()
    with pytest.raises(RuntimeError), policy.using({"logits": torch.zeros_like(now)}):
        raise RuntimeError
    assert torch.equal(policy.module.logits, now)


def test_nothing_happens_before_start():
    policy = Table()
    for part in (Frozen(), Ema(), Reset(every=1)):
        reference = part.fresh()
        reference.update(policy, 1)
        assert reference.weights == {} and reference.state_dict() == {}


def test_state_round_trip():
    policy = Table()
    reference = started(Ema(decay=0.5), policy)
    move(policy, 1.0)
    reference.update(policy, 1)
    other = Ema(decay=0.5).fresh()
    other.load_state_dict({n: w.clone() for n, w in reference.state_dict().items()})
    move(policy, 1.0)
    reference.update(policy, 2)
    other.update(policy, 2)
    assert torch.equal(other.weights["values"], reference.weights["values"])


def test_settings_out_of_range_name_the_field():
    with pytest.raises(UserError, match=r"reference\.decay"):
        Ema(decay=1.01)
    with pytest.raises(UserError, match=r"reference\.every"):
        Reset(every=0)
