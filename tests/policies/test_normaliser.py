"""The observation normaliser against NumPy over everything seen."""

import numpy as np
import torch

from partita.policies.normaliser import Normaliser


def test_statistics_are_those_of_all_the_data():
    g = torch.Generator().manual_seed(0)
    norm, seen = Normaliser((3,)), []
    scale, shift = torch.tensor([1.0, 5.0, 0.1]), torch.tensor([0.0, 10.0, -3.0])
    for i, shape in enumerate([(50, 3), (4, 25, 3), (1, 3), (200, 3)]):
        x = torch.randn(*shape, generator=g) * scale + shift + i
        norm.update(x)
        seen.append(x.reshape(-1, 3).numpy().astype(np.float64))
        if i:
            data = np.concatenate(seen)
            np.testing.assert_allclose(norm.mean.numpy(), data.mean(0), rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(norm.var.numpy(), data.var(0), rtol=1e-3)
    assert abs(float(norm.count) - 351) < 1e-3


def test_output_is_standardised_and_clipped():
    norm = Normaliser((2,), clip=1.5)
    norm.mean.copy_(torch.tensor([1.0, -2.0]))
    norm.var.copy_(torch.tensor([4.0, 9.0]))
    out = norm(torch.tensor([[2.0, 1.0], [3.0, -40.0], [100.0, -2.0]]))
    torch.testing.assert_close(out, torch.tensor([[0.5, 1.0], [1.0, -1.5], [1.5, 0.0]]))


def test_statistics_are_saved_and_take_no_gradient():
    norm = Normaliser((2,))
    norm.update(torch.randn(10, 2, generator=torch.Generator().manual_seed(0)).requires_grad_())
    assert set(norm.state_dict()) == {"mean", "var", "count"} and not norm.var.requires_grad
    assert not list(norm.parameters())
