"""Objectives: losses by hand on both sides of every clip, gradients against closed forms, reductions."""

import math

import pytest
import torch
from batches import Table, make

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.parts.objective import ClippedSurrogate, ClippedWeight, Reinforce, SequenceRatio


def case(ratios, advantages):
    """One trajectory with these importance ratios and advantages; log-probs now are -1."""
    ratio = torch.tensor([ratios], dtype=torch.float64)
    logp = torch.full_like(ratio, -1.0).requires_grad_()
    batch = Batch(
        mask=torch.ones_like(ratio, dtype=torch.bool),
        logp=-1.0 - ratio.log(),
        advantage=torch.tensor([advantages], dtype=torch.float64),
    )
    return Outputs(logp), batch


def loss_and_gradient(objective, ratios, advantages):
    out, batch = case(ratios, advantages)
    loss = objective(out, batch)
    return loss.tolist()[0], torch.autograd.grad(loss.sum(), out.logp)[0].tolist()[0]


def test_reinforce_by_hand():
    loss, gradient = loss_and_gradient(Reinforce(), [1.0, 3.0], [2.0, -5.0])
    assert loss == [2.0, -5.0] and gradient == [-2.0, 5.0]


def test_clipped_surrogate_on_both_sides_of_both_clips():
    #        below, inside, above for a positive advantage; then for a negative one
    loss, gradient = loss_and_gradient(
        ClippedSurrogate(clip_low=0.2, clip_high=0.3),
        [0.5, 1.1, 1.5, 0.5, 1.1, 1.5],
        [2.0, 2.0, 2.0, -2.0, -2.0, -2.0],
    )
    assert loss == pytest.approx([-1.0, -2.2, -2.6, 1.6, 2.2, 3.0])
    # d loss / d logp = -A w where it is not clipped, and zero where moving on would be free.
    assert gradient == pytest.approx([-1.0, -2.2, 0.0, 0.0, 2.2, 3.0])


def test_dual_clip_bounds_the_loss_of_negative_advantages_only():
    loss, gradient = loss_and_gradient(ClippedSurrogate(dual_clip=3.0), [5.0, 2.0, 5.0], [-2.0, -2.0, 2.0])
    assert loss == pytest.approx([6.0, 4.0, -2.4])
    assert gradient == pytest.approx([0.0, 4.0, 0.0])


def test_log_ratio_clamp_bounds_the_ratio_and_stops_its_gradient():
    loss, gradient = loss_and_gradient(ClippedSurrogate(log_ratio_clamp=0.5), [math.exp(2.0), 1.0], [-1.0, -1.0])
    assert loss == pytest.approx([math.exp(0.5), 1.0]) and gradient == pytest.approx([0.0, 1.0])


def test_clip_fraction_counts_the_binding_clips():
    out, batch = case([0.5, 1.1, 1.5, 0.5, 1.1, 1.5, 9.0], [2.0, 2.0, 2.0, -2.0, -2.0, -2.0, 2.0])
    batch = batch.but(mask=torch.tensor([[True] * 6 + [False]]))
    assert float(ClippedSurrogate().metrics(out, batch)["clip_fraction"]) == pytest.approx(2 / 6)
    assert float(ClippedWeight(0.6, 1.2).metrics(out, batch)["clip_fraction"]) == pytest.approx(4 / 6)


def test_sequence_ratio_by_hand():
    # A geometric mean: sqrt(1.2 * 1.2^3) = 1.44, clipped at 1.3 for A > 0, unclipped for A < 0.
    ratios = [1.2, 1.2**3]
    objective = SequenceRatio(clip_low=0.2, clip_high=0.3)
    loss, gradient = loss_and_gradient(objective, ratios, [2.0, 2.0])
    assert loss == pytest.approx([-2.6, -2.6]) and gradient == [0.0, 0.0]
    loss, gradient = loss_and_gradient(objective, ratios, [-2.0, -2.0])
    assert loss == pytest.approx([2.88, 2.88])
    # Both losses move with both log-probs: 2 losses * 2 * 1.44 / 2 tokens each.
    assert gradient == pytest.approx([2.88, 2.88])


def test_sequence_ratio_leaves_masked_steps_out_of_the_mean():
    out, batch = case([1.5, 100.0], [-1.0, 0.0])
    batch = batch.but(mask=torch.tensor([[True, False]]))
    assert SequenceRatio()(out, batch).tolist()[0][0] == pytest.approx(1.5)


def test_clipped_weight_by_hand():
    loss, gradient = loss_and_gradient(ClippedWeight(lower=0.5, upper=2.0), [0.1, 1.5, 8.0], [1.0, 1.0, -3.0])
    assert loss == pytest.approx([0.5, 1.5, -6.0])
    assert gradient == pytest.approx([-0.5, -1.5, 6.0])  # the weight carries no gradient, and clipped steps keep theirs


@pytest.mark.parametrize(
    "objective", [ClippedSurrogate(), ClippedSurrogate(dual_clip=3.0), ClippedWeight(), ClippedWeight(0.0, 1e9)]
)
def test_on_policy_every_objective_has_the_gradient_of_reinforce(objective):
    policy, batch = Table(), make(on_policy=True)

    def gradient(part):
        return torch.autograd.grad((part(policy.evaluate(batch), batch) * batch.mask).sum(), policy.module.logits)[0]

    torch.testing.assert_close(gradient(objective), gradient(Reinforce()))
    assert gradient(objective).abs().max() > 0.1


def test_reinforce_gradient_in_closed_form():
    policy, batch = Table(), make()
    got = torch.autograd.grad((Reinforce()(policy.evaluate(batch), batch)).sum(), policy.module.logits)[0]
    probability = policy.module.logits.detach().softmax(-1)
    expected = torch.zeros_like(got)
    for b, t in batch.mask.nonzero().tolist():
        s, a = int(batch.inputs["state"][b, t]), int(batch.inputs["action"][b, t])
        score = -probability[s]
        score[a] += 1
        expected[s] -= batch.advantage[b, t] * score
    torch.testing.assert_close(got, expected)


def test_sequence_ratio_of_single_steps_is_the_clipped_surrogate():
    batch = make(b=16, t=5).steps()
    out = Table().evaluate(batch)
    mine = SequenceRatio(clip_low=0.2, clip_high=0.3)(out, batch)
    torch.testing.assert_close(mine, ClippedSurrogate(clip_low=0.2, clip_high=0.3)(out, batch))


@pytest.mark.parametrize(
    "objective", [Reinforce(), ClippedSurrogate(), ClippedSurrogate(dual_clip=1.5), SequenceRatio()]
)
def test_gradients_against_finite_differences(objective):
    batch = make(b=4, t=3, groups=2, seed=3)
    logp = Table().evaluate(batch).logp.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective(Outputs(x), batch), (logp,))


@pytest.mark.parametrize("objective", [Reinforce(), ClippedSurrogate(), ClippedWeight(), SequenceRatio(0.2, 0.2)])
def test_descent_makes_good_actions_likelier(objective):
    for sign in (1.0, -1.0):
        _, gradient = loss_and_gradient(objective, [1.0, 1.0], [sign, sign])
        assert all(g * sign < 0 for g in gradient)


def test_settings_out_of_range_name_the_field():
    for make_part, field in (
        (lambda: ClippedSurrogate(clip_low=0.0), "clip_low"),
        (lambda: ClippedSurrogate(clip_low=1.5), "clip_low"),
        (lambda: ClippedSurrogate(clip_high=-0.1), "clip_high"),
        (lambda: ClippedSurrogate(dual_clip=1.0), "dual_clip"),
        (lambda: ClippedSurrogate(log_ratio_clamp=-1.0), "log_ratio_clamp"),
        (lambda: ClippedWeight(lower=2.0, upper=1.0), "upper"),
        (lambda: ClippedWeight(log_ratio_clamp=0.0), "log_ratio_clamp"),
    ):
        with pytest.raises(UserError, match=rf"objective\.{field}: expected .* got"):
            make_part()
