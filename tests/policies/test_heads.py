"""Heads: densities integrate to one, draws have their densities, and edges stay finite."""

import math

import pytest
import torch

from partita.core.spaces import Box, Discrete
from partita.policies.heads import HEADS, Categorical, Deterministic, Gaussian, Squashed

SPACE = Box(1, (-1.0,), (1.0,))


def numbers(mean, std):
    return torch.tensor([[mean, math.log(std)]], dtype=torch.float64)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.3), (-1.5, 0.6)])
def test_the_squashed_density_integrates_to_one(mean, std):
    a = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[1:-1, None]
    density = Squashed().logp(numbers(mean, std).expand(len(a), 2), a).exp()
    assert float(density.sum() * (a[1] - a[0])) == pytest.approx(1, abs=2e-3)


def test_the_gaussian_density_is_that_of_a_normal_around_tanh():
    h = numbers(0.4, 0.5)
    expected = torch.distributions.Normal(math.tanh(0.4), 0.5).log_prob(torch.tensor(0.9, dtype=torch.float64))
    assert Gaussian().logp(h, torch.tensor([[0.9]], dtype=torch.float64)).item() == pytest.approx(float(expected))


@pytest.mark.parametrize("head", [Squashed(), Gaussian()])
def test_a_draw_comes_with_its_density(head):
    g = torch.Generator().manual_seed(0)
    h = torch.randn(50, 6, generator=g, dtype=torch.float64) * 0.3
    action, logp = head.draw(h, torch.randn(50, 3, generator=g, dtype=torch.float64) * 0.2)
    torch.testing.assert_close(head.logp(h, action), logp)


def test_the_squashed_draw_is_the_change_of_variables():
    h, z = numbers(0.3, 0.5), torch.tensor([[1.2]], dtype=torch.float64)
    action, logp = Squashed().draw(h, z)
    u = 0.3 + 0.5 * 1.2
    assert action.item() == pytest.approx(math.tanh(u))
    expected = -0.5 * 1.2**2 - math.log(0.5) - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(u) ** 2)
    assert logp.item() == pytest.approx(expected)


def test_far_out_densities_and_gradients_are_finite():
    h = torch.tensor([[40.0, 5.0]], requires_grad=True)
    action, logp = Squashed().draw(h, torch.tensor([[3.0]]))
    (logp + action.sum()).sum().backward()
    assert logp.isfinite().all() and h.grad.isfinite().all()
    assert Squashed().logp(h, torch.tensor([[1.0]])).isfinite().all()


def test_log_deviations_are_clamped():
    wide = torch.tensor([[0.0, 9.0]])
    assert torch.equal(Squashed(-5, 2).draw(wide, torch.ones(1, 1))[0], torch.tensor([[math.exp(2)]]).tanh())


def test_categorical_draws_have_the_chances_of_the_softmax():
    h = torch.tensor([0.0, 1.0, -1.0]).expand(20_000, 3)
    head = Categorical()
    action, logp = head.draw(h, head.noise(Discrete(3), (20_000,), torch.Generator().manual_seed(0)))
    chance = h[0].softmax(-1)
    torch.testing.assert_close(action.bincount(minlength=3) / 20_000, chance, atol=0.015, rtol=0)
    torch.testing.assert_close(logp.exp(), chance[action])


def test_sizes_and_modes():
    box = Box(3, (-1.0,) * 3, (1.0,) * 3)
    assert [HEADS[n]().size(box) for n in ("squashed", "gaussian", "deterministic")] == [6, 3, 3]
    assert Categorical().size(Discrete(4)) == 4 and Categorical().mode(torch.tensor([[0.0, 3.0]])).tolist() == [1]
    h = torch.tensor([[0.2, 0.9]])
    for head in (Squashed(), Gaussian(), Deterministic()):
        assert head.mode(h)[0, 0].item() == pytest.approx(math.tanh(0.2))
    assert Deterministic().draw(h, torch.zeros(1, 2))[1] is None and Deterministic().logp(h, h) is None


def test_gradients_of_a_squashed_draw_are_those_of_finite_differences():
    g = torch.Generator().manual_seed(0)
    h = torch.randn(4, 6, dtype=torch.float64, generator=g, requires_grad=True)
    noise = torch.randn(4, 3, dtype=torch.float64, generator=g)
    assert torch.autograd.gradcheck(lambda h: Squashed().draw(h, noise), (h,))
    assert torch.autograd.gradcheck(lambda h: Squashed().draw(h, noise)[1], (h,))
    assert torch.autograd.gradcheck(lambda h: Squashed().draw(h, noise)[0], (h,))
