"""`NativeEnvs`: resets, ends and cuts, the true last observation, and going on from a saved state."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.core.errors import UserError
from partita.core.spaces import Discrete
from partita.tasks.control.base import Native
from partita.tasks.control.classic import Acrobot, Cartpole, MountainCarContinuous, Pendulum
from partita.tasks.control.grid import Gridworld
from partita.tasks.control.lqr import Lqr


@dataclass(frozen=True)
class Counting(Native):
    """State (count, last count): counts up by one a step, ends at its last count; starts count 100, 101, ..."""

    max_steps: int = 4

    @property
    def observation_shape(self):
        return (2,)

    @property
    def action_space(self):
        return Discrete(2)

    @property
    def horizon(self):
        return self.max_steps

    def reset(self, n, generator, device="cpu"):
        start = 100.0 + torch.arange(n, device=device)
        return torch.stack((start, start + 50.0), 1)

    def step(self, state, action, generator):
        state = state + torch.tensor([1.0, 0.0])
        return state, state[:, 0], state[:, 0] >= state[:, 1]


def counting(*last, auto_reset=True, max_steps=4):
    state = torch.tensor([[0.0, x] for x in last])
    return Counting(max_steps).envs(state, torch.Generator(), auto_reset)


def test_ends_and_cuts_are_told_apart_and_the_last_observation_is_the_true_one():
    envs = counting(2.0, 4.0, 9.0)  # ends at step 2; ends at step 4, where it would also be cut; is cut at step 4
    go = torch.zeros(3, dtype=torch.int64)
    first = envs.step(go)
    assert first.final_obs is None
    assert first.obs[:, 0].tolist() == [1.0, 1.0, 1.0]
    second = envs.step(go)
    assert second.terminated.tolist() == [True, False, False]
    assert second.truncated.tolist() == [False] * 3
    assert second.reward.tolist() == [2.0, 2.0, 2.0]
    assert second.final_obs[:, 0].tolist() == [2.0, 2.0, 2.0]
    assert second.obs[:, 0].tolist() == [100.0, 2.0, 2.0]
    assert envs.elapsed.tolist() == [0, 2, 2]
    envs.step(go)
    fourth = envs.step(go)
    assert fourth.terminated.tolist() == [False, True, False]
    assert fourth.truncated.tolist() == [False, False, True]
    assert fourth.final_obs[:, 0].tolist() == [102.0, 4.0, 4.0]
    assert fourth.obs[:, 0].tolist() == [102.0, 101.0, 102.0]
    assert envs.elapsed.tolist() == [2, 0, 0]
    assert torch.equal(envs.obs, fourth.obs)


def test_without_auto_reset_the_finished_stay_finished():
    envs = counting(2.0, 4.0, 9.0, auto_reset=False)
    go = torch.zeros(3, dtype=torch.int64)
    moves = [envs.step(go) for _ in range(6)]
    assert [m.reward.tolist() for m in moves] == [
        [1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [0.0, 3.0, 3.0], [0.0, 4.0, 4.0], [0.0] * 3, [0.0] * 3,
    ]  # fmt: skip
    assert [m.terminated.tolist() for m in moves[1:4]] == [[True, False, False]] * 2 + [[True, True, False]]
    assert [m.truncated.tolist() for m in moves[1:4]] == [[False] * 3] * 2 + [[False, False, True]]
    assert moves[0].final_obs is None
    for moved in moves[1:]:
        assert torch.equal(moved.final_obs, moved.obs)
    for late in moves[3:]:
        assert late.obs[:, 0].tolist() == [2.0, 4.0, 4.0]
        assert late.terminated.tolist() == [True, True, False]
        assert late.truncated.tolist() == [False, False, True]
    assert envs.elapsed.tolist() == [2, 4, 4]


TASKS = [
    Cartpole(max_steps=30), Acrobot(max_steps=9), MountainCarContinuous(max_steps=9), Pendulum(max_steps=9),
    Lqr(noise=0.3, max_steps=9), Gridworld("key_door", slip=0.3, max_steps=9),
]  # fmt: skip


def some_actions(task, n, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    if isinstance(task.action_space, Discrete):
        return torch.randint(task.action_space.n, (steps, n), generator=generator)
    return torch.randn(steps, n, task.action_space.size, generator=generator)


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.part_name())
@pytest.mark.parametrize("auto_reset", [True, False])
def test_a_saved_state_goes_on_bit_for_bit(task, auto_reset):
    generator = torch.Generator().manual_seed(5)
    envs = task.envs(task.problems(6, generator), generator, auto_reset)
    actions = some_actions(task, 6, 50, 1)
    for action in actions[:20]:
        envs.step(action)
    saved = {k: v.clone() for k, v in envs.state_dict().items()}
    noise = generator.get_state()
    expected = [envs.step(action) for action in actions[20:]]
    other_generator = torch.Generator()
    other = task.envs(task.problems(6, other_generator), other_generator, auto_reset)
    other_generator.set_state(noise)
    other.load_state_dict(saved)
    for action, wanted in zip(actions[20:], expected, strict=True):
        got = other.step(action)
        for name in ("obs", "reward", "terminated", "truncated"):
            assert torch.equal(getattr(got, name), getattr(wanted, name)), name
    assert not envs.restarts


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.part_name())
def test_the_same_seed_gives_the_same_bits_and_nothing_global_is_drawn(task):
    def run():
        generator = torch.Generator().manual_seed(3)
        envs = task.envs(task.problems(4, generator), generator)
        return torch.stack([envs.step(a).obs for a in some_actions(task, 4, 25, 2)])

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = run()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first, run())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([t for t in TASKS if not getattr(t, "slip", getattr(t, "noise", 0))]))
def test_copies_do_not_touch_each_other(seed, task):
    """Permuting the copies permutes the outcome (environments without noise)."""
    generator = torch.Generator().manual_seed(seed)
    state = task.problems(7, generator)
    action = some_actions(task, 7, 1, seed)[0]
    order = torch.randperm(7, generator=generator)
    plain = task.step(state, action, generator)
    shuffled = task.step(state[order], action[order], generator)
    for a, b in zip(plain, shuffled, strict=True):
        torch.testing.assert_close(a[order], b, rtol=1e-6, atol=1e-6)


def test_a_native_environment_that_breaks_its_promise_is_named():
    @dataclass(frozen=True)
    class Wide(Counting):
        def observe(self, state):
            return torch.cat((state, state), 1)

    @dataclass(frozen=True)
    class Square(Counting):
        def step(self, state, action, generator):
            state, reward, terminated = super().step(state, action, generator)
            return state, reward[:, None], terminated

    with pytest.raises(UserError, match=r"task wide: observe: observation: expected \(\(1, 2\)"):
        Wide().envs(torch.zeros(1, 2), torch.Generator())
    envs = Square().envs(torch.zeros(1, 2), torch.Generator())
    with pytest.raises(UserError, match=r"task square: step: reward: expected \(\(1,\)"):
        envs.step(torch.zeros(1, dtype=torch.int64))
