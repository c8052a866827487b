"""Pass@K and CoT-Pass@K against counting every set of K samples."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.estimators.passk import cot_pass_at_k, pass_at_k


def counted(row, k):
    """The share of all sets of k samples with a right one."""
    sets = list(itertools.combinations(row, k))
    return sum(any(s) for s in sets) / len(sets)


def test_by_hand():
    right = torch.tensor([[True, False, False, False], [False] * 4, [True] * 4, [True, True, False, False]])
    assert pass_at_k(right, 1).tolist() == pytest.approx([0.25, 0.0, 1.0, 0.5])
    # C(3, 2) / C(4, 2) = 1/2 and C(2, 2) / C(4, 2) = 1/6 are the chances to miss
    assert pass_at_k(right, 2).tolist() == pytest.approx([0.5, 0.0, 1.0, 5 / 6])
    assert pass_at_k(right, 4).tolist() == [1.0, 0.0, 1.0, 1.0]
    assert pass_at_k(right, 2).dtype == torch.float64


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 6))
def test_it_is_the_share_of_sets_with_a_right_one(rows, k):
    expected = [counted(row, k) for row in rows]
    assert pass_at_k(torch.tensor(rows), k).tolist() == pytest.approx(expected, abs=1e-12)


def test_it_is_unbiased():
    p, n, k = 0.3, 5, 3
    total = 0.0
    for row in itertools.product((False, True), repeat=n):
        total += p ** sum(row) * (1 - p) ** (n - sum(row)) * float(pass_at_k(torch.tensor([row]), k)[0])
    assert total == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_large_counts_are_exact():
    right = torch.zeros(1, 1024, dtype=torch.bool)
    right[0, :3] = True
    expected = 1 - (512 * 511 * 510) / (1024 * 1023 * 1022)  # all three right ones among those not drawn
    assert float(pass_at_k(right, 512)) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), k=st.integers(1, 8))
def test_chains_only_take_away_and_order_does_not_matter(seed, k):
    g = torch.Generator().manual_seed(seed)
    right, chain = (torch.rand(5, 8, generator=g) < 0.5 for _ in range(2))
    found, plain = cot_pass_at_k(right, chain, k), pass_at_k(right, k)
    assert bool((found <= plain + 1e-12).all())
    torch.testing.assert_close(found, pass_at_k(right & chain, k))
    torch.testing.assert_close(cot_pass_at_k(right, torch.ones_like(right), k), plain)
    order = torch.randperm(8, generator=g)
    torch.testing.assert_close(cot_pass_at_k(right[:, order], chain[:, order], k), found)
    if k < 8:
        assert bool((pass_at_k(right, k + 1) >= plain - 1e-12).all())


@pytest.mark.parametrize("k", [0, 4])
def test_k_must_lie_within_the_samples(k):
    with pytest.raises(ValueError, match="k: expected 1 to 3"):
        pass_at_k(torch.zeros(2, 3, dtype=torch.bool), k)


def test_shapes_and_types_are_checked():
    with pytest.raises(ValueError, match="right: expected a boolean tensor"):
        pass_at_k(torch.zeros(2, 3), 1)
    with pytest.raises(ValueError, match="chain: expected"):
        cot_pass_at_k(torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool), 1)
