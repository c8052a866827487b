import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.estimators import anchors

few = settings(max_examples=20, deadline=None, derandomize=True)


def table(rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_what_a_reader_cannot_see_is_left_out():
    assert anchors.normalised("a3 #. \r\n  k>\t\n\n") == "a3 #.\n  k>"
    assert anchors.normalised("cafe\u0301") == "caf\u00e9"
    assert anchors.text_key("you see a key.") == anchors.text_key("you see a key. \n")


def test_pictures_stay_different():
    maps = ["# $  .#", "#  $ .#", "#  $.#", " #  $.#", "#  $.\n#"]
    assert len({anchors.text_key(m) for m in maps}) == 5


def test_keys_are_positive_and_the_same_in_every_process():
    assert anchors.text_key("start") == 5769972732201174267
    assert all(0 < anchors.text_key(str(i)) < 2**63 for i in range(100))


def test_similarity_by_hand():
    assert anchors.similarity("abcd", "abXd") == pytest.approx(2 * 3 / 8)
    assert anchors.similarity("abc", "xyz") == 0 and anchors.similarity("abc", "abc") == 1
    assert anchors.similarity("to the left door", "to a left door") == pytest.approx(2 * 13 / 30)
    assert anchors.similarity("", "") == 1 and anchors.similarity("", "a") == 0
    assert anchors.similarity("-ab-cd-", "+ab+cd+") == pytest.approx(2 * 4 / 14)  # two blocks between unequal ends
    assert anchors.similarity("abcd", "abXd", 0.75) == 0.75 and anchors.similarity("abcd", "abX", 0.9) == 0
    # a character that is frequent in a long text still counts
    assert anchors.similarity("a" * 300 + "b", "a" * 300 + "c") == pytest.approx(600 / 602)


def test_leaders_by_hand():
    texts = ["room A, lamp on", "room B, no lamp", "room A, lamp off", "room A, lamp on", "room B, no lamps"]
    low = anchors.leaders(texts, 0.9)
    assert low == [texts[0], texts[1], texts[0], texts[0], texts[1]]
    assert anchors.similarity(texts[0], texts[2]) == pytest.approx(2 * 14 / 31)
    assert anchors.leaders(texts, 0.91)[2] == texts[2]  # 0.903 is no longer enough
    assert anchors.leaders(texts, 1.0) == texts
    assert len(set(anchors.leaders(texts, 0.0))) == 1
    assert anchors.leaders([], 0.5) == []


def test_who_is_frequent_leads_and_nobody_is_led_by_a_chain():
    # b is 3/4 like a and like c, which are 1/2 like each other.
    a, b, c = "abcd", "abcx", "abyx"
    assert anchors.leaders([a, b, c], 0.7) == [a, a, c]
    assert anchors.leaders([a, b, c, b], 0.7) == [b, b, b, b]


@few
@given(st.lists(st.text("ab .", min_size=1, max_size=6), min_size=1, max_size=12), st.floats(0, 1), st.randoms())
def test_leaders_are_near_and_do_not_depend_on_order(texts, threshold, random):
    found = dict(zip(texts, anchors.leaders(texts, threshold), strict=True))
    shuffled = texts[:]
    random.shuffle(shuffled)
    assert dict(zip(shuffled, anchors.leaders(shuffled, threshold), strict=True)) == found
    for text, leader in found.items():
        assert anchors.leaders([leader], threshold) == [leader]
        plain = anchors.normalised(text)
        assert plain == leader or anchors.similarity(leader, plain) >= threshold


def test_turns_by_hand():
    # Row 0: two tokens, what the world says, one token; row 1: one turn and padding; row 2: turns 0 and 2.
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [1, 0, 1, 1, 0]], dtype=torch.bool)
    turn = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 2, 2, 0]])
    turns = anchors.turns(mask, turn)
    assert turns.taken.tolist() == [[True, True, False], [True, False, False], [True, False, True]]
    x = table([[1, 2, 4, 8, 16], [32, 0, 0, 0, 0], [64, 0, 128, 256, 0]])
    assert turns.at(x).tolist() == [[2, 8, 0], [32, 0, 0], [64, 0, 256]]
    assert turns.sum(x).tolist() == [[7, 24, 0], [32, 0, 0], [64, 0, 384]]
    assert turns.spread(table([[1, 2, 9], [3, 9, 9], [4, 9, 5]])).tolist() == [
        [1, 1, 0, 2, 0],
        [3, 0, 0, 0, 0],
        [4, 0, 5, 5, 0],
    ]


def test_without_turns_a_trajectory_is_one():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    turns = anchors.turns(mask)
    assert turns.taken.tolist() == [[True], [True]] and turns.last.tolist() == [[1], [0]]
    assert anchors.turns(mask[:0]).taken.shape == (0, 1)


def test_returns_are_discounted_by_turns():
    taken = torch.tensor([[True, True, True], [True, False, True], [True, False, False]])
    found = anchors.turn_return(table([[1, 0, 4], [1, 7, 4], [2, 7, 7]]) * taken, taken, 0.5)
    assert found.tolist() == [[2, 2, 4], [3, 0, 4], [2, 0, 0]]  # a turn that a row has not costs no discount
    assert anchors.turn_return(table([[1, 2, 4]]), taken[:1], 1.0).tolist() == [[7, 6, 4]]


def test_same_by_hand():
    where = torch.tensor([[True, True], [True, False], [True, True]])
    group, key = torch.tensor([5, 5, 9]), torch.tensor([[3, 4], [3, 3], [3, 4]])
    found = anchors.same(where, group, key)
    assert found[0, 0] == found[1, 0] != found[2, 0] and found[1, 1] == -1
    assert len({int(n) for n in found[where]}) == 4
    assert anchors.same(where, torch.zeros_like(key))[where].unique().tolist() == [0]
    large = torch.tensor([[2**62, 2**62 + 1], [2**62, 0], [1, 1]])
    assert len(anchors.same(where, large, large, key)[where].unique()) == 4


@few
@given(st.integers(0, 10**6))
def test_same_is_equality_of_all_labels(seed):
    g = torch.Generator().manual_seed(seed)
    where = torch.rand(4, 5, generator=g) < 0.8
    labels = [torch.randint(0, 3, (4, 5), generator=g), torch.randint(0, 2, (4,), generator=g)]
    found = anchors.same(where, *labels)
    cells = where.nonzero().tolist()
    for i, k in cells:
        for j, m in cells:
            alike = labels[0][i, k] == labels[0][j, m] and labels[1][i] == labels[1][j]
            assert bool(found[i, k] == found[j, m]) == bool(alike)
    assert bool((found[~where] == -1).all())


def test_errors():
    with pytest.raises(ValueError, match=r"threshold: expected a number between 0 and 1, got 1.5"):
        anchors.leaders(["a"], 1.5)
    with pytest.raises(ValueError, match="mask: expected a boolean"):
        anchors.turns(torch.ones(2, 3))
    with pytest.raises(ValueError, match="turn: expected"):
        anchors.turns(torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="label: expected"):
        anchors.same(torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.int64))
