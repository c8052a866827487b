"""Gridworlds: rules by hand, and the exact solvers against independent search and rollouts."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.tasks.control.grid import MAPS, Gridworld

UP, RIGHT, DOWN, LEFT = range(4)


def play(task, actions, state=None):
    """Rewards and whether the last step terminated, without slipping."""
    generator = torch.Generator().manual_seed(0)
    state = task.reset(1, generator) if state is None else state
    rewards, terminated = [], torch.tensor([False])
    for action in actions:
        assert not terminated.item()
        state, reward, terminated = task.step(state, torch.tensor([action]), generator)
        rewards.append(reward.item())
    return rewards, terminated.item(), state


def fewest(rows):
    """Length of the shortest way, by expanding sets of (row, column, keys) level by level; pits avoided."""
    start = next((i, j) for i, row in enumerate(rows) for j, c in enumerate(row) if c == "S")
    level, seen = {(*start, frozenset())}, set()
    for length in itertools.count():
        if any(rows[i][j] == "G" for i, j, _ in level):
            return length
        seen |= level
        after = set()
        for i, j, keys in level:
            for i2, j2 in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if not (0 <= i2 < len(rows) and 0 <= j2 < len(rows[0])):
                    continue
                c = rows[i2][j2]
                if c in "#X" or (c in "ABCDEF" and c.lower() not in keys):
                    continue
                after.add((i2, j2, keys | {c} if c in "abcdef" else keys))
        level = after - seen
        if not level:
            return None


@pytest.mark.parametrize("name", MAPS)
def test_shortest_path_and_optimal_return_of_the_built_in_maps(name):
    task = Gridworld(name)
    path = task.shortest_path()
    assert path is not None
    assert len(path) == fewest(task.rows)
    rewards, terminated, _ = play(task, path)
    assert terminated
    assert sum(rewards) == pytest.approx(1.0 - 0.01 * len(path), abs=1e-5)
    assert task.optimal_return() == pytest.approx(1.0 - 0.01 * len(path), abs=1e-12)
    discounted = 0.99 ** (len(path) - 1) - 0.01 * sum(0.99**k for k in range(len(path)))
    assert task.optimal_return(0.99) == pytest.approx(discounted, abs=1e-12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_shortest_path_on_random_maps(seed):
    generator = torch.Generator().manual_seed(seed)
    symbols = "....#####aAbBX"
    cells = [symbols[k] for k in torch.randint(len(symbols), (24,), generator=generator).tolist()]
    start, goal = torch.randperm(24, generator=generator)[:2].tolist()
    cells[start], cells[goal] = "S", "G"
    rows = ["".join(cells[6 * k : 6 * k + 6]) for k in range(4)]
    task = Gridworld("/".join(rows), max_steps=200)
    path, length = task.shortest_path(), fewest(rows)
    assert (path is None) == (length is None)
    if path is not None:
        assert len(path) == length
        assert play(task, path)[1]
        assert task.optimal_return() == pytest.approx(1.0 - 0.01 * length, abs=1e-12)
    else:
        assert task.optimal_return() < 0


def test_walls_edges_keys_doors_and_pits_by_hand():
    task = Gridworld("SaA.G/.X#..", step_reward=-0.1, pit_reward=-2.0)
    moved = play(task, [UP, LEFT])  # both leave the map
    assert moved[2].item() == task.tables.starts.item()
    assert moved[0] == pytest.approx([-0.1, -0.1])
    rewards, terminated, _ = play(task, [RIGHT, RIGHT, RIGHT, RIGHT])
    assert rewards == pytest.approx([-0.1, -0.1, -0.1, 0.9])
    assert terminated
    rewards, terminated, _ = play(task, [DOWN, RIGHT])
    assert rewards == pytest.approx([-0.1, -2.1])
    assert terminated
    locked = Gridworld("aSAG")
    state = play(locked, [RIGHT])[2]
    assert torch.equal(state, locked.tables.starts)  # without the key the door is a wall
    assert locked.shortest_path() == [LEFT, RIGHT, RIGHT, RIGHT]


def test_the_observation_is_a_one_hot_cell_and_the_keys():
    task = Gridworld("Sab/#BG")
    assert task.observation_shape == (5 + 2,)
    generator = torch.Generator().manual_seed(0)
    state = task.reset(1, generator)
    assert task.observe(state).tolist() == [[1, 0, 0, 0, 0, 0, 0]]
    state = play(task, [RIGHT], state)[2]
    assert task.observe(state).tolist() == [[0, 1, 0, 0, 0, 1, 0]]
    state = play(task, [RIGHT, LEFT], state)[2]
    assert task.observe(state).tolist() == [[0, 1, 0, 0, 0, 1, 1]]  # keys stay held
    features = task.tables.features
    assert len({tuple(row) for row in features.tolist()}) == len(features)


def test_slipping_moves_in_all_directions_as_often_as_said():
    task = Gridworld("...../..S../....G", slip=0.4)
    generator = torch.Generator().manual_seed(0)
    n = 40_000
    state = task.reset(n, generator)
    new, _, _ = task.step(state, torch.full((n,), RIGHT), generator)
    following = task.tables.following[state[0]].tolist()
    share = [float((new == k).float().mean()) for k in following]
    assert share == pytest.approx([0.1, 0.7, 0.1, 0.1], abs=0.01)


def test_optimal_values_with_slip_against_rollouts_of_the_greedy_policy():
    task = Gridworld("S..../.##X./....G", slip=0.3, max_steps=12)
    tables = task.tables
    # The greedy policy of each time left, from the solver's own values of shorter tasks.
    generator = torch.Generator().manual_seed(1)
    n = 20_000
    state, alive, total = task.reset(n, generator), torch.ones(n, dtype=torch.bool), torch.zeros(n)
    for left in range(12, 0, -1):
        short = Gridworld(task.layout, slip=0.3, max_steps=left - 1) if left > 1 else None
        after = short.optimal_values() if short else torch.zeros(len(tables.features), dtype=torch.float64)
        q = tables.reward + (~tables.terminal) * after[tables.following]
        state, reward, terminated = task.step(state, q[state].argmax(1), generator)
        total = total + reward * alive
        alive = alive & ~terminated
    error = 4 * float(total.std()) / n**0.5
    assert float(total.mean()) == pytest.approx(task.optimal_return(), abs=error)
    assert task.optimal_return() < Gridworld(task.layout, max_steps=12).optimal_return() - 0.05


def test_optimal_return_weighs_goal_pit_and_steps():
    task = Gridworld("X.S...G", goal_reward=4.0, pit_reward=3.0, step_reward=-0.5)
    assert task.optimal_return() == pytest.approx(4.0 - 4 * 0.5)  # the goal; the pit would give 3 - 1
    near = Gridworld("XS....G", goal_reward=4.0, pit_reward=3.0, step_reward=-0.5)
    assert near.optimal_return() == pytest.approx(3.0 - 0.5)
    assert len(near.shortest_path()) == 5  # to the goal, whatever it pays


def test_starts_are_drawn_evenly_and_the_time_limit_counts():
    task = Gridworld("S.S/S.G", max_steps=3)
    drawn = task.reset(30_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=6)
    assert counts[task.tables.starts].tolist() == pytest.approx([10_000] * 3, rel=0.05)
    assert task.optimal_return() == pytest.approx(1.0 - 0.01 * (3 + 1 + 2) / 3)
    assert Gridworld("S...G", max_steps=3).optimal_return() == pytest.approx(-0.03)


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ("fourrooms", "four_rooms"), ("S..", "goal"), ("G..", "start"), ("S.G/..", "equal length"),
        ("S?G", "not a map symbol"), ("", "goal"),
    ],
)  # fmt: skip
def test_bad_maps_are_refused(layout, says):
    with pytest.raises(UserError, match=f"task.layout.*{says}"):
        Gridworld(layout)
    with pytest.raises(UserError, match=r"task\.slip"):
        Gridworld(slip=1.5)
