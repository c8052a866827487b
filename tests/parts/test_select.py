"""Selection of trajectories."""

import pytest
import torch

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.parts.select import All, DropDegenerate


def test_groups_without_a_difference_are_dropped():
    reward = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [2.0, 0.0], [0.1, 0.0]])
    batch = Batch(
        mask=torch.ones(6, 2, dtype=torch.bool), reward=reward, group=torch.tensor([4, 4, 9, 9, 1, 9])
    )  # returns 1, 1 | 1, 0, 0.1 | 2
    assert DropDegenerate()(batch).tolist() == [False, False, True, True, False, True]
    assert All()(batch).tolist() == [True] * 6
    assert All().rounds == 1 and DropDegenerate(rounds=5).rounds == 5
    with pytest.raises(UserError, match=r"select\.rounds: expected 1 or more, got 0"):
        DropDegenerate(rounds=0)
