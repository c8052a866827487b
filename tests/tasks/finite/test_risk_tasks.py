"""Tasks of risk: rewards and chances by hand, and the stock beside any environment."""

import numpy as np
import pytest
import torch

from partita.core.errors import UserError
from partita.tasks.control.classic import Cartpole
from partita.tasks.control.stocked import Kinked, Stocked
from partita.tasks.finite.risk import BettingTable, Body, Windfall


def test_a_windfall_by_hand():
    mdp = Windfall(prize=10, sure=1, win=4, odds=0.5).process
    np.testing.assert_allclose(mdp.reward[:3], [[10, 10], [0, 0], [1, 2]])
    assert mdp.start.tolist() == [0.5, 0.5, 0, 0, 0] and mdp.horizon == 2 and mdp.discount == 1
    assert mdp.start @ mdp.induced()[0][-1] == pytest.approx(5 + 2)
    certain = Windfall(prize=1, sure=0, win=1, odds=1.0).process
    assert certain.reward[2].tolist() == [0, 1]


def test_bets_by_hand():
    mdp = BettingTable(rounds=3, edge=1, spread=3).process
    np.testing.assert_allclose(mdp.reward, [[0, 1, 2]] * 3)
    gains, chance = mdp.gains.toarray().reshape(3, 3, 3), mdp.transitions.toarray().reshape(3, 3, 3)
    np.testing.assert_allclose(gains[0, 2], [0, 8, -4])
    np.testing.assert_allclose(chance[:, :, 1:], 0.5)
    assert mdp.start @ mdp.induced()[0][-1] == pytest.approx(6)


def test_a_body_by_hand():
    mdp = Body(hours=4, loss=2, chance=0.25).process
    np.testing.assert_allclose(mdp.reward, [[-0.5, 0.5]] * 2)
    np.testing.assert_allclose(mdp.gains.toarray(), [[0, -2], [1, -1]] * 2)


@pytest.mark.parametrize(("below", "above", "values"), [(1, 1, [-2, 0, 3]), (4, 0, [-8, 0, 0]), (1, -1, [-2, 0, -3])])
def test_utilities_by_hand(below, above, values):
    f, x = Kinked(below, above), [-2.0, 0.0, 3.0]
    assert f(np.array(x)).tolist() == values and f(torch.tensor(x)).tolist() == values
    assert f.lipschitz == max(abs(below), abs(above))
    np.testing.assert_allclose(f(0.3 * np.array(x)), 0.3 * f(np.array(x)))


def walked(task, n=6, seed=0):
    """States, observations, rewards and ends of a random walk."""
    g = torch.Generator().manual_seed(seed)
    state, rows = task.reset(n, g), []
    for _ in range(task.horizon):
        action = torch.randint(task.action_space.n, (n,), generator=g)
        after, reward, over = task.step(state, action, g)
        rows.append((state, task.observe(state), reward, over))
        state = after
    return rows, state


@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_stock_and_what_follows_are_the_first_stock_and_the_return(discount):
    task = Stocked(low=-3.0, high=2.0, discount=discount, scale=4.0)
    rows, end = walked(task)
    first = rows[0][0][:, -3]
    assert ((first >= -3) & (first <= 2)).all() and first.unique().numel() == 6
    power = discount ** torch.arange(5, dtype=torch.float64)
    whole = first + power @ torch.stack([reward for _, _, reward, _ in rows]).double()
    torch.testing.assert_close(end[:, -3], whole / discount**5)
    for t, (state, obs, _, over) in enumerate(rows):
        torch.testing.assert_close(obs[:, -2], (state[:, -3] / 4).float())
        torch.testing.assert_close(obs[:, -1], torch.full((6,), 1 - t / 5))
        assert torch.equal(state[:, -1], first) and bool(over.all()) == (t == 4)


def test_without_its_stock_it_sees_the_first():
    rows, _ = walked(Stocked(low=2.0, high=2.0, shown=False))
    assert all((obs[:, -2] == 2.0).all() for _, obs, _, _ in rows)
    assert any((state[:, -3] != 2.0).any() for state, _, _, _ in rows)


def test_any_environment_can_have_a_stock_and_is_left_as_it_is():
    task, plain = Stocked(env="cartpole", env_settings={"max_steps": 7}), Cartpole(max_steps=7)
    mine, theirs = task.reset(5, torch.Generator().manual_seed(3)), plain.reset(5, torch.Generator().manual_seed(3))
    g = torch.Generator()
    for _ in range(7):
        action = torch.tensor([0, 1, 0, 1, 1])
        mine, reward, over = task.step(mine, action, g)
        theirs, expected, _ = plain.step(theirs, action, g)
        torch.testing.assert_close(task.observe(mine)[:, :4], plain.observe(theirs))
        assert torch.equal(reward, expected)
    assert over.all() and task.horizon == 7 and mine[:, -3].tolist() == [7.0] * 5


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Stocked(discount=0.0), "task.discount: stocked got 0.0"),
        (lambda: Stocked(low=1.0, high=0.0), "task.low: stocked got 1.0"),
        (lambda: Stocked(scale=0.0), "task.scale"),
        (lambda: Stocked(below=float("nan")), "task.below"),
        (lambda: Stocked(env="no_such").observation_shape, "no environment 'no_such'"),
        (lambda: Stocked(env_settings={"x": 1}).observation_shape, "betting_table takes other fields"),
        (lambda: Windfall(odds=2.0), "task.odds"),
        (lambda: BettingTable(rounds=0), "task.rounds"),
        (lambda: Body(chance=-1.0), "task.chance"),
    ],
)
def test_refusals(make, said):
    with pytest.raises(UserError, match=said):
        make()
