"""Returns and generalised advantages against loops over Python numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.estimators.returns import discounted_return, gae


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def flags(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def naive_gae(reward, value, cut, bootstrap, discount, lam, mask):
    """Row by row over decisions; what happens between two decisions is booked on the first of them."""
    out = torch.zeros_like(reward)
    for b in range(reward.shape[0]):
        decisions = [t for t in range(reward.shape[1]) if mask[b, t]]
        carried = 0.0
        for i in reversed(range(len(decisions))):
            t = decisions[i]
            end = decisions[i + 1] if i + 1 < len(decisions) else reward.shape[1]
            gained = sum(float(reward[b, k]) for k in range(t, end))
            beyond = sum(float(bootstrap[b, k]) for k in range(t, end))
            stopped = any(bool(cut[b, k]) for k in range(t, end))
            after = float(value[b, end]) if not stopped and end < reward.shape[1] else 0.0
            delta = gained + discount * (after + beyond) - float(value[b, t])
            carried = delta + (0.0 if stopped else discount * lam * carried)
            out[b, t] = carried
    return out


def test_gae_by_hand_through_termination_truncation_and_the_end_of_a_segment():
    # Step 0 goes on, step 1 terminates, step 2 is truncated with V(next) = 4, step 3 is the end of the segment with 8.
    reward, value = tensor([1.0, 2.0, 3.0, 4.0]), tensor([0.5, 1.5, 2.5, 3.5])
    cut, bootstrap = flags([False, True, True, True]), tensor([0.0, 0.0, 4.0, 8.0])
    out = gae(reward, value, cut, bootstrap, 0.9, 0.8, torch.ones(1, 4, dtype=torch.bool))
    a1 = 2.0 - 1.5
    a0 = 1.0 + 0.9 * 1.5 - 0.5 + 0.9 * 0.8 * a1
    torch.testing.assert_close(out, tensor([a0, a1, 3.0 + 0.9 * 4.0 - 2.5, 4.0 + 0.9 * 8.0 - 3.5]), rtol=1e-12, atol=0)


def test_gae_by_hand_across_observation_tokens():
    # Decision, two observation tokens (the second with a reward), decision, padding.
    mask = flags([True, False, False, True, False])
    reward, value = tensor([0.0, 0.0, 0.25, 1.0, 0.0]), tensor([0.5, 9.0, 9.0, 0.75, 9.0])
    cut = flags([False, False, False, False, True])
    out = gae(reward, value, cut, torch.zeros_like(reward), 0.9, 0.8, mask)
    last = 1.0 - 0.75
    first = 0.25 + 0.9 * 0.75 - 0.5 + 0.72 * last
    torch.testing.assert_close(out, tensor([first, 0.0, 0.0, last, 0.0]), rtol=1e-12, atol=1e-15)


def test_discounted_return_by_hand():
    reward = tensor([1.0, 2.0, 4.0], [1.0, 2.0, 0.0])
    cut, bootstrap = flags([False, False, True], [False, True, True]), tensor([0.0, 0.0, 8.0], [0.0, 0.0, 0.0])
    mask = flags([True, True, True], [True, True, False])
    out = discounted_return(reward, cut, bootstrap, 0.5, mask)
    assert out.tolist() == [[1 + 0.5 * (2 + 0.5 * 8), 2 + 0.5 * 8, 4 + 0.5 * 8], [2.0, 2.0, 0.0]]


def random_case(seed, b=4, t=7):
    g = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(b, t, generator=g, dtype=torch.float64)

    mask = torch.rand(b, t, generator=g) < 0.7
    cut = torch.rand(b, t, generator=g) < 0.3
    cut[:, -1] = True
    bootstrap = normal() * (cut & (torch.rand(b, t, generator=g) < 0.5))
    return normal(), normal(), cut, bootstrap, mask


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_gae_equals_the_naive_loop(seed, discount, lam, holes):
    reward, value, cut, bootstrap, mask = random_case(seed)
    if not holes:
        mask = torch.ones_like(mask)
    out = gae(reward, value, cut, bootstrap, discount, lam, mask)
    expected = naive_gae(reward, value, cut, bootstrap, discount, lam, mask)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_lambda_one_is_return_minus_value_and_lambda_zero_the_td_error(seed, discount):
    reward, value, cut, bootstrap, _ = random_case(seed)
    mask = torch.ones_like(cut)
    returns = discounted_return(reward, cut, bootstrap, discount, mask)
    full = gae(reward, value, cut, bootstrap, discount, 1.0, mask)
    torch.testing.assert_close(full, returns - value, rtol=1e-10, atol=1e-10)
    following = torch.cat([value[:, 1:], torch.zeros(len(value), 1, dtype=torch.float64)], 1)
    td = reward + discount * torch.where(cut, bootstrap, following) - value
    torch.testing.assert_close(gae(reward, value, cut, bootstrap, discount, 0.0, mask), td, rtol=1e-10, atol=1e-10)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_padding_on_the_right_changes_nothing(seed, extra):
    reward, value, cut, bootstrap, mask = random_case(seed)
    more = [torch.cat([x, torch.zeros(len(x), extra, dtype=x.dtype)], 1) for x in (reward, value, cut, bootstrap, mask)]
    more[2][:, -1] = True
    out = gae(more[0], more[1], more[2], more[3], 0.9, 0.7, more[4])
    torch.testing.assert_close(out[:, :7], gae(reward, value, cut, bootstrap, 0.9, 0.7, mask))
    assert not out[:, 7:].any()


def test_shapes_and_dtypes_are_checked_by_name():
    x = torch.zeros(2, 3)
    flag = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"value: expected \(B, T\) = \(2, 3\), got \(2, 2\)"):
        gae(x, x[:, :2], flag, x, 0.9, 0.9, flag)
    with pytest.raises(ValueError, match="reward: expected a floating-point"):
        gae(x.long(), x, flag, x, 0.9, 0.9, flag)
