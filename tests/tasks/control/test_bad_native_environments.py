"""An environment that misbehaves in the middle of a rollout is named, with the copy and the step."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from partita.core.errors import UserError
from partita.core.registry import recipe
from partita.core.spaces import Discrete
from partita.loops.on_policy import train
from partita.loops.run import Run
from partita.parts.rollout import Segments
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.base import Native


@dataclass(frozen=True)
class Faulty(Native):
    """Counts steps in its state and goes wrong at the third, in copy 1."""

    fault: str = "reward"

    observation_shape = (2,)
    action_space = Discrete(2)
    horizon = 10

    def reset(self, n, generator, device="cpu"):
        return torch.zeros(n, 2)

    def step(self, state, action, generator):
        state = state + 1
        reward = torch.zeros(len(state))
        if bool((state[1] == 3).any()):
            if self.fault == "raise":
                raise ZeroDivisionError("by zero")
            if self.fault == "reward":
                reward[1] = torch.nan
            else:
                state = torch.where(torch.arange(len(state))[:, None] == 1, torch.inf, state)
        return state, reward, torch.zeros(len(state), dtype=torch.bool)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("reward", "task faulty: copy 1, step 2 of the rollout: reward is not finite"),
        ("obs", "task faulty: copy 1, step 3 of the rollout: obs is not finite"),
        ("raise", "task faulty: step raised ZeroDivisionError: by zero"),
    ],
)
def test_faults_are_named(name, fault, said):
    chosen = recipe(name).but(steps=1, batch_size=4)
    if name == "ppo":
        chosen = chosen.but(rollout=Segments(8))
    else:
        chosen = chosen.but(batch_size=2, group_size=2)
    policy = ActorCritic(hidden=(4,)).build(Faulty(), name == "ppo", torch.Generator())
    with pytest.raises(UserError) as error:
        train(chosen, policy, Faulty(fault), Run(0))
    assert said in str(error.value)
