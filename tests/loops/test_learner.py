"""The optimiser: schedule, clipping, the guard, and going on from its state."""

import pytest
import torch
from torch import nn

from partita.core.policy import Policy
from partita.loops.learner import Learner
from partita.policies.adam import Adam


class Weights(Policy):
    """Two parameters and nothing else."""

    def __init__(self):
        self.module = nn.Module()
        self.module.a = nn.Parameter(torch.zeros(2))
        self.module.b = nn.Parameter(torch.zeros(1))


def learner(policy, **changes):
    defaults = dict(
        lr=0.1, schedule="constant", warmup=0, total=10, max_grad_norm=None, weight_decay=0.0, betas=(0.9, 0.999),
        eps=1e-8,
    )  # fmt: skip
    return Learner(policy.trainable(), **(defaults | changes))


def give(policy, a, b):
    policy.module.a.grad, policy.module.b.grad = torch.tensor(a), torch.tensor(b)


def test_learning_rates_by_hand():
    made = learner(Weights(), schedule="linear", warmup=4, total=10)
    rates = [made.begin(step) for step in (1, 2, 4, 6, 10)]
    assert rates == pytest.approx([0.1 * 0.25, 0.1 * 0.9 * 0.5, 0.1 * 0.7, 0.1 * 0.5, 0.1 * 0.1])
    assert made.rate == rates[-1]
    constant = learner(Weights())
    assert [constant.begin(step) for step in (1, 10)] == [0.1, 0.1]


def test_one_step_of_adam_goes_down_the_gradient_and_clears_it():
    policy = Weights()
    made = learner(policy)
    give(policy, [3.0, -4.0], [0.0])
    assert float(made.apply()) == pytest.approx(5.0)
    torch.testing.assert_close(policy.module.a.data, torch.tensor([-0.1, 0.1]))
    assert policy.module.b.item() == 0 and policy.module.a.grad is None


@pytest.mark.parametrize(("limit", "scale"), [(None, 1.0), (10.0, 1.0), (1.0, 1 / 13)])
def test_the_norm_over_all_parameters_is_clipped_and_reported_unclipped(limit, scale):
    policy = Weights()
    made = learner(policy, max_grad_norm=limit, eps=1e6, lr=1e6)  # so large an eps makes the step the gradient
    norm = 13.0 * (0.5 if limit == 10.0 else 1.0)
    give(policy, [3.0 * norm / 13, -4.0 * norm / 13], [12.0 * norm / 13])
    assert float(made.apply()) == pytest.approx(norm)
    expected = -torch.tensor([3.0, -4.0]) * norm / 13 * scale
    torch.testing.assert_close(policy.module.a.data, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(policy.module.b.data, torch.tensor([-12.0 * norm / 13 * scale]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_step_is_taken_on_a_gradient_that_is_not_finite(bad):
    policy = Weights()
    made = learner(policy, max_grad_norm=1.0)
    give(policy, [1.0, bad], [1.0])
    assert not bool(made.apply().isfinite())
    assert not policy.module.a.any() and not policy.module.b.any() and made.state_dict() == {}


def test_going_on_from_the_state_is_going_on():
    def run(made, policy, count):
        for _ in range(count):
            give(policy, [1.0, -2.0], [0.5])
            made.apply()

    policy = Weights()
    made = learner(policy, weight_decay=0.1)
    run(made, policy, 2)
    other = Weights()
    other.load_state_dict(policy.state_dict())
    again = learner(other, weight_decay=0.1)
    again.load_state_dict(made.state_dict())
    run(made, policy, 2)
    run(again, other, 2)
    assert torch.equal(policy.module.a, other.module.a) and torch.equal(policy.module.b, other.module.b)


def test_steps_are_those_of_adamw():
    policy, other = Weights(), Weights()
    made = learner(policy, weight_decay=0.1, lr=0.05, eps=1e-6, betas=(0.8, 0.95))
    settings = dict(lr=0.05, weight_decay=0.1, eps=1e-6, betas=(0.8, 0.95), fused=True)
    theirs = torch.optim.AdamW(other.trainable().values(), **settings)
    for i in range(5):
        for it in (policy, other):
            give(it, [1.0 + i, -0.5 * i], [0.1])
        made.begin(i + 1)
        made.apply()
        theirs.step()
    assert torch.equal(policy.module.a, other.module.a)
    assert torch.equal(policy.module.b, other.module.b)


def test_gradients_of_any_layout_move_parameters_alike():
    g = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(3, 4, generator=g), torch.randn(4, 3, generator=g)
    moved = []
    for given in (gradient.T, gradient.T.contiguous()):
        parameter = torch.nn.Parameter(start.clone())
        Adam({"w": parameter}, 0.1, None).move(["w"], [given])
        moved.append(parameter.detach())
    assert torch.equal(*moved)
    assert torch.equal((start - moved[0]).sign(), gradient.T.sign())


@pytest.mark.parametrize(("limit", "gradient"), [(None, [3.0, -4.0]), (1.0, [3.0, -4.0]), (9.0, [3.0, -4.0])])
@pytest.mark.parametrize("changes", [{}, {"betas": (0.0, 0.99)}, {"betas": (0.9, 0.999), "after": 20_000}])
def test_the_step_spelt_out_is_the_kernels(limit, gradient, changes):
    ends, changes = [], dict(changes)
    after = changes.pop("after", 0)
    for kernel in (True, False):
        policy = Weights()
        made = learner(policy, max_grad_norm=limit, weight_decay=0.1, eps=1e-2, **changes)
        made.kernel = kernel
        made.tensors()
        for moments in made.moments.values():
            moments["step"].fill_(after)
        for scale in (1.0, -0.5, 2.0):
            give(policy, [scale * x for x in gradient], [12.0 * scale])
            norm = made.apply()
        ends.append((norm, *policy.trainable().values()))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)


def test_the_step_spelt_out_is_not_spoilt_by_what_is_not_finite():
    policy = Weights()
    made = learner(policy, max_grad_norm=1.0)
    made.kernel = False
    give(policy, [float("nan"), 1.0], [1.0])
    assert not bool(made.apply().isfinite())
    assert all(bool((x == 0).all()) for x in policy.trainable().values())
