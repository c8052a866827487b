"""Updates that run as one compiled program do what they do without, resume, and are refused where they cannot."""

import math

import pytest
import torch

from partita.core.errors import UserError
from partita.core.registry import recipe as recipe_of
from partita.core.transitions import Transitions
from partita.lab.config import Config, Settings
from partita.loops.improve import Learners, improve
from partita.loops.replay import train
from partita.loops.run import Generators, Run
from partita.parts.target import Copy
from partita.policies.agent import Agent
from partita.policies.feed_forward import FeedForward
from partita.tasks.control.classic import Cartpole, Pendulum
from resuming import resumed_alike


def batch(seed, count=32):
    g = torch.Generator().manual_seed(seed)
    obs, action, later = (torch.randn(count, n, generator=g) for n in (3, 1, 3))
    return Transitions(obs, action.tanh(), obs[:, 0], later, torch.full((count,), 0.9))


def after(name, compile, updates=5, dtype="float32", **changes):
    recipe = recipe_of(name).but(compile=compile, lr=1e-3, steps=1, **changes).settle(Pendulum()).fresh()
    settings = recipe.equip(FeedForward(hidden=(16, 16), dtype=dtype), Pendulum())
    agent = Agent(settings.build(Pendulum(), False, Generators(0)["init"]), Generators(1)["update"])
    learners, seen = Learners(recipe, agent), []
    for i in range(updates):
        learners.begin(1)
        seen.append(improve(recipe, agent, learners, batch(i)))
    lagged = {f"lagged.{n}": p for n, p in agent.lagged.named_parameters()}
    return seen, {**agent.policy.trainable(), **lagged}, recipe, agent, learners


@pytest.mark.parametrize(
    ("name", "dtype", "changes"),
    [("sac", "bfloat16", {"max_grad_norm": 1.0}), ("td3_bc", "float32", {}), ("iql", "float32", {"weight_decay": 0.1})],
)
def test_compiled_updates_are_the_plain_ones_up_to_rounding(name, dtype, changes):
    (expected, nets, recipe, agent, _), (found, others, same, compiled, learners) = (
        after(name, compile, dtype=dtype, **changes) for compile in (False, True)
    )
    loose = 30 if dtype == "bfloat16" else 1
    for x, y in zip(found, expected, strict=True):
        assert set(x) == set(y)  # actors that are due only now and then, too
        for key in x:
            torch.testing.assert_close(x[key], y[key], rtol=1e-4 * loose, atol=1e-5 * loose)
    for key in nets:
        torch.testing.assert_close(others[key], nets[key], rtol=1e-3 * loose, atol=1e-5 * loose)
    assert math.isclose(same.temperature.alpha(), recipe.temperature.alpha(), rel_tol=1e-4)
    assert torch.equal(agent.generator.get_state(), compiled.generator.get_state())
    assert len(learners.programs) == (2 if name == "td3_bc" else 1)


def test_a_compiled_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    recipe = recipe_of("sac").but(steps=4, updates=20, batch_size=16, start=20, compile=True, lr_schedule="linear")
    resumed_alike(Config("sac", recipe, Pendulum(), FeedForward(hidden=(16,)), Settings(seed=3)), tmp_path)


def test_parts_with_a_state_of_their_own_are_refused():
    with pytest.raises(UserError, match="compile: critic value_distribution keeps a state of its own; leave --compile"):
        after("dsac_t", True)


def test_it_learns_a_discrete_task_with_networks_that_are_copied():
    recipe = recipe_of("dqn").but(steps=2, updates=6, start=20, batch_size=8, compile=True, target=Copy(every=4))
    run, task = Run(0), Cartpole()
    train(recipe, recipe.equip(FeedForward(hidden=(8,)), task).build(task, False, run.generators["init"]), task, run)
    assert all(math.isfinite(value) for row in run.metrics for value in row.values())
