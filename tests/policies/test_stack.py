"""Stacks of networks: each member is the network that it would be alone."""

import pytest
import torch
from torch.nn.functional import layer_norm

from partita.policies.activations import ACTIVATIONS
from partita.policies.stack import Stack


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
def test_members_are_networks_of_their_own(members, norm, activation):
    stack = Stack(members, [4, 8, 8, 2], activation, torch.Generator().manual_seed(0), norm).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    out = stack(x)
    assert out.shape == (members, 5, 2)
    for k in range(members):
        h = x
        for i in range(3):
            h = h @ stack.weights[i][k] + stack.biases[i][k]
            if i < 2:
                h = ACTIVATIONS[activation]((layer_norm(h, h.shape[-1:]) if norm else h).clone())
        torch.testing.assert_close(out[k], h)


def test_members_may_read_their_own_rows():
    stack = Stack(2, [3, 4, 1], "tanh", torch.Generator().manual_seed(0))
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(stack(x), torch.stack([stack(x[0])[0], stack(x[1])[1]]))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_first_members_may_be_asked_alone(activation):
    stack = Stack(3, [3, 8, 2], activation, torch.Generator().manual_seed(0))
    x = torch.randn(6, 3)
    for first in (1, 2, 3, 4):
        torch.testing.assert_close(stack(x, first=first), stack(x)[:first])
    stack(x, first=2).sum().backward()
    assert all(w.grad[:2].abs().sum() > 0 and w.grad[2].abs().sum() == 0 for w in stack.weights)


def test_gradients_reach_each_member_alone():
    stack = Stack(3, [2, 4, 1], "relu", torch.Generator().manual_seed(0))
    stack(torch.randn(7, 2))[1].sum().backward()
    for weight in stack.weights:
        assert weight.grad[1].abs().sum() > 0 and weight.grad[[0, 2]].abs().sum() == 0


def test_weights_are_within_their_bounds_and_differ_between_members():
    stack = Stack(2, [16, 64, 1], "relu", torch.Generator().manual_seed(0), last=0.1)
    assert 0.2 < stack.weights[0].abs().max() <= 0.25 and stack.weights[1].abs().max() <= 0.1 / 8
    assert not torch.equal(stack.weights[0][0], stack.weights[0][1])


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("members", [1, 2])
def test_the_fast_way_has_the_gradients_of_the_plain_one(members, outputs, rounded):
    g = torch.Generator().manual_seed(0)
    stack = Stack(members, [5, 128, 96, outputs], "relu", g, rounded=rounded)
    stack, dtype = (stack, torch.float32) if rounded else (stack.double(), torch.float64)
    x = torch.randn(7, 5, dtype=dtype, generator=g).requires_grad_()
    wanted = [x, *stack.parameters()]
    slope = torch.randn(members, 7, outputs, dtype=dtype, generator=g)
    fast, plain = (torch.autograd.grad(stack(x, twice), wanted, slope) for twice in (False, True))
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("members", [1, 2])
def test_rounded_products_are_those_of_rounded_factors(members, activation, outputs):
    stack = Stack(members, [5, 128, 96, outputs], activation, torch.Generator().manual_seed(0), rounded=True)
    x, act = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)), ACTIVATIONS[activation]
    for k in range(members):
        h = act(x @ stack.weights[0][k] + stack.biases[0][k])
        z = (h.bfloat16() @ stack.weights[1][k].bfloat16()).float() + stack.biases[1][k]
        wanted = act(z) @ stack.weights[2][k] + stack.biases[2][k]
        torch.testing.assert_close(stack(x)[k], wanted)
    exact = Stack(members, [5, 128, 96, outputs], activation, torch.Generator().manual_seed(0))
    assert 0 < (stack(x) - exact(x)).abs().max() < 0.02
    with torch.no_grad():
        torch.testing.assert_close(stack(x), stack(x.clone()))


def test_a_stack_of_one_hidden_layer_has_nothing_to_round():
    stack, exact = (Stack(2, [4, 8, 2], "relu", torch.Generator().manual_seed(0), rounded=r) for r in (True, False))
    x = torch.randn(3, 4)
    assert torch.equal(stack(x), exact(x))
