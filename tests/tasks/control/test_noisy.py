"""Noise on observations: what it is, what it leaves alone, and going on from a saved state."""

import pytest
import torch

from partita.core.errors import UserError
from partita.core.spaces import Discrete
from partita.lab.config import decode, encode
from partita.tasks.control.classic import Cartpole
from partita.tasks.control.noisy import Noisy


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def started(task, n=64, seed=0, **settings):
    g = stream(seed)
    return task.envs(task.problems(n, g), g, **settings)


def left(n):
    return torch.zeros(n, dtype=torch.int64)


def test_it_is_the_other_task_in_all_but_its_observations():
    task = Noisy("cartpole", {"max_steps": 30}, sigma=0.5)
    assert task.environment == Cartpole(max_steps=30) and task.horizon == 30
    assert task.observation_shape == (4,) and task.action_space == Discrete(2)
    noisy, plain = started(task, auto_reset=False), started(Cartpole(max_steps=30), auto_reset=False)
    for _ in range(12):
        assert torch.equal(noisy.inner.obs, plain.obs) and torch.equal(noisy.obs, plain.obs + noisy.noise)
        a, b = noisy.step(left(64)), plain.step(left(64))
        assert torch.equal(a.reward, b.reward) and torch.equal(a.terminated, b.terminated)
        assert torch.equal(a.obs, noisy.obs)
    assert bool(b.terminated.all())


def test_noise_is_normal_and_new_at_every_step():
    envs = started(Noisy(sigma=0.3), 4000)
    first = envs.noise
    envs.step(left(4000))
    for z in (first, envs.noise):
        assert float(z.mean()) == pytest.approx(0, abs=0.01) and float(z.std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float((first * envs.noise).mean())) < 0.003
    correlation = torch.corrcoef(first.T) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.06


def test_without_noise_it_is_the_other_task_to_the_bit():
    found = []
    for task in (Noisy("acrobot", {"max_steps": 7}, sigma=0.0), Noisy("acrobot", {"max_steps": 7}).environment):
        envs = started(task)
        found.append(torch.stack([envs.step(left(64)).obs for _ in range(20)]))
    assert torch.equal(*found)


def test_what_ends_shows_its_last_observation_through_noise_and_starts_anew():
    envs = started(Noisy("cartpole", {"max_steps": 3}, sigma=0.1))
    assert envs.step(left(64)).final_obs is None
    envs.step(left(64))
    after = envs.step(left(64))
    assert bool(after.truncated.all())
    assert float((after.final_obs - envs.noise)[:, 1].max()) < -0.4  # pushed left for three steps
    assert float((after.obs - envs.noise).abs().max()) < 0.051  # a fresh start


def test_what_goes_on_keeps_one_draw_for_both_of_its_names():
    envs = started(Noisy("cartpole", {"max_steps": 50}, sigma=0.1))
    for _ in range(20):
        after = envs.step(left(64))
        if after.final_obs is not None:
            on = ~(after.terminated | after.truncated)
            assert torch.equal(after.final_obs[on], after.obs[on])
            return
    raise AssertionError("nothing ended")


@pytest.mark.parametrize("settings", [{}, {"auto_reset": False}])
def test_a_saved_state_goes_on_to_the_same(settings):
    task = Noisy("mountain_car", sigma=0.2)
    g = stream(3)
    envs = task.envs(task.problems(8, g), g, **settings)
    envs.step(left(8))
    held, at = envs.state_dict(), g.get_state()
    expected = [envs.step(left(8)).obs for _ in range(5)]
    other = stream(9)
    again = task.envs(task.problems(8, other), other, **settings)
    again.load_state_dict(held)
    other.set_state(at)
    assert torch.equal(again.obs, again.inner.obs + again.noise)
    assert all(torch.equal(again.step(left(8)).obs, x) for x in expected)


def test_a_simulator_that_starts_anew_when_saved_does_so_here():
    g = stream()
    task = Noisy("gym:CartPole-v1", sigma=0.2)
    envs = task.envs(task.problems(2, g), g)
    assert envs.restarts and envs.n == 2
    envs.step(left(2))
    envs.state_dict()
    assert torch.equal(envs.obs, envs.inner.obs + envs.noise)
    envs.close()


def test_a_configuration_keeps_it():
    task = Noisy("cartpole", {"max_steps": 30}, sigma=0.5)
    assert decode("task", encode(task)) == task


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": -0.1}, "task.sigma: noisy got -0.1; give a number of at least 0"),
        ({"sigma": float("nan")}, "task.sigma"),
        ({"sigma": float("inf")}, "task.sigma"),
        ({"env": "cartpol"}, "task.env: no environment 'cartpol'; did you mean cartpole"),
        ({"env_settings": {"steps": 3}}, "task.env_settings: cartpole takes other fields"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError) as error:
        _ = Noisy(**settings).environment
    assert message in str(error.value) and "\n" not in str(error.value)
