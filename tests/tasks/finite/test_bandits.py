"""Bandits with a hidden state: long-run rewards by hand, whole epochs against single rounds, refusals."""

import numpy as np
import pytest
import torch

from partita.core.errors import UserError
from partita.tasks.finite.bandits import DynamicalBandit, LinearBandit, MemoryBandit, SphereBandit

PAIR = LinearBandit(np.eye(2), [0.1, 0.4], [[0.5]], [[1.0, 0.0]], [0.3], sigma=0.2)


def test_long_run_rewards_by_hand():
    # h_1 = 0.1 + 0.3 (1 + 1/2 + 1/4 + ...) = 0.7
    np.testing.assert_allclose(PAIR.h, [0.7, 0.4])
    np.testing.assert_allclose(PAIR.values, [0.7, 0.4])
    np.testing.assert_allclose(PAIR.gaps, [0.0, 0.3])


def test_the_two_bandits_of_the_paper():
    made = DynamicalBandit().bandit
    np.testing.assert_allclose(made.h, [0.5625, 0.5, 1 / 9])
    assert made.radius == pytest.approx(0.2) and made.values.max() == pytest.approx(0.8125)
    assert made.arms[made.values.argmax()].tolist() == [1.0, 0.5, 0.0]
    assert np.sort(made.gaps)[1] == pytest.approx(0.03125)
    real = DynamicalBandit(kind="real").bandit
    np.testing.assert_allclose(real.h, [0.25153, -0.03630, 0.10612], atol=1e-5)
    assert real.radius == pytest.approx(0.66689, abs=1e-5) and real.known().phi == pytest.approx(2.7812, abs=1e-4)
    assert real.arms[real.values.argmax()].tolist() == [1.0, 0.0, 0.5]


def test_bounds_by_hand():
    known = PAIR.known()
    assert (known.u, known.b, known.omega, known.phi, known.rho) == pytest.approx((1, 1, 0.3, 1, 0.5))
    assert known.x == pytest.approx(2) and known.norm == pytest.approx(np.hypot(0.1, 0.4) + 0.6)
    assert known.noise == pytest.approx(0.2 * np.sqrt(1 + 0.09 / 0.75)) and known.bias == pytest.approx(0.3 * (2 + 2))
    wider = PAIR.known(0.9)
    assert wider.rho == 0.9 and wider.phi == 1 and wider.x == pytest.approx(10)
    skew = LinearBandit([[1.0]], [0.0], [[0.5, 1.0], [0.0, 0.4]], [[1.0], [1.0]], [1.0, 0.0])
    powers = [np.linalg.norm(np.linalg.matrix_power(skew.A, k), 2) / 0.5**k for k in range(200)]
    assert skew.known().phi == pytest.approx(max(powers)) and skew.known().phi > 2


@pytest.mark.parametrize("kind", ["synthetic", "real"])
def test_a_block_is_its_rounds_one_by_one(kind):
    made = DynamicalBandit(kind=kind, sigma=0.3).bandit
    block, x, rounds = made.block(5), np.array([0.3, -0.2, 0.1]), 5
    after = block.carry @ x + block.brings[2]
    rewards = []
    for _ in range(rounds):
        rewards.append(made.omega @ x + made.theta @ made.arms[2])
        x = made.A @ x + made.B @ made.arms[2]
    np.testing.assert_allclose(after, [*x, rewards[-1], sum(rewards)], atol=1e-12)
    # noise: the covariance of (x, last reward, sum) from the weight of each of the 5 (eps, eta)
    late = [[np.linalg.matrix_power(made.A, k)] for k in range(rounds)]
    covariance = np.zeros((5, 5))
    for s in range(rounds):  # noise of round s moves x from round s + 1 on, and its own reward at once
        first = late[rounds - 1 - s][0]
        seen = [made.omega @ late[t - s - 1][0] if t > s else np.zeros(3) for t in range(rounds)]
        of_state = np.vstack([first, seen[-1], np.sum(seen, 0)])
        of_reward = np.array([0, 0, 0, float(s == rounds - 1), 1.0])
        covariance += 0.09 * (of_state @ of_state.T + np.outer(of_reward, of_reward))
    np.testing.assert_allclose(block.spread @ block.spread.T, covariance, atol=1e-12)


def test_one_round_without_a_state():
    block = LinearBandit([[1.0], [2.0]], [0.5], sigma=0.0).block(1)
    assert block.carry.shape == (2, 0) and not block.spread.any()
    np.testing.assert_allclose(block.brings, [[0.5, 0.5], [1.0, 1.0]])


def test_the_order_of_arms_only_reorders():
    made = DynamicalBandit().bandit
    order = [3, 1, 5, 0, 2, 4]
    moved = LinearBandit(made.arms[order], made.theta, made.A, made.B, made.omega)
    np.testing.assert_allclose(moved.values, made.values[order])
    np.testing.assert_allclose(moved.block(3).brings, made.block(3).brings[order])


@pytest.mark.parametrize("arms", [0, 16])
def test_memory_leaves_long_run_rewards_alone(arms):
    values = [MemoryBandit(radius=r, coupling=c, arms=arms).bandit.values for r in (0.0, 0.5, 0.9) for c in (None, 0.1)]
    for found in values[1:]:
        np.testing.assert_allclose(found, values[0], atol=1e-12)
    assert MemoryBandit(radius=0.9).bandit.radius == pytest.approx(0.9)
    still = MemoryBandit(radius=0.0).bandit
    assert not still.B.any() and still.known().bias == 0
    np.testing.assert_allclose(still.theta, still.h)
    np.testing.assert_allclose(MemoryBandit(radius=0.75).bandit.theta[0], 0.25 * 0.5625)  # 1 - radius of it at once


def test_the_environment_plays_the_bandit():
    task, g = DynamicalBandit(sigma=0.0), torch.Generator().manual_seed(0)
    held, x = task.bandit, np.zeros(3)
    state, actions = task.reset(2, g), torch.tensor([5, 0])
    for _ in range(4):
        state, reward, ended = task.step(state, actions, g)
        assert reward[0] == pytest.approx(held.omega @ x + held.theta @ held.arms[5], abs=1e-6) and not ended.any()
        x = held.A @ x + held.B @ held.arms[5]
    assert state[0].tolist() == pytest.approx(x.tolist(), abs=1e-6)
    assert task.observe(state).tolist() == [[1.0], [1.0]] and task.action_space.n == 6
    noisy = DynamicalBandit(sigma=0.5)
    _, reward, _ = noisy.step(noisy.reset(20_000, g), torch.zeros(20_000, dtype=torch.int64), g)
    assert float(reward.std()) == pytest.approx(0.5, rel=0.05)


def test_spheres_are_drawn_once():
    one, same, other = (SphereBandit(drawn=d).bandit for d in (0, 0, 1))
    assert (one.arms == same.arms).all() and (one.arms != other.arms).any() and one.radius == 0
    np.testing.assert_allclose(np.linalg.norm(one.arms, axis=1), 1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LinearBandit([1.0], [1.0]), "arms: expected a table"),
        (lambda: LinearBandit([[1.0]], [1.0, 2.0]), r"theta: expected shape \(1,\)"),
        (lambda: LinearBandit([[1.0]], [1.0], [[0.5]]), r"B: expected shape \(1, 1\)"),
        (lambda: LinearBandit([[1.0]], [1.0], [[0.5, 0.1]], [[1.0]], [1.0]), r"A: expected shape \(1, 1\)"),
        (
            lambda: LinearBandit([[1.0]], [1.0], [[1.25]], [[1.0]], [1.0]),
            "A: expected a spectral radius below 1, .*1.25",
        ),
        (lambda: LinearBandit([[1.0]], [1.0], np.diag([0.5, -1.0]), [[1], [1]], [1, 1]), "the eigenvalue -1;"),
        (lambda: LinearBandit([[1.0]], [1.0], [[0.5]], [[np.nan]], [1.0]), r"B\[0, 0\]: expected a finite number"),
        (lambda: LinearBandit([[1.0], [np.inf]], [1.0]), r"arms\[1, 0\]: expected a finite number, got inf"),
        (lambda: LinearBandit([[1.0]], [1.0], sigma=-1), "sigma: expected a finite number of at least 0"),
        (lambda: LinearBandit([[1]], [1], [[0, 1], [0, 0]], [[1], [1]], [1, 1]).known(), "A: no multiple of 0"),
        (lambda: LinearBandit([[1]], [1], [[0.5, 1], [0, 0.5]], [[1], [1]], [1, 1]).known(), "give a rho above"),
        (lambda: DynamicalBandit(kind="imagined"), "task.kind"),
        (lambda: MemoryBandit(radius=1.0), "task.radius: .* give less than 1"),
        (lambda: MemoryBandit(coupling=np.inf), "task.coupling"),
        (lambda: SphereBandit(arms=0), "task.arms"),
    ],
)
def test_refusals(make, said):
    with pytest.raises(UserError, match=said):
        make()
