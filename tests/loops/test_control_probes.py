"""The probe ladder in control: each recipe finds the known optimum of every probe that it can solve."""

import pytest
import torch

from partita.core.registry import recipe as recipe_of
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.parts.credit import GAE, MonteCarlo
from partita.parts.rollout import Segments
from partita.policies import distributions
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.probes import (
    ProbeAction,
    ProbeConstant,
    ProbeContinuous,
    ProbeDelayed,
    ProbeDiscounted,
    ProbeObservation,
    ProbeTruncated,
)

CRITIC = {
    "ppo": dict(rollout=Segments(steps=16), batch_size=16, steps=15, lr=1e-2),
    "a2c": dict(rollout=Segments(steps=8), batch_size=32, steps=60, lr=1e-2),
}
EPISODES = {
    "reinforce": dict(batch_size=64, steps=30),
    "remax": dict(batch_size=64, steps=30),
    **{name: dict(batch_size=8, group_size=8, steps=30) for name in ("grpo", "rloo", "dr_grpo", "dapo", "cispo")},
    "gspo": dict(batch_size=8, group_size=8, steps=40, epochs=1),
}


def learnt(name, task, **changes):
    """The policy that a recipe makes of a probe, and its settled recipe."""
    numbers = CRITIC.get(name) or EPISODES[name] | {"lr": 2e-2}
    recipe = recipe_of(name).but(**(numbers | changes))
    policy = ActorCritic(hidden=(16,)).build(task, "value" in recipe.needs(), torch.Generator().manual_seed(0))
    train(recipe, policy, task, Run(0))
    return policy


def starts(task):
    return task.observe(task.problems(64, torch.Generator().manual_seed(9)))


def chance_of_the_best(policy, task):
    """Least probability of the best action over starting states."""
    obs = starts(task)
    with torch.no_grad():
        logp, _ = distributions.logp_entropy(policy.space, policy.head(obs), None, task.optimal_action(obs))
    return float(logp.exp().min())


@pytest.mark.parametrize("name", [*CRITIC, *EPISODES])
@pytest.mark.parametrize("task", [ProbeAction(), ProbeObservation(), ProbeDelayed()], ids=lambda t: t.part_name())
def test_the_best_action_is_found(name, task):
    changes = {"credit": GAE(1.0, 0.95)} if name in CRITIC else {}
    assert chance_of_the_best(learnt(name, task, **changes), task) > 0.9


@pytest.mark.parametrize("name", [*CRITIC, *EPISODES])
def test_real_valued_actions_are_found(name):
    task = ProbeContinuous()
    obs = starts(task)
    steps = {"ppo": 30, "a2c": 150}.get(name, 80)
    miss = learnt(name, task, steps=steps).act(obs, None) - task.optimal_action(obs)
    assert miss.detach().abs().mean() < 0.12


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
@pytest.mark.parametrize("discount", [0.5, 0.9])
def test_the_discount_decides_what_is_best(name, discount):
    # 0.5 at once, or 1 two steps later: best at once under 0.5 (0.25 < 0.5), later under 0.9 (0.81 > 0.5).
    task = ProbeDiscounted(discount=discount)
    credit = GAE(discount, 0.95) if name in CRITIC else MonteCarlo(discount)
    assert chance_of_the_best(learnt(name, task, credit=credit), task) > 0.9


@pytest.mark.parametrize("name", ["grpo", "rloo", "remax"])
def test_without_a_discount_waiting_is_best(name):
    task = ProbeDiscounted(discount=1.0)
    assert task.optimal_action(starts(task)).tolist() == [0] * 64
    assert chance_of_the_best(learnt(name, task), task) > 0.9


@pytest.mark.parametrize("name", CRITIC)
@pytest.mark.parametrize(
    ("task", "discount"),
    [
        (ProbeConstant(), 0.99),
        (ProbeDelayed(discount=0.7), 0.7),
        (ProbeTruncated(discount=0.8), 0.8),
    ],
    ids=lambda x: x.part_name() if hasattr(x, "part_name") else str(x),
)
def test_the_critic_finds_the_value(name, task, discount):
    policy = learnt(name, task, credit=GAE(discount, 0.95), steps=100 if name == "a2c" else 30)
    with torch.no_grad():
        value = policy.value(starts(task))
    assert float((value - task.optimal_value).abs().max()) < 0.05 * max(1.0, task.optimal_value) + 0.05
