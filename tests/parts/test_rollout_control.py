"""Rollouts in control: what a batch says against a replay of it, step by step."""

from dataclasses import dataclass

import pytest
import torch

from partita.core.errors import UserError
from partita.core.spaces import Discrete
from partita.parts.rollout import Sample, Segments
from partita.parts.rollout.segments import WINDOW, _count_episodes
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.base import Native

VALUE = frozenset({"value"})


@dataclass(frozen=True)
class Walk(Native):
    """State (start, steps taken); action 1 from the second step on ends the episode; cut after `limit` steps."""

    limit: int = 3

    observation_shape = (2,)
    action_space = Discrete(2)

    @property
    def horizon(self):
        return self.limit

    def reset(self, n, generator, device="cpu"):
        return torch.stack([torch.rand(n, generator=generator), torch.zeros(n)], 1)

    def step(self, state, action, generator):
        after = state + torch.tensor([0.0, 1.0])
        return after, state[:, 0] + action + 10 * state[:, 1], (action == 1) & (state[:, 1] >= 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def policy_for(task, value=True):
    policy = ActorCritic(hidden=(8,)).build(task, value, generator())
    with torch.no_grad():
        policy.module.actor[-1].weight.mul_(200)
    return policy


def expected_step(task, obs, action):
    """Reward, terminated, truncated, and the true next observation, of one step."""
    after, reward, terminated = task.step(obs[None], action[None], generator())
    return reward[0], bool(terminated[0]), bool(~terminated[0] & (after[0, 1] >= task.limit)), after[0]


def test_segments_against_a_replay():
    task, n, steps = Walk(), 4, 8
    policy, part, g = policy_for(task), Segments(steps=8).fresh(), generator(3)
    problems = task.problems(n, g)
    kinds = set()
    upcoming = problems.clone()
    for _ in range(6):
        batch = part(policy, task, problems, 1, g, VALUE)
        assert batch.mask.all() and batch.mask.shape == (n, steps)
        out = policy.evaluate(batch, entropy=True)
        torch.testing.assert_close(batch.logp, out.logp)
        torch.testing.assert_close(batch.value, out.value)
        torch.testing.assert_close(batch.entropy, out.entropy)
        obs, action = batch.inputs["obs"], batch.inputs["action"]
        assert torch.equal(obs[:, 0], upcoming)  # goes on where the last segment stopped
        for b in range(n):
            for t in range(steps):
                reward, terminated, truncated, after = expected_step(task, obs[b, t], action[b, t])
                assert batch.reward[b, t] == reward
                assert (bool(batch.terminated[b, t]), bool(batch.truncated[b, t])) == (terminated, truncated)
                last = t == steps - 1
                if truncated or (last and not terminated):
                    torch.testing.assert_close(batch.bootstrap[b, t], policy.value(after))
                else:
                    assert batch.bootstrap[b, t] == 0
                if not last:
                    begun = terminated or truncated
                    assert (obs[b, t + 1, 1] == 0) if begun else torch.equal(obs[b, t + 1], after)
                kinds.add((terminated, truncated, last))
        upcoming = part._live["envs"].obs.clone()
    assert len(kinds) == 6  # every kind of step was met, inside a segment and at its end


def test_segments_resume_from_their_state():
    task, g = Walk(), generator(3)
    policy, part = policy_for(task), Segments(steps=5).fresh()
    problems = task.problems(3, g)
    part(policy, task, problems, 1, g, VALUE)
    other, state, noise = Segments(steps=5).fresh(), part.state_dict(), g.get_state()
    on = part(policy, task, problems, 1, g, VALUE)
    h = generator()
    other.load_state_dict(state)
    h.set_state(noise)
    resumed = other(policy, task, problems, 1, h, VALUE)
    for name in ("logp", "reward", "bootstrap", "terminated"):
        assert torch.equal(getattr(on, name), getattr(resumed, name)), name
    assert part.metrics(on) == other.metrics(resumed)
    assert Segments().fresh().state_dict() == {}


def naive_episodes(segments):
    """(return, length) of finished episodes, in order of the step at which they ended, then of environment."""
    earned, lived, out = [0.0] * segments[0][0].shape[1], [0] * segments[0][0].shape[1], []
    for reward, done in segments:
        for t in range(len(reward)):
            for env in range(reward.shape[1]):
                earned[env] += float(reward[t, env])
                lived[env] += 1
                if done[t, env]:
                    out.append([earned[env], float(lived[env])])
                    earned[env], lived[env] = 0.0, 0
    return out, earned, lived


@pytest.mark.parametrize("often", [0.02, 0.3, 0.9])
def test_episodes_are_counted_as_a_loop_would(often):
    g, live = generator(), {}
    segments = [(torch.randint(-5, 9, (7, 5), generator=g).float(), torch.rand(7, 5, generator=g)) for _ in "abcd"]
    segments = [(reward, chance < often) for reward, chance in segments]
    for i, (reward, done) in enumerate(segments):
        _count_episodes(live, reward, done)
        pairs, earned, lived = naive_episodes(segments[: i + 1])
        assert live["episodes"] == len(pairs) and live["recent"] == pairs[-WINDOW:]
        assert live["running"].tolist() == earned and live["elapsed"].tolist() == lived
    assert often < 0.9 or len(pairs) > WINDOW


def test_episodes_in_groups_against_a_replay():
    task, g = Walk(), generator(3)
    policy = policy_for(task)
    problems = task.problems(5, g)
    batch = Sample()(policy, task, problems, 4, g, frozenset({"value", "greedy"}))
    obs, action = batch.inputs["obs"], batch.inputs["action"]
    assert batch.group.tolist() == [i // 4 for i in range(20)]
    assert torch.equal(obs[:, 0], problems.repeat_interleave(4, 0))
    out = policy.evaluate(batch, entropy=True)
    for name in ("logp", "value", "entropy"):
        torch.testing.assert_close(getattr(batch, name), getattr(out, name))
    lengths = set()
    for b in range(20):
        total = 0.0
        for t in range(batch.mask.shape[1]):
            if not batch.mask[b, t]:
                fields = (batch.reward, batch.terminated, batch.truncated, batch.bootstrap)
                assert not any(f[b, t] for f in fields)
                continue
            reward, terminated, truncated, after = expected_step(task, obs[b, t], action[b, t])
            total += float(reward)
            assert batch.reward[b, t] == reward
            assert (bool(batch.terminated[b, t]), bool(batch.truncated[b, t])) == (terminated, truncated)
            bootstrap = policy.value(after) if truncated else torch.zeros(())
            torch.testing.assert_close(batch.bootstrap[b, t], bootstrap)
            if terminated or truncated:
                assert not batch.mask[b, t + 1 :].any()
        assert batch.outcome[b] == pytest.approx(total)
        lengths.add((int(batch.lengths[b]), bool(batch.truncated[b].any())))
    assert {(2, False), (3, True)} <= lengths
    for i, problem in enumerate(problems):  # the baseline is what the likeliest actions earn from the same start
        state, total = problem, 0.0
        while True:
            reward, terminated, truncated, after = expected_step(task, state, policy.act(state[None], None)[0])
            total += float(reward)
            if terminated or truncated:
                break
            state = after
        assert batch.baseline[4 * i : 4 * i + 4].tolist() == pytest.approx([total] * 4)


def test_metrics_of_whole_episodes():
    task, g = Walk(), generator(3)
    batch = Sample()(policy_for(task), task, task.problems(5, g), 4, g, VALUE)
    metrics = Sample().metrics(batch)
    assert metrics["return"] == pytest.approx(float(batch.reward.sum(1).mean()))
    assert metrics["length"] == pytest.approx(float(batch.mask.sum()) / 20)
    assert metrics["truncated"] == pytest.approx(float(batch.truncated.sum()) / 20)


def test_no_critic_no_values():
    task, g = Walk(), generator(3)
    for part, group in ((Sample(), 2), (Segments(steps=4).fresh(), 1)):
        batch = part(policy_for(task, value=False), task, task.problems(2, g), group, g, frozenset())
        assert batch.value is None and batch.bootstrap is None and batch.baseline is None


def test_settings_out_of_range_name_the_field():
    for make_part, field in (
        (lambda: Segments(steps=0), "steps"),
        (lambda: Sample(temperature=0.0), "temperature"),
        (lambda: Sample(top_k=-1), "top_k"),
        (lambda: Sample(top_p=1.5), "top_p"),
        (lambda: Sample(min_p=-0.5), "min_p"),
        (lambda: Sample(max_tokens=0), "max_tokens"),
    ):
        with pytest.raises(UserError, match=rf"rollout\.{field}: expected .* got"):
            make_part()
