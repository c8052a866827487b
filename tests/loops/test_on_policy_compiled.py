"""Compiled updates and steps of the on-policy loop do what they do without, resume, and are refused with the reason."""

import math

import pytest
import torch

from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.lab.config import Config, Settings
from partita.loops.descent import Descent
from partita.loops.on_policy import gather, train
from partita.loops.run import Generators, Run
from partita.loops.update import minibatches
from partita.parts.regularisers import Entropy, ValueLoss
from partita.parts.rollout import Segments
from partita.parts.rollout.segments import Blocks, segment
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.base import NativeEnvs, Transition
from partita.tasks.control.classic import Cartpole, Pendulum
from resuming import resumed_alike

PPO = recipe_of("ppo").but(rollout=Segments(steps=12), batch_size=6, epochs=2, minibatches=5, lr=1e-2)


def policy_for(task, **settings):
    return ActorCritic(hidden=(8, 8), **settings).build(task, True, Generators(0)["init"])


def descended(recipe, task, compile):
    """Weights, moments and what was seen of every minibatch of one batch, most of them clipped."""
    policy = policy_for(task, normalise=True)
    recipe = recipe.but(steps=1, max_grad_norm=0.5).settle(task, policy).fresh()
    batch, _, _ = gather(recipe, policy, task, Generators(1), 1)
    batch = batch.but(weight=torch.rand(batch.mask.shape, generator=Generators(2)["any"]))
    recipe = recipe.but(compile=compile)
    learner = recipe.learner(policy.trainable())
    descend, seen = Descent(recipe, policy, learner), []
    for minibatch, _ in minibatches(recipe, policy, batch, Generators(3)):
        learner.begin(1)
        seen.append(descend(minibatch, 1))
    return seen, {**policy.trainable(), **{n: m["exp_avg_sq"] for n, m in learner.moments.items()}}, descend


def test_compiled_updates_are_the_plain_ones_up_to_rounding():
    recipe = PPO.but(regularisers=(ValueLoss(), Entropy(0.01)), weight_decay=0.1)
    (expected, nets, _), (found, others, descend) = (descended(recipe, Pendulum(), c) for c in (False, True))
    assert len(descend.programs) == 2  # 72 steps in minibatches of 14 and 15
    assert any(float(x["grad_norm"]) > 0.5 for x in expected)
    for x, y in zip(found, expected, strict=True):
        assert set(x) == set(y) and {"loss", "grad_norm", "kl", "entropy"} <= set(x)
        for name in y:
            torch.testing.assert_close(x[name], y[name], rtol=1e-3, atol=1e-5)
    for name in nets:
        torch.testing.assert_close(others[name], nets[name], rtol=1e-3, atol=1e-5)


class Renewing(NativeEnvs):
    """Draws new states at every step, as programs do."""

    def arrive(self, ahead):
        ended, final = ahead.terminated | ahead.truncated, ahead.obs
        ahead = self.renewed(ahead)
        self.state, self.elapsed, self.obs = ahead.state, ahead.elapsed, ahead.obs
        return Transition(ahead.obs, ahead.reward, ahead.terminated, ahead.truncated, final if ended.any() else None)


@pytest.mark.parametrize(
    "task", [Cartpole(max_steps=9, angle_limit=6.0), Pendulum(max_steps=7)], ids=["cartpole", "pendulum"]
)
def test_compiled_steps_are_the_plain_ones(task):
    policy, tables = policy_for(task), []
    for compiled in (False, True):
        g = Generators(4)["rollout"]
        envs = Renewing(task, task.problems(5, g), g, True)
        live = {"envs": envs, "program": Blocks(policy, envs, 14) if compiled else None}
        tables.append([segment(policy, live, 14, g, {"noise"}) for _ in range(2)] + [live, g.get_state()])
    *expected, straight, place = tables[0]
    *found, live, after = tables[1]
    assert torch.equal(place, after) and live["episodes"] == straight["episodes"] > 0
    for x, y in zip(found, expected, strict=True):
        assert bool(y.truncated.any()) and bool((y.bootstrap[:, :-1] != 0).any())
        mine, theirs = x.columns(), y.columns()
        assert set(mine) == set(theirs)
        for name in theirs:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_a_compiled_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    recipe = PPO.but(rollout=Segments(steps=3), minibatches=3, steps=4, compile=True, lr_schedule="linear")
    rows = resumed_alike(Config("ppo", recipe, Cartpole(), ActorCritic(hidden=(8,)), Settings(seed=3)), tmp_path)
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_programs_act_with_the_weights_that_are_lent_to_the_policy():
    task = Pendulum()
    policy, g = policy_for(task), Generators(4)["rollout"]
    envs = Renewing(task, task.problems(3, g), g, True)
    blocks, noise = Blocks(policy, envs, 1), policy.noise((1, 3), g)
    before = blocks(envs, noise).tables["value"]
    with policy.using({n: torch.zeros_like(p) for n, p in policy.trainable().items()}):
        assert bool((blocks(envs, noise).tables["value"] == 0).all())
    assert bool((before != 0).any())


@pytest.mark.parametrize(
    ("recipe", "task", "message"),
    [
        (recipe_of("trpo"), Cartpole(), "compile: optimiser .* looks before it moves; leave --compile out"),
        (recipe_of("ppo_kl"), Cartpole(), "compile: regularisers .* keeps a state of its own"),
        (recipe_of("grpo"), Cartpole(), "compile: programs are made of minibatches of steps"),
    ],
)
def test_what_cannot_be_one_program_is_refused_at_the_start(recipe, task, message):
    policy = policy_for(task)
    with pytest.raises(UserError, match=message):
        train(recipe.but(steps=1, compile=True), policy, task, Run(0))
