"""Crossroads: walks and returns by hand, who is preferred, and the winner of the game of beacons."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.estimators import games
from partita.tasks.control.crossroads import Crossroads

FEW = settings(max_examples=20, deadline=None, derandomize=True)
B0, B1, B2 = [0.0, 1.0], [-math.sqrt(0.75), -0.5], [math.sqrt(0.75), -0.5]


def walk(task, actions, seed=0):
    """Observations (T, 3), rewards and ends of one walk."""
    generator = torch.Generator().manual_seed(seed)
    state, rows, rewards, ends = task.reset(1, generator), [], [], []
    for action in actions:
        rows.append(task.observe(state)[0])
        state, reward, over = task.step(state, torch.tensor([action]), generator)
        rewards.append(float(reward))
        ends.append(bool(over))
    return torch.stack(rows), rewards, ends, state


def ending(*places, half=(0.0, 0.0)):
    return torch.tensor([[*half, *place] for place in places], dtype=torch.float64)


def test_a_walk_by_hand():
    task = Crossroads(steps=4, speed=0.5, scatter=0.0, start=0.25, worth=(1.0, 2.0, 4.0))
    obs, rewards, ends, state = walk(task, [[0.0, 0.5], [3.0, 0.0], [-1.0, 0.25], [0.0, -1.0]])
    assert obs[:, 2].tolist() == [0.0, 0.25, 0.5, 0.75]
    torch.testing.assert_close(obs[:, :2], torch.tensor([[0.0, 0.25], [0.0, 0.5], [0.5, 0.5], [0.0, 0.625]]))
    assert ends == [False, False, False, True] and rewards[:3] == [0.0] * 3
    assert state[0].tolist() == pytest.approx([0.0, 0.125, 4.0])
    assert rewards[3] == pytest.approx(1.0 - 0.875)


def test_walls_hold_and_the_start_is_scattered_evenly():
    task = Crossroads(steps=20, speed=1.0)
    assert walk(task, [[1.0, -1.0]] * 3)[3][0].tolist() == [1.5, -1.5, 3.0]
    first = task.reset(4000, torch.Generator().manual_seed(0))
    assert first[:, 0].abs().max() <= 0.05 and (first[:, 1] - 0.5).abs().max() <= 0.05
    assert first[:, :2].mean(0).tolist() == pytest.approx([0.0, 0.5], abs=2e-3)
    torch.testing.assert_close(first, task.reset(4000, torch.Generator().manual_seed(0)))


def test_what_the_rater_sees_is_where_a_walk_was():
    task = Crossroads(steps=4, speed=0.5, scatter=0.0)
    actions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-9.0, 0.0], [0.0, 0.5]])
    obs, _, _, state = walk(task, actions.tolist())
    batch = Batch(mask=torch.ones(1, 4, dtype=torch.bool), inputs={"obs": obs[None], "action": actions[None]})
    torch.testing.assert_close(task.seen(batch), torch.cat((obs[2, :2], state[0, :2]))[None])


def test_regions_and_returns_at_the_beacons():
    task = Crossroads()
    seen = ending(B0, B1, B2, [0.1, 0.3], [-2.0, 0.0], [2.0, 0.0])
    assert task.regions(seen).tolist() == [0, 1, 2, 0, 1, 2]
    assert task.worth_of(seen[:3, 2:]).tolist() == pytest.approx([0.0, 0.25, 0.5])


def test_preferences_by_hand():
    walks = ending(B0, B2, [0.0, 0.5])  # returns 0, 0.5 and -0.5
    order = Crossroads(noise=0.5).compare(walks, walks)
    s = [1 / (1 + math.exp(-x)) for x in (1.0, 2.0)]
    assert order[1].tolist() == pytest.approx([s[0], 0.5, s[1]])
    assert Crossroads(noise=0.0).compare(walks, walks).tolist() == [[0.5, 0, 1], [1, 0.5, 1], [0, 0, 0.5]]
    task = Crossroads(noise=0.5, intransitive=1.0, strengths=(1.0, 0.5, 0.25))
    beacons = ending(B0, B1, B2)
    # 1 beats 0 by its strength 0.5, 2 beats 1 by 0.25, 0 beats 2 by 1
    beats = [1 / (1 + math.exp(-x)) for x in (2.0, 1.0, 0.5)]
    round_ = task.compare(beacons, beacons)
    assert [float(round_[0, 2]), float(round_[1, 0]), float(round_[2, 1])] == pytest.approx(beats)
    mixed = task.but(intransitive=0.25).compare(beacons, beacons)
    torch.testing.assert_close(mixed, 0.75 * task.but(intransitive=0.0).compare(beacons, beacons) + 0.25 * round_)


def test_turning_back_is_seen_of_the_path_alone():
    task = Crossroads(noise=1.0, non_markovian=1.0)
    back, on = ending(B0, half=(0.0, -0.5)), ending(B0, half=(0.0, 0.5))
    assert float(task.compare(back, on)) == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert float(task.but(non_markovian=0.0).compare(back, on)) == 0.5
    half = task.but(non_markovian=0.5)
    assert float(half.compare(back, on)) == pytest.approx(1 / (1 + math.exp(-0.5)))


@FEW
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.0, 0.3]))
def test_preferences_are_fair(seed, c, m, noise):
    task = Crossroads(intransitive=c, non_markovian=m, noise=noise, strengths=(1.0, 0.2, 0.7))
    walks = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    chances = task.compare(walks, walks)
    assert chances.dtype == torch.float64 and 0 <= float(chances.min()) <= float(chances.max()) <= 1
    torch.testing.assert_close(chances + chances.T, torch.ones_like(chances))
    torch.testing.assert_close(task.compare(walks[:2], walks), chances[:2])


def test_the_winner_of_the_game_is_as_the_strengths_say():
    task = Crossroads(intransitive=1.0, strengths=(1.0, 0.5, 0.25), noise=0.5)
    edge = [math.tanh(x / (2 * 0.5)) for x in task.strengths]
    # each beacon as often as the other two differ: 0 by the duel of 2 with 1, and so on
    share = torch.tensor([edge[2], edge[0], edge[1]], dtype=torch.float64)
    torch.testing.assert_close(task.game.equilibrium.exp(), share / share.sum(), rtol=1e-6, atol=1e-8)
    assert float(task.game.gap(task.game.equilibrium)) == pytest.approx(0.0, abs=1e-9)
    pure = torch.eye(3, dtype=torch.float64)
    gaps = games.exploitability(task.game.preference, pure)
    assert gaps.tolist() == pytest.approx([edge[1], edge[2], edge[0]])
    assert Crossroads().game.equilibrium.exp().tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"steps": 3}, "steps"), ({"steps": 0}, "steps"), ({"speed": 0.0}, "speed"), ({"noise": -1.0}, "noise"),
        ({"scatter": -0.1}, "scatter"), ({"start": math.nan}, "start"), ({"intransitive": 1.5}, "intransitive"),
        ({"non_markovian": -0.1}, "non_markovian"), ({"worth": (1.0, math.inf, 0.0)}, "worth"),
        ({"strengths": (1.0, -1.0, 0.0)}, "strengths"), ({"strengths": (1.0, 1.0)}, "strengths"),
    ],
)  # fmt: skip
def test_bad_settings_name_the_field(settings, field):
    with pytest.raises(UserError, match=rf"task\.{field}: crossroads got .*; give") as raised:
        Crossroads(**settings)
    assert "\n" not in str(raised.value)
