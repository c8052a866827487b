import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.estimators.edit import edit_distance


def _word(text):
    return torch.tensor([[ord(c) for c in text]])


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("abc", "abc", 0), ("abc", "abd", 1), ("abcd", "bcda", 2), ("aaaa", "bbbb", 4), ("flawn", "lawns", 2)],
)
def test_known_distances(a, b, distance):
    assert edit_distance(_word(a), _word(b)).tolist() == [distance]


def _by_recursion(a, b):
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i][j] = min(
                table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            )  # fmt: skip
    return table[-1][-1]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 7).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 2), min_size=n, max_size=n), min_size=2, max_size=6)
    )
)
def test_equals_the_recursion_and_is_symmetric(rows):
    table = torch.tensor(rows)
    a, b = table, table.flip(0)
    found = edit_distance(a, b)
    assert found.tolist() == [_by_recursion(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert torch.equal(found, edit_distance(b, a))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="b: expected"):
        edit_distance(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64))
