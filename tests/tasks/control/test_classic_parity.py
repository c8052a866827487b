"""The classic environments against Gymnasium: the same state and action give the same next one."""

from dataclasses import dataclass, field

import gymnasium
import numpy as np
import pytest
import torch

from partita.core.errors import UserError
from partita.core.spaces import Box, Discrete
from partita.tasks.control.classic import Acrobot, Cartpole, MountainCar, MountainCarContinuous, Pendulum

PI = np.pi


@dataclass
class Case:
    task: object
    id: str
    low: list  # states from which short stretches are compared
    high: list
    tolerance: float = 1e-11  # MountainCarContinuous keeps its state in float32
    kwargs: dict = field(default_factory=dict)
    attributes: dict = field(default_factory=dict)


CASES = {
    "cartpole": Case(Cartpole(), "CartPole-v1", [-2.5, -3, -0.22, -3], [2.5, 3, 0.22, 3]),
    "mountain_car": Case(MountainCar(), "MountainCar-v0", [-1.2, -0.07], [0.6, 0.07]),
    "mountain_car_goal": Case(
        MountainCar(goal_velocity=0.02), "MountainCar-v0", [0.3, -0.07], [0.6, 0.07], kwargs={"goal_velocity": 0.02}
    ),
    "mountain_car_continuous": Case(
        MountainCarContinuous(), "MountainCarContinuous-v0", [-1.2, -0.07], [0.6, 0.07], tolerance=2e-6
    ),
    "pendulum": Case(Pendulum(), "Pendulum-v1", [-9, -8], [9, 8]),
    "pendulum_moon": Case(Pendulum(gravity=1.6), "Pendulum-v1", [-9, -8], [9, 8], kwargs={"g": 1.6}),
    "pendulum_long": Case(
        Pendulum(length=1.5, mass=0.7), "Pendulum-v1", [-9, -8], [9, 8], attributes={"l": 1.5, "m": 0.7}
    ),
    "acrobot": Case(Acrobot(), "Acrobot-v1", [-PI, -PI, -4 * PI, -9 * PI], [PI, PI, 4 * PI, 9 * PI]),
    "acrobot_slow": Case(Acrobot(), "Acrobot-v1", [-PI, -PI, -2, -2], [PI, PI, 2, 2]),
    "acrobot_nips": Case(
        Acrobot(dynamics="nips"), "Acrobot-v1", [-PI, -PI, -4, -4], [PI, PI, 4, 4], attributes={"book_or_nips": "nips"}
    ),
}


def recorded(case, steps=2000, stretch=5):
    """Stretches of Gymnasium's own steps from states all over the space: arrays of what went in and came out."""
    env = gymnasium.make(case.id, disable_env_checker=True, **case.kwargs).unwrapped
    for name, value in case.attributes.items():
        setattr(env, name, value)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    states, actions, new, observations, rewards, ends = [], [], [], [], [], []
    terminated = False
    for k in range(steps):
        if k % stretch == 0 or terminated:
            kind = np.float32 if case.tolerance > 1e-9 else np.float64
            env.state = rng.uniform(case.low, case.high).astype(kind)
            env.steps_beyond_terminated = None  # CartPole's own count, else it pays 0
        action = (
            rng.integers(case.task.action_space.n)
            if isinstance(case.task.action_space, Discrete)
            else rng.uniform(case.task.action_space.low, case.task.action_space.high)
        )
        states.append(np.array(env.state, np.float64))
        actions.append(action)
        obs, reward, terminated, _, _ = env.step(action)
        new.append(np.array(env.state, np.float64))
        observations.append(obs)
        rewards.append(reward)
        ends.append(terminated)
    return [torch.tensor(np.array(x)) for x in (states, actions, new, observations, rewards, ends)]


@pytest.mark.parametrize("name", CASES)
def test_every_step_is_gymnasiums(name):
    case = CASES[name]
    states, actions, new, observations, rewards, ends = recorded(case)
    state, reward, terminated = case.task.step(states, actions, torch.Generator())
    torch.testing.assert_close(state, new, rtol=case.tolerance, atol=case.tolerance)
    torch.testing.assert_close(reward, rewards.double(), rtol=case.tolerance, atol=case.tolerance)
    assert terminated.tolist() == ends.tolist()
    torch.testing.assert_close(case.task.observe(state).float(), observations, rtol=1e-6, atol=1e-6)
    if not name.startswith("pendulum"):
        assert 0.005 < float(terminated.float().mean()) < 0.8  # both kinds of step were compared
    low, low_reward, low_ends = case.task.step(states.float(), actions, torch.Generator())
    assert low.dtype == low_reward.dtype == torch.float32
    torch.testing.assert_close(low, new.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(low_reward[low_ends == ends], rewards.float()[low_ends == ends], rtol=1e-4, atol=1e-4)
    assert float((low_ends != ends).float().mean()) <= 0.001  # at a threshold float32 may decide otherwise


@pytest.mark.parametrize("name", ["cartpole", "mountain_car", "mountain_car_continuous", "pendulum", "acrobot"])
def test_spaces_limits_and_starts_are_gymnasiums(name):
    case = CASES[name]
    env = gymnasium.make(case.id, disable_env_checker=True)
    assert case.task.horizon == env.spec.max_episode_steps
    assert case.task.observation_shape == env.observation_space.shape
    space = case.task.action_space
    if isinstance(space, Discrete):
        assert space.n == env.action_space.n
    else:
        assert space == Box(1, (float(env.action_space.low[0]),), (float(env.action_space.high[0]),))
    ours = case.task.reset(4000, torch.Generator().manual_seed(0)).numpy()
    theirs = []
    for seed in range(400):
        env.reset(seed=seed)
        theirs.append(np.array(env.unwrapped.state))
    spread = np.ptp(theirs, axis=0)
    np.testing.assert_allclose(ours.min(0), np.min(theirs, 0), atol=0.03 * spread.max())
    np.testing.assert_allclose(ours.max(0), np.max(theirs, 0), atol=0.03 * spread.max())
    np.testing.assert_allclose(ours.mean(0), np.mean(theirs, 0), atol=0.1 * spread.max())


def test_a_whole_episode_ends_by_truncation_where_gymnasiums_does():
    env = gymnasium.make("CartPole-v1", disable_env_checker=True)
    env.reset(seed=3)
    ours = Cartpole().envs(torch.zeros(1, 4), torch.Generator().manual_seed(0))
    steps, terminated, truncated = 0, False, False
    while not (terminated or truncated):
        steps += 1
        x, x_dot, angle, angle_dot = env.unwrapped.state
        ours.state = torch.tensor([[x, x_dot, angle, angle_dot]], dtype=torch.float32)  # rounding must not grow
        action = int(0.3 * x + 0.6 * x_dot + 6.0 * angle + angle_dot > 0)
        obs, reward, terminated, truncated, _ = env.step(action)
        moved = ours.step(torch.tensor([action]))
        assert (moved.reward.item(), moved.terminated.item(), moved.truncated.item()) == (reward, terminated, truncated)
        seen = moved.obs if moved.final_obs is None else moved.final_obs
        torch.testing.assert_close(seen[0], torch.tensor(obs), rtol=0, atol=1e-5)
    assert steps == 500
    assert truncated
    assert not terminated


@pytest.mark.parametrize("task", [MountainCarContinuous(), Pendulum()])
def test_actions_outside_the_bounds_are_clipped(task):
    state = task.reset(5, torch.Generator().manual_seed(1))
    high = task.action_space.high[0]
    for action in (7.0, -7.0):
        outside = task.step(state, torch.full((5, 1), action), torch.Generator())
        bound = task.step(state, torch.full((5, 1), high if action > 0 else -high), torch.Generator())
        for a, b in zip(outside, bound, strict=True):
            assert torch.equal(a, b)


def test_cartpole_golden_step():
    state, reward, terminated = Cartpole().step(
        torch.tensor([[0.1, 0.2, 0.05, -0.3]], dtype=torch.float64), torch.tensor([1]), torch.Generator()
    )
    sin, cos = np.sin(0.05), np.cos(0.05)
    u = (10.0 + 0.1 * 0.5 * 0.09 * sin) / 1.1
    angle_acc = (9.8 * sin - cos * u) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    x_acc = u - 0.05 * angle_acc * cos / 1.1
    expected = [0.1 + 0.02 * 0.2, 0.2 + 0.02 * x_acc, 0.05 - 0.02 * 0.3, -0.3 + 0.02 * angle_acc]
    np.testing.assert_allclose(state[0].numpy(), expected, rtol=0, atol=1e-13)
    assert reward.tolist() == [1.0]
    assert terminated.tolist() == [False]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Cartpole(dt=0.0), "task.dt"),
        (lambda: Cartpole(max_steps=-1), "task.max_steps"),
        (lambda: MountainCar(force=float("nan")), "task.force"),
        (lambda: MountainCarContinuous(power=-1.0), "task.power"),
        (lambda: Pendulum(gravity=float("inf")), "task.gravity"),
        (lambda: Acrobot(dynamics="bok"), "task.dynamics"),
    ],
)
def test_bad_constants_are_refused(make, field):
    with pytest.raises(UserError, match=field):
        make()
