"""The replay of utterances: what it holds, forgets, draws and saves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.lab import checkpoint
from partita.parts.utterance_replay import UtteranceReplay
from partita.policies.utterances import Utterances


def trajectory(number: int, turns: int, width: int) -> Utterances:
    """One whose tokens, columns and rewards can be told from those of any other number."""
    steps = torch.arange(turns)[None]
    return Utterances(
        tokens=torch.arange(width)[None] + 100 * number, length=torch.tensor([width]), count=torch.tensor([turns]),
        history=steps * 2, end=steps * 2 + 1, reward=number + steps / 10,
    )  # fmt: skip


def held(replay: UtteranceReplay) -> list[Utterances]:
    return [replay.take(torch.tensor([i])) for i in range(len(replay))]


def equal(a: Utterances, b: Utterances) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in vars(a))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), max_size=24), st.integers(4, 12))
def test_it_holds_the_latest_that_fit_unchanged(sizes, capacity):
    replay = UtteranceReplay(capacity)
    given_ = []
    for number, (turns, width) in enumerate(sizes):
        new = trajectory(number + 1, turns, width)
        replay.add(new)
        given_ += [new] if turns else []
        kept, total = [], 0
        for old in reversed(given_):
            total += int(old.count)
            if total > capacity:
                break
            kept.insert(0, old)
        assert len(replay) == len(kept) and replay.utterances == sum(int(k.count) for k in kept)
        assert all(equal(mine, theirs.trimmed()) for mine, theirs in zip(held(replay), kept, strict=True))


def test_many_at_once_are_those_one_by_one():
    together, apart = UtteranceReplay(7), UtteranceReplay(7)
    parts = [trajectory(i, turns, 2 + i) for i, turns in enumerate((2, 3, 1, 3, 2))]
    for part in parts:
        apart.add(part)
    wide = [p.widened(6, 3) for p in parts]
    together.add(Utterances(**{n: torch.cat([getattr(p, n) for p in wide]) for n in vars(parts[0])}))
    assert len(together) == len(apart) == 3
    assert all(equal(a, b) for a, b in zip(held(together), held(apart), strict=True))


def test_a_trajectory_larger_than_all_is_held_alone():
    replay = UtteranceReplay(2)
    replay.add(trajectory(1, 2, 5))
    replay.add(trajectory(2, 4, 9))
    assert len(replay) == 1 and replay.take(torch.tensor([0])).count.tolist() == [4]


def test_tables_are_bounded_and_written_in_place():
    replay = UtteranceReplay(40)
    for number in range(300):
        replay.add(trajectory(number, 1 + number % 3, 5))
    assert replay._tables["count"].shape[0] <= 40 and replay._tables["tokens"].dtype == torch.int32
    before = replay._tables["tokens"].data_ptr()
    for number in range(50):
        replay.add(trajectory(number, 2, 5))
    assert replay._tables["tokens"].data_ptr() == before


def test_every_trajectory_is_drawn_alike():
    replay = UtteranceReplay(100)
    for number in range(8):
        replay.add(trajectory(number, 1, 3))
    counts = replay.draw(8000, torch.Generator().manual_seed(0)).bincount(minlength=8)
    assert bool(((counts - 1000).abs() < 5 * 30).all())  # five standard deviations, sqrt(8000 * 7 / 64) = 30


@pytest.mark.parametrize("added", [0, 3, 30])
def test_what_is_saved_comes_back_and_goes_on_alike(added, tmp_path):
    replay, other = UtteranceReplay(11), UtteranceReplay(11)
    for number in range(added):
        replay.add(trajectory(number, 1 + number % 3, 2 + number % 5))
    checkpoint.save(tmp_path / "c", replay.state_dict())
    other.add(trajectory(77, 3, 3))
    other.load_state_dict(checkpoint.load(tmp_path / "c"))
    for number in range(40, 45):
        assert checkpoint.same(other.state_dict(), replay.state_dict())
        assert (len(other), other.utterances) == (len(replay), replay.utterances)
        replay.add(trajectory(number, 2, 4))
        other.add(trajectory(number, 2, 4))
        draws = [r.take(r.draw(9, torch.Generator().manual_seed(number))) for r in (replay, other)]
        assert equal(*draws)
