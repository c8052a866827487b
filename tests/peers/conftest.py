"""Comparisons with peers are in float64 throughout, so that what is left of a difference is its reason."""

import pytest
import torch


@pytest.fixture(autouse=True)
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
