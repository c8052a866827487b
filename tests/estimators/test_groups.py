"""Group statistics against Python's own, and how they move when trajectories or rewards do."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.estimators import groups

X = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0], dtype=torch.float64)
GROUP = torch.tensor([7, 2, 7, 2, 7, 30])
MEMBERS = [[3.0, 4.0, 5.0], [1.0, 1.0], [3.0, 4.0, 5.0], [1.0, 1.0], [3.0, 4.0, 5.0], [9.0]]


def test_sums_sizes_means_and_deviations_by_hand():
    assert groups.group_sum(X, GROUP).tolist() == [sum(m) for m in MEMBERS]
    assert groups.group_size(GROUP).tolist() == [len(m) for m in MEMBERS]
    assert groups.group_mean(X, GROUP).tolist() == [statistics.mean(m) for m in MEMBERS]
    unbiased = [statistics.stdev(m) if len(m) > 1 else 0.0 for m in MEMBERS]
    torch.testing.assert_close(groups.group_std(X, GROUP), torch.tensor(unbiased, dtype=torch.float64))
    biased = torch.tensor([statistics.pstdev(m) for m in MEMBERS], dtype=torch.float64)
    torch.testing.assert_close(groups.group_std(X, GROUP, unbiased=False), biased)


def test_leave_one_out_and_degenerate_by_hand():
    assert groups.leave_one_out(X, GROUP).tolist() == [4.5, 1.0, 4.0, 1.0, 3.5, 0.0]
    assert groups.degenerate(X, GROUP).tolist() == [False, True, False, True, False, True]


def test_equal_members_have_exactly_zero_deviation_in_float32():
    for value in (0.1, 0.3, 0.7, 1 / 3):
        for size in range(2, 12):
            x, group = torch.full((size,), value), torch.zeros(size, dtype=torch.int64)
            assert torch.equal(groups.group_mean(x, group), x)
            assert torch.equal(groups.leave_one_out(x, group), x)
            assert not groups.group_std(x, group).any()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(-100, 100))
def test_permutation_and_shift(seed, shift):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(12, generator=g, dtype=torch.float64)
    group = torch.randint(0, 4, (12,), generator=g) * 5
    order = torch.randperm(12, generator=g)
    for statistic in (groups.group_mean, groups.group_std, groups.leave_one_out):
        out = statistic(x, group)
        torch.testing.assert_close(statistic(x[order], group[order]), out[order])
        moved = statistic(x + shift, group)
        alone = groups.group_size(group) == 1
        expected = out if statistic is groups.group_std else out + shift
        torch.testing.assert_close(moved[~alone], expected[~alone], rtol=1e-9, atol=1e-9)


def test_wrong_shapes_name_the_argument():
    with pytest.raises(ValueError, match=r"group: expected \(B,\) = \(6,\), got \(5,\)"):
        groups.group_mean(X, GROUP[:5])
    with pytest.raises(ValueError, match="x: expected"):
        groups.group_mean(X[None], GROUP)
