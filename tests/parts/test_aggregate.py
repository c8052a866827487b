"""Aggregates: weights by hand, and when they agree."""

import pytest
import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.parts.aggregate import FixedLength, SequenceMean, SequenceSum, TokenMean

MASK = torch.tensor([[True, False, True, True], [True, False, False, False]])


@pytest.mark.parametrize(
    ("part", "weights"),
    [
        (TokenMean(), (1 / 4, 1 / 4)),
        (SequenceMean(), (1 / 6, 1 / 2)),
        (SequenceSum(), (1 / 2, 1 / 2)),
        (FixedLength(), (1 / 8, 1 / 8)),
        (FixedLength(length=10), (1 / 20, 1 / 20)),
    ],
)
def test_weights_by_hand(part, weights):
    expected = torch.tensor([[weights[0]], [weights[1]]]) * MASK
    torch.testing.assert_close(part(Batch(mask=MASK)), expected)


def test_means_agree_when_all_lengths_are_equal():
    batch = Batch(mask=torch.ones(3, 4, dtype=torch.bool))
    expected = torch.full((3, 4), 1 / 12)
    for part in (TokenMean(), SequenceMean(), FixedLength(), FixedLength(length=4)):
        torch.testing.assert_close(part(batch), expected)
    torch.testing.assert_close(SequenceSum()(batch), 4 * expected)


def test_an_empty_row_gets_no_weight_and_no_nan():
    batch = Batch(mask=torch.tensor([[True, True], [False, False]]))
    assert TokenMean()(batch).tolist() == [[0.5, 0.5], [0, 0]]
    assert SequenceMean()(batch).tolist() == [[0.25, 0.25], [0, 0]]
    assert not TokenMean()(Batch(mask=torch.zeros(2, 2, dtype=torch.bool))).any()


def test_a_length_below_one_is_refused():
    with pytest.raises(UserError, match=r"aggregate\.length: expected a positive number of tokens, or None, got 0"):
        FixedLength(length=0)
