"""The fast tanh is tanh, in value and gradient."""

from __future__ import annotations

import torch

from partita.policies.activations import tanh


def test_values_and_extremes():
    x = torch.cat([torch.linspace(-12, 12, 4001, dtype=torch.float64), torch.tensor([-1e4, 0.0, 1e4]).double()])
    assert torch.allclose(tanh(x), x.tanh(), atol=1e-15, rtol=0)
    assert torch.allclose(tanh(x.float()), x.float().tanh(), atol=2e-7, rtol=0)


def test_gradient():
    x = torch.linspace(-3, 3, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tanh, (x,))
