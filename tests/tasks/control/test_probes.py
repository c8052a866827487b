"""Every probe's best value by enumeration of all action sequences."""

import itertools

import pytest
import torch

from partita.core.errors import UserError
from partita.tasks.control.probes import (
    ProbeAction,
    ProbeConstant,
    ProbeContinuous,
    ProbeDelayed,
    ProbeDiscounted,
    ProbeObservation,
    ProbeTruncated,
)

FINITE = [
    ProbeConstant(), ProbeAction(), ProbeObservation(), ProbeDelayed(), ProbeDelayed(delay=1, discount=0.7),
    ProbeDelayed(delay=2, hidden=True, discount=0.9), ProbeDiscounted(), ProbeDiscounted(discount=0.9),
    ProbeDiscounted(delay=3, discount=0.8, now=0.6),
]  # fmt: skip


def returns(task, problems, choose, steps):
    """Discounted return of the actions that `choose(t, obs)` gives, (n,) float64; until each has ended."""
    generator = torch.Generator()
    envs = task.envs(problems, generator, auto_reset=False)
    total = torch.zeros(len(problems), dtype=torch.float64)
    for t in range(steps):
        moved = envs.step(choose(t, envs.obs))
        total += task.discount**t * moved.reward.double()
    assert bool(moved.terminated.all())
    return total


@pytest.mark.parametrize("task", FINITE, ids=repr)
def test_optimal_value_and_action_by_enumeration(task):
    problems = task.problems(8, torch.Generator().manual_seed(0))
    n, steps = len(problems), task.horizon
    best = torch.full((n,), -1e9, dtype=torch.float64)
    for sequence in itertools.product(range(2), repeat=steps):
        got = returns(task, problems, lambda t, _, s=sequence: torch.full((n,), s[t]), steps)
        best = torch.maximum(best, got)
    torch.testing.assert_close(best, torch.full_like(best, task.optimal_value))
    chosen = returns(task, problems, lambda _, obs: task.optimal_action(obs), steps)
    torch.testing.assert_close(chosen, best)
    assert task.problems(3, torch.Generator()).shape[0] == 3
    assert task.envs(problems, torch.Generator()).obs.shape == (8, *task.observation_shape)


@pytest.mark.parametrize("task", [ProbeAction(), ProbeObservation(), ProbeDelayed()])
def test_the_other_action_loses(task):
    problems = task.problems(8, torch.Generator().manual_seed(0))
    worst = returns(task, problems, lambda _, obs: 1 - task.optimal_action(obs), task.horizon)
    assert worst.tolist() == [-1.0] * 8


def test_delayed_reward_comes_only_at_the_end_and_only_for_the_first_action():
    task = ProbeDelayed(delay=3)
    envs = task.envs(torch.zeros(1, 2), torch.Generator())
    moves = [envs.step(torch.tensor([a])) for a in (1, 0, 0, 0)]
    assert [m.reward.item() for m in moves] == [0.0, 0.0, 0.0, 1.0]
    assert [m.terminated.item() for m in moves] == [False, False, False, True]
    assert [m.obs[0].tolist() for m in moves[:2]] == [pytest.approx([1 / 3, 1.0]), pytest.approx([2 / 3, 1.0])]
    assert ProbeDelayed(hidden=True).observe(torch.tensor([[1.0, -1.0]])).tolist() == [pytest.approx([1 / 3])]


def test_which_action_is_best_turns_with_the_discount():
    obs = torch.zeros(1, 1)
    assert ProbeDiscounted(discount=0.5).optimal_action(obs).tolist() == [1]
    assert ProbeDiscounted(discount=0.9).optimal_action(obs).tolist() == [0]


def test_observation_signs_are_even():
    drawn = ProbeObservation().reset(10_000, torch.Generator().manual_seed(0))
    assert set(drawn.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(drawn.mean())) < 0.04


def test_truncated_probe_is_cut_and_never_ends_and_its_value_solves_the_bellman_equation():
    task = ProbeTruncated(max_steps=3, discount=0.8)
    envs = task.envs(torch.zeros(2, 1), torch.Generator())
    for _ in range(2):
        cut = [envs.step(torch.tensor([0, 1])) for _ in range(3)]
        assert [m.truncated.tolist() for m in cut] == [[False] * 2] * 2 + [[True] * 2]
        assert not any(m.terminated.any() for m in cut)
        assert all(m.reward.tolist() == [1.0, 1.0] for m in cut)
    assert task.optimal_value == pytest.approx(1.0 + 0.8 * task.optimal_value)


def test_continuous_probe_peaks_at_the_optimal_action():
    task = ProbeContinuous(gain=-0.5)
    problems = task.problems(50, torch.Generator().manual_seed(0))
    best = returns(task, problems, lambda _, obs: task.optimal_action(obs), 1)
    assert best.tolist() == [task.optimal_value] * 50
    for change in (-0.1, 0.1):
        moved = returns(task, problems, lambda _, obs, c=change: task.optimal_action(obs) + c, 1)
        assert moved.tolist() == pytest.approx([0.99] * 50, abs=1e-6)
    outside = returns(task, torch.ones(1, 1), lambda _, obs: torch.full((1, 1), 5.0), 1)
    assert outside.tolist() == pytest.approx([1.0 - 1.5**2])


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ProbeDelayed(delay=0), "task.delay"), (lambda: ProbeDiscounted(discount=1.5), "task.discount"),
        (lambda: ProbeTruncated(discount=1.0), "task.discount"), (lambda: ProbeContinuous(gain=2.0), "task.gain"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(make, field):
    with pytest.raises(UserError, match=field):
        make()
