"""Rollouts in multi-turn worlds: read, act, read, act, until every episode is over."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.task import Outcome, Problem
from partita.parts.rollout.language import judged
from partita.policies.sampling import Sampling
from partita.tasks.worlds.base import Reply, World


def state_hash(state: str) -> int:
    """A positive 63-bit hash of a canonical state, the same in every process."""
    return int.from_bytes(hashlib.blake2b(state.encode(), digest_size=8).digest(), "big") >> 1 | 1


def converse(
    policy: Any,
    world: World,
    problems: Sequence[Problem],
    group_size: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> Batch:
    """`group_size` episodes of every problem, all rows in step; rows that are over wait at no cost.

    Rewards stand at the last token of the action that earned them; `turn` and `state_key` (of the state in which
    the action was taken) at every token of the action. An episode is truncated after `max_turns` actions, or when
    the next action no longer fits into the context.
    """
    asked = [p for p in problems for _ in range(group_size)]
    session = policy.session([p.prompt for p in problems], group_size)
    episodes = [world.open(p) for p in asked]
    opening = [e.observation for e in episodes]
    if any(opening):
        session.observe(opening)
    count = len(asked)
    texts = list(opening)
    last: list[Reply] = [Reply("", 0.0, False)] * count
    alive = [True] * count
    rewards, states = torch.zeros(count, world.max_turns), torch.zeros(count, world.max_turns, dtype=torch.int64)
    for turn in range(world.max_turns):
        generation = session.act(sampling, generator, torch.tensor(alive), entropy=True)
        acted = generation.mask.any(1).tolist()
        said = [""] * count
        for i, episode in enumerate(episodes):
            alive[i] = alive[i] and acted[i]
            if not alive[i]:
                continue
            states[i, turn] = state_hash(episode.state)
            last[i] = reply = episode.act(generation.texts[i])
            rewards[i, turn] = reply.reward
            texts[i] += generation.texts[i] + reply.observation
            alive[i], said[i] = not reply.done, reply.observation
        if not any(alive):
            break
        if turn + 1 < world.max_turns:
            session.observe([s if a else "" for s, a in zip(said, alive, strict=True)])
    for episode in episodes:
        episode.close()
    outcomes = [Outcome(r.score, r.parts, "done" if r.done else "cut") for r in last]
    batch = judged(session.batch(), asked, texts, outcomes)
    return _earned(batch, rewards.to(batch.mask.device), states.to(batch.mask.device), [r.done for r in last])


def _earned(batch: Batch, rewards: Tensor, states: Tensor, done: Sequence[bool]) -> Batch:
    """Put rewards and states per turn, (B, turns), at the tokens of the turns."""
    mask, turn = batch.mask, batch.need("turn")
    goes_on = torch.zeros_like(mask)
    goes_on[:, :-1] = mask[:, 1:] & (turn[:, 1:] == turn[:, :-1])
    ends = mask & ~goes_on  # the last token of every action
    final = ends & (ends.flip(1).cumsum(1).flip(1) == 1)  # the last token of the last action
    over = torch.tensor(done, device=mask.device)[:, None]
    return batch.but(
        reward=rewards.gather(1, turn) * ends,
        state_key=states.gather(1, turn) * mask,
        terminated=final & over,
        truncated=final & ~over,
    )
