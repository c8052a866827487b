"""Rollouts in multi-turn worlds: read, act, read, act, until every episode is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.task import Outcome, Problem
from partita.estimators.anchors import text_key
from partita.estimators.masked import put_last
from partita.parts.rollout.language import judged
from partita.policies.sampling import Sampling
from partita.tasks.worlds.base import Reply, World
from partita.tasks.worlds.stage import Answer, Stage


class Row:
    """What one episode has come to: its text, its turns, and how it ended.

    why: "done"; "turns" (`max_turns` actions were taken); "context" (no room for what came, or for another action);
    "failed: ..." (the world raised, hung or died); "" while it goes on. An episode that failed scores 0.
    """

    def __init__(self, opening: Answer) -> None:
        self.text = self.said = opening.reply.observation
        self.turns: list[dict[str, Any]] = []
        self.last = opening.reply
        self.why = f"failed: {opening.failure}" if opening.failure else ""

    def acted(self, action: str, answer: Answer, most: int) -> None:
        """Take in an action and what came of it."""
        reply = answer.reply
        self.said, self.text = reply.observation, self.text + action + reply.observation
        if answer.failure:
            self.last, self.why = Reply("", 0.0, True), f"failed: {answer.failure}"
            return
        self.last = reply
        self.turns.append({"state": answer.state, "action": action, "valid": reply.valid, "reward": reply.reward})
        if reply.done:
            self.why = "done"
        elif len(self.turns) == most:
            self.why = "turns"


def converse(
    policy: Any,
    world: World,
    problems: Sequence[Problem],
    group_size: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> Batch:
    """`group_size` episodes of every problem; rows that are over wait at no cost.

    Rewards stand at the last token of the action that earned them; `turn` and `state_key` (of the state in which
    the action was taken) at every token of the action. `terminated` and `truncated` are as `Row.why` says, `failed`
    marks episodes whose world broke; `records` hold the turns in words.

    The rows whose worlds have answered act together; a slow one joins the others again when its answer is there. What
    is drawn does not depend on who waited for whom, but for rounding (rows that are computed together round together):
    the same bits come out as long as no answer takes longer than `world.patience` seconds.

    Raises UserError if every episode failed.
    """
    asked = [p for p in problems for _ in range(group_size)]
    session = policy.session([p.prompt for p in problems], group_size)
    stage = Stage(world, asked)
    try:
        rows = [Row(opening) for opening in stage.openings]
        _play(session, stage, rows, world.max_turns, sampling, generator)
    finally:
        stage.close()
    if all(row.why.startswith("failed") for row in rows):
        raise UserError(f"task {world.part_name()}: all {len(rows)} episodes {rows[0].why}")
    outcomes = [Outcome(row.last.score, row.last.parts, row.why) for row in rows]
    batch = judged(session.batch(), asked, [row.text for row in rows], outcomes)
    records = tuple({**r, "turns": tuple(row.turns)} for r, row in zip(batch.records or (), rows, strict=True))
    return _earned(batch.but(records=records), rows)


def _play(
    session: Any, stage: Stage, rows: Sequence[Row], turns: int, sampling: Sampling, generator: torch.Generator
) -> None:
    ready = {i for i, row in enumerate(rows) if not row.why}
    waiting: dict[int, str] = {}  # rows whose world has not answered, and their actions
    if any(rows[i].said for i in ready):
        _read(session, rows, ready)
    while ready or waiting:
        if ready:
            acting, away = ([i in group for i in range(len(rows))] for group in (ready, waiting))
            generation = session.act(
                sampling, generator, torch.tensor(acting), entropy=True, waiting=torch.tensor(away)
            )
            acted = generation.mask.any(1).tolist()
            for i in sorted(ready):
                if acted[i]:
                    waiting[i] = generation.texts[i]
                    stage.act(i, waiting[i])
                else:
                    rows[i].why = "context"
        ready = set()
        for i, answer in stage.answers():
            rows[i].acted(waiting.pop(i), answer, turns)
            if not rows[i].why:
                ready.add(i)
        if ready:
            _read(session, rows, ready)


def _read(session: Any, rows: Sequence[Row], ready: set[int]) -> None:
    """Let the rows that go on read what was said to them; those in which it does not fit are over."""
    whole = session.observe([row.said if i in ready else "" for i, row in enumerate(rows)]).tolist()
    for i in sorted(ready):
        if not whole[i]:
            rows[i].why = "context"
            ready.remove(i)


def _earned(batch: Batch, rows: Sequence[Row]) -> Batch:
    """Put rewards and states of the turns at their tokens, and mark how the episodes ended."""
    mask, turn = batch.mask, batch.need("turn")
    width = max(int(turn.max()) + 1, 1)
    rewards = torch.zeros(len(rows), width)
    states = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        for t, each in enumerate(row.turns):
            rewards[i, t], states[i, t] = each["reward"], text_key(each["state"])
    rewards, states = rewards.to(mask.device), states.to(mask.device)
    final = put_last(torch.ones(len(rows), device=mask.device), mask).bool()
    done = torch.tensor([row.why == "done" for row in rows], device=mask.device)[:, None]
    failed = torch.tensor([row.why.startswith("failed") for row in rows], device=mask.device)
    return batch.but(
        reward=rewards.gather(1, turn) * turn_ends(mask, turn),
        state_key=states.gather(1, turn) * mask,
        terminated=final & done,
        truncated=final & ~done,
        failed=failed if bool(failed.any()) else None,
    )


def turn_ends(mask: Tensor, turn: Tensor) -> Tensor:
    """The last token of every action, (B, T) bool."""
    goes_on = torch.zeros_like(mask)
    goes_on[:, :-1] = mask[:, 1:] & (turn[:, 1:] == turn[:, :-1])
    return mask & ~goes_on
