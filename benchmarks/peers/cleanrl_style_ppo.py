"""PPO in plain eager torch, in the manner of single-file implementations: environment steps a second on HalfCheetah.

    python -m benchmarks.peers.cleanrl_style_ppo default     # one environment x 2048 steps
    python -m benchmarks.peers.cleanrl_style_ppo many        # 16 environments x 128 steps

Our own writing, with the choices for which CleanRL's file is known: Gymnasium's wrappers clip actions and normalise
observations and rewards, environments are stepped one after another, every step asks actor and critic for an action,
its log-probability, entropy and value by `torch.distributions`, advantages go backwards step by step, each minibatch
gathers its rows and takes the value's clipped loss, Adam is as torch has it (not fused) with a rate that falls to zero.
Left out: logging. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import time

import gymnasium
import numpy as np
import torch
from benchmarks.cheetah import (
    CLIP,
    DISCOUNT,
    ENVIRONMENT,
    GAE_LAMBDA,
    MAX_NORM,
    NUMBERS,
    RATE,
    STEPS,
    VALUE_WEIGHT,
    WARM,
    Numbers,
)
from benchmarks.protocol import counted, report
from gymnasium import wrappers
from torch import Tensor, nn
from torch.distributions import Normal

LIMIT = 10.0  # of normalised observations and rewards


def environment() -> gymnasium.Env:
    """HalfCheetah within its wrappers."""
    env = wrappers.RecordEpisodeStatistics(wrappers.FlattenObservation(gymnasium.make(ENVIRONMENT)))
    env = wrappers.NormalizeObservation(wrappers.ClipAction(env))
    env = wrappers.TransformObservation(env, lambda obs: np.clip(obs, -LIMIT, LIMIT), None)
    env = wrappers.NormalizeReward(env, gamma=DISCOUNT)
    return wrappers.TransformReward(env, lambda reward: np.clip(reward, -LIMIT, LIMIT))


def network(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    """Two hidden layers of 64 with tanh, orthogonal weights."""
    sizes, layers = (inputs, 64, 64, outputs), []
    for i, scale in enumerate((2**0.5, 2**0.5, gain)):
        layer = nn.Linear(sizes[i], sizes[i + 1])
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Agent(nn.Module):
    """A Gaussian whose deviation is a parameter, and a value."""

    def __init__(self, observation: int, action: int) -> None:
        super().__init__()
        self.actor = network(observation, action, 0.01)
        self.critic = network(observation, 1, 1.0)
        self.log_std = nn.Parameter(torch.zeros(1, action))

    def forward(self, obs: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Actions, their log-probabilities, entropies and values."""
        mean = self.actor(obs)
        normal = Normal(mean, self.log_std.expand_as(mean).exp())
        action = normal.sample() if action is None else action
        return action, normal.log_prob(action).sum(1), normal.entropy().sum(1), self.critic(obs)[:, 0]


class Learner:
    """Environments, agent, optimiser, and an iteration of the loop."""

    def __init__(self, numbers: Numbers, iterations: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.numbers, self.iterations, self.count = numbers, iterations, 0
        self.random = np.random.default_rng(seed)
        self.envs = gymnasium.vector.SyncVectorEnv(
            [environment] * numbers.environments, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
        )
        self.agent = Agent(self.envs.single_observation_space.shape[0], self.envs.single_action_space.shape[0])
        self.optimiser = torch.optim.Adam(self.agent.parameters(), lr=RATE, eps=1e-5)
        self.obs = torch.Tensor(self.envs.reset(seed=seed)[0])
        self.done = torch.zeros(numbers.environments)

    def iteration(self) -> None:
        """Collect a batch and learn from it."""
        self.optimiser.param_groups[0]["lr"] = RATE * (1 - self.count / self.iterations)
        self.count += 1
        batch = self.collect()
        order = np.arange(self.numbers.batch)
        size = self.numbers.batch // self.numbers.minibatches
        for _ in range(self.numbers.epochs):
            self.random.shuffle(order)
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                self.update(*(part[rows] for part in batch))

    def collect(self) -> tuple[Tensor, ...]:
        """Observations, actions, log-probabilities, values, advantages and returns, each of (batch, ...)."""
        shape = self.numbers.steps, self.numbers.environments
        obs = torch.zeros(*shape, self.obs.shape[1])
        actions = torch.zeros(*shape, self.envs.single_action_space.shape[0])
        logp, value, reward, done = (torch.zeros(shape) for _ in range(4))
        for t in range(self.numbers.steps):
            obs[t], done[t] = self.obs, self.done
            with torch.no_grad():
                actions[t], logp[t], _, value[t] = self.agent(self.obs)
            seen, paid, terminated, truncated, _ = self.envs.step(actions[t].numpy())
            reward[t] = torch.tensor(paid)
            self.obs, self.done = torch.Tensor(seen), torch.Tensor(np.logical_or(terminated, truncated))
        with torch.no_grad():
            following = self.agent.critic(self.obs)[:, 0]
        advantage, last, over = torch.zeros(shape), torch.zeros(shape[1]), self.done
        for t in reversed(range(self.numbers.steps)):
            error = reward[t] + DISCOUNT * following * (1 - over) - value[t]
            advantage[t] = last = error + DISCOUNT * GAE_LAMBDA * (1 - over) * last
            following, over = value[t], done[t]
        return tuple(x.flatten(0, 1) for x in (obs, actions, logp, value, advantage, advantage + value))

    def update(self, *rows: Tensor) -> None:
        """One minibatch."""
        obs, action, old_logp, old_value, advantage, returns = rows
        _, logp, entropy, value = self.agent(obs, action)
        ratio = (logp - old_logp).exp()
        with torch.no_grad():
            _ = ((ratio - 1) - (logp - old_logp)).mean(), ((ratio - 1).abs() > CLIP).float().mean().item()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
        near = old_value + (value - old_value).clamp(-CLIP, CLIP)
        value_loss = 0.5 * torch.max((value - returns) ** 2, (near - returns) ** 2).mean()
        loss = policy_loss - 0.0 * entropy.mean() + VALUE_WEIGHT * value_loss
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.agent.parameters(), MAX_NORM)
        self.optimiser.step()


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("numbers", choices=list(NUMBERS))
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--warm", type=int, default=WARM)
    flags.add_argument("--steps", type=int, default=STEPS)
    args = flags.parse_args()
    torch.set_num_threads(1)
    what = NUMBERS[args.numbers]
    first, more = (max(1, -(-count // what.batch)) for count in (args.warm, args.steps))
    learner = Learner(what, first + more, args.seed)
    for _ in range(first):
        learner.iteration()
    wall, used = time.perf_counter(), time.process_time()
    for _ in range(more):
        learner.iteration()
    found = counted(more * what.batch, time.perf_counter() - wall, time.process_time() - used)
    packages = ("torch", "gymnasium", "mujoco", "numpy")
    report("cleanrl-style", packages, what="speed", seed=args.seed, threads=1, settings=str(what), **found)


if __name__ == "__main__":
    main()
