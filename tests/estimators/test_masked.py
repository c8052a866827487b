"""Masked statistics against the same numbers without their holes."""

import statistics

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.estimators.masked import last_step, masked_mean, masked_std, put_last, whiten

X = torch.tensor([[1.0, 2.0, 100.0], [4.0, -100.0, 50.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_mean_and_deviation_by_hand():
    assert float(masked_mean(X, MASK)) == 7 / 3
    assert abs(float(masked_std(X, MASK)) - statistics.stdev([1.0, 2.0, 4.0])) < 1e-15
    empty = torch.zeros_like(MASK)
    assert float(masked_mean(X, empty)) == 0.0 and float(masked_std(X, empty)) == 0.0


def test_whiten_by_hand():
    out = whiten(X, MASK, eps=0.5)
    scale = statistics.stdev([1.0, 2.0, 4.0]) + 0.5
    expected = torch.tensor([[1 - 7 / 3, 2 - 7 / 3, 0], [4 - 7 / 3, 0, 0]], dtype=torch.float64) / scale
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-14)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(-50, 50), st.floats(0.1, 10))
def test_whiten_is_shift_and_scale_invariant(seed, shift, scale):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 6, generator=g, dtype=torch.float64)
    mask = torch.rand(4, 6, generator=g) < 0.6
    mask[0, :2] = True
    torch.testing.assert_close(whiten(x * scale + shift, mask), whiten(x, mask), rtol=1e-6, atol=1e-6)


def test_whiten_of_equal_entries_is_exactly_zero():
    for value in (0.1, 0.7, 1 / 3, 12345.678):
        x = torch.full((64, 3), value)
        assert not whiten(x, torch.ones(64, 3, dtype=torch.bool)).any()


def test_last_step_and_put_last():
    mask = torch.tensor([[True, False, True, False], [True, False, False, False], [False] * 4])
    assert last_step(mask).tolist() == [2, 0, 0]
    out = put_last(torch.tensor([5.0, 6.0, 7.0]), mask)
    assert out.tolist() == [[0, 0, 5, 0], [6, 0, 0, 0], [0, 0, 0, 0]]
