"""What an update saves - answers asked twice, batches gathered together - changes nothing that it does."""

from contextlib import nullcontext

import pytest
import torch
from test_replay_compiled import batch

from partita.core.registry import recipe as recipe_of
from partita.loops import replay
from partita.loops.improve import Learners, improve
from partita.loops.run import Generators, Run
from partita.parts.replay import PrioritisedReplay, UniformReplay
from partita.policies.agent import Agent
from partita.policies.feed_forward import FeedForward
from partita.tasks.control.classic import Pendulum
from partita.tasks.offline.episodes import Episodes


def updated(name, count=4):
    recipe = recipe_of(name).but(lr=1e-3, steps=1).settle(Pendulum()).fresh()
    policy = recipe.equip(FeedForward(hidden=(16, 16)), Pendulum()).build(Pendulum(), False, Generators(0)["init"])
    policy.module.double()
    agent = Agent(policy, Generators(1)["update"])
    agent.alpha = agent.alpha.double()
    learners, calls = Learners(recipe, agent), []
    for networks in (policy.module, agent.lagged):
        for part in (networks.actor, networks.critic, networks.value):
            if part is not None:
                part.register_forward_hook(lambda *_: calls.append(1))
    for i in range(count):
        learners.begin(1)
        steps = batch(i).over({k: x.double() for k, x in batch(i).columns().items()})
        improve(recipe, agent, learners, steps)
    return dict(policy.module.named_parameters()), len(calls)


@pytest.mark.parametrize(
    ("name", "fewer"),
    [("td3_bc", 2), ("iql", 4), ("cql", 4), ("edac", 0), ("sac", 0), ("td3", 0), ("odice", None), ("riql", None)],
)
def test_answers_that_are_kept_change_no_update(name, fewer, monkeypatch):
    kept, calls = updated(name)
    monkeypatch.setattr(Agent, "update", lambda agent: nullcontext())
    computed, all_calls = updated(name)
    for key, parameter in kept.items():
        torch.testing.assert_close(parameter, computed[key], rtol=1e-9, atol=1e-12)
    assert calls <= all_calls if fewer is None else calls == all_calls - fewer


class Recorded(Pendulum):
    """Random steps, and nothing to act in."""

    @property
    def episodes(self):
        held, never = batch(7, 60), torch.zeros(60, dtype=torch.bool)
        end = torch.arange(60) % 20 == 19
        return Episodes(held.obs, held.action, held.reward, held.next_obs, never, end, torch.arange(60) // 20)


@pytest.mark.parametrize("changes", [{}, {"n_step": 3}])
def test_batches_gathered_together_are_those_gathered_one_by_one(changes, monkeypatch):
    def learnt(ahead):
        monkeypatch.setattr(replay, "AHEAD", 8 * ahead)
        recipe = recipe_of("td3_bc").but(steps=2, updates=7, batch_size=8, **changes)
        run, task = Run(0), Recorded()
        policy = recipe.equip(FeedForward(hidden=(8,)), task).build(task, False, run.generators["init"])
        replay.train(recipe, policy, task, run)
        return policy.state_dict(), run.generators["replay"].get_state()

    (one, state), (several, other) = learnt(1), learnt(3)
    assert all(torch.equal(x, several[name]) for name, x in one.items()) and torch.equal(state, other)


@pytest.mark.parametrize(("part", "most"), [(UniformReplay(), 5), (PrioritisedReplay(), 1)])
def test_nothing_is_gathered_ahead_of_what_decides_on_it(part, most, monkeypatch):
    counts = []
    real = replay.drawn
    monkeypatch.setattr(
        replay, "drawn", lambda recipe, store, count, g: counts.append(count) or real(recipe, store, count, g)
    )
    recipe, run = recipe_of("td3_bc").but(steps=1, updates=5, batch_size=8, replay=part), Run(0)
    policy = recipe.equip(FeedForward(hidden=(8,)), Recorded()).build(Recorded(), False, run.generators["init"])
    replay.train(recipe, policy, Recorded(), run)
    assert max(counts) == most and sum(counts) == 5
    acting, run = recipe_of("sac").but(steps=1, updates=5, batch_size=8, start=10), Run(0)
    policy = acting.equip(FeedForward(hidden=(8,)), Pendulum()).build(Pendulum(), False, run.generators["init"])
    counts.clear()
    replay.train(acting, policy, Pendulum(), run)
    assert counts == [1] * 5  # each may be of what was lived since the one before
