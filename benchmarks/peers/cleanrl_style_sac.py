"""SAC in plain eager torch, in the manner of single-file implementations: updates a second.

    python -m benchmarks.peers.cleanrl_style_sac --threads 1

Our own writing, with the choices for which CleanRL's file is known: a buffer in NumPy, two critics as two modules under
one Adam (torch's default, not fused), the actor and the temperature every second update but then twice on the same
batch, fresh actions without gradients for the temperature, targets moved parameter by parameter. An update is one step
of the critics; on average it contains one of the actor. Prints one JSON line.
"""

from __future__ import annotations

import numpy as np
import torch
from benchmarks.protocol import report
from benchmarks.replay import (
    ACTION,
    BATCH,
    DISCOUNT,
    HIDDEN,
    OBS,
    RATE,
    TAU,
    TRANSITIONS,
    asked,
    limit,
    speed,
    transitions,
)
from torch import Tensor, nn
from torch.nn import functional as F

DELAY = 2
LOG_STD = (-5.0, 2.0)


def network(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers with ReLU."""
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)
    )


class Learner:
    """Networks, optimisers and the update."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.random = np.random.default_rng(seed)
        self.data = transitions(seed)
        self.actor = network(OBS, 2 * ACTION)
        self.critics = [network(OBS + ACTION, 1) for _ in range(2)]
        self.targets = [network(OBS + ACTION, 1) for _ in range(2)]
        for critic, target in zip(self.critics, self.targets, strict=True):
            target.load_state_dict(critic.state_dict())
        self.log_alpha = torch.zeros(1, requires_grad=True)
        self.of_critics = torch.optim.Adam([p for c in self.critics for p in c.parameters()], lr=RATE)
        self.of_actor = torch.optim.Adam(self.actor.parameters(), lr=RATE)
        self.of_alpha = torch.optim.Adam([self.log_alpha], lr=RATE)
        self.alpha, self.count = 1.0, 0

    def act(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Squashed Gaussian actions (B, A) and their log-probabilities (B, 1)."""
        mean, spread = self.actor(obs).chunk(2, dim=-1)
        low, high = LOG_STD
        normal = torch.distributions.Normal(mean, (low + 0.5 * (high - low) * (spread.tanh() + 1)).exp())
        raw = normal.rsample()
        action = raw.tanh()
        logp = normal.log_prob(raw) - torch.log(1 - action.pow(2) + 1e-6)
        return action, logp.sum(1, keepdim=True)

    def update(self) -> None:
        drawn = self.random.integers(0, TRANSITIONS, BATCH)
        batch = {k: torch.as_tensor(v[drawn]) for k, v in self.data.items()}
        obs, given = batch["obs"], torch.cat([batch["obs"], batch["action"]], 1)
        with torch.no_grad():
            action, logp = self.act(batch["next_obs"])
            following = torch.cat([batch["next_obs"], action], 1)
            best = torch.min(*(t(following) for t in self.targets)) - self.alpha * logp
            wanted = batch["reward"] + DISCOUNT * best.view(-1)  # episodes end by their time limit alone
        losses = [F.mse_loss(c(given).view(-1), wanted) for c in self.critics]
        self.of_critics.zero_grad()
        sum(losses).backward()
        self.of_critics.step()
        self.count += 1
        if self.count % DELAY == 0:
            for _ in range(DELAY):
                self.update_actor(obs)
        with torch.no_grad():
            for critic, target in zip(self.critics, self.targets, strict=True):
                for p, t in zip(critic.parameters(), target.parameters(), strict=True):
                    t.copy_(TAU * p + (1 - TAU) * t)

    def update_actor(self, obs: Tensor) -> None:
        action, logp = self.act(obs)
        chosen = torch.cat([obs, action], 1)
        loss = (self.alpha * logp - torch.min(*(c(chosen) for c in self.critics))).mean()
        self.of_actor.zero_grad()
        loss.backward()
        self.of_actor.step()
        with torch.no_grad():
            logp = self.act(obs)[1]
        self.of_alpha.zero_grad()
        (-self.log_alpha.exp() * (logp - ACTION)).mean().backward()
        self.of_alpha.step()
        self.alpha = self.log_alpha.exp().item()


def main() -> None:
    flags = asked()
    args = flags.parse_args()
    limit(args.threads)
    learner = Learner(args.seed)

    def update(n: int) -> None:
        for _ in range(n):
            learner.update()

    found = speed("sac", update, args.seconds)
    settings = f"Adam of torch, actor {DELAY} times every {DELAY} updates"
    versions = ("torch", "numpy")
    report("cleanrl-style", versions, what="sac", seed=args.seed, threads=args.threads, settings=settings, **found)


if __name__ == "__main__":
    main()
