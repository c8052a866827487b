"""A habit of calling tools without need: what tool-frugal training starts from in claims about it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch

from partita.core.batch import Batch
from partita.core.task import Problem
from partita.loops.on_policy import train
from partita.loops.run import Generators, Run
from partita.papers.baselines.sft import SFT
from partita.parts.rollout import Rollout, Sample

LESSON_FLAWS = ("early", "wrong_relation")  # half of the lessons before training end in a wrong answer
LESSONS = 64  # a step
Told = tuple[str, list[tuple[str, str]]]  # a prompt, and turns of an action and the observation that followed


def lessons(world: Any, problems: Sequence[Problem], repeats: int, generator: torch.Generator) -> list[Told]:
    """A transcript of each problem, (prompt, [(action, observation)]), in which tools are called again without need.

    Each call of the world's expert, or in every second lesson of a flawed procedure, is repeated 0 to `repeats` times.
    """
    told = []
    for i, problem in enumerate(problems):
        flaw = None if i % 2 else LESSON_FLAWS[i // 2 % len(LESSON_FLAWS)]
        episode, turns = world.begin(problem), []
        for action in world.demonstrate(problem, generator, flaw):
            answers = action.startswith("ans")
            again = 0 if answers else int(torch.randint(repeats + 1, (), generator=generator))
            turns += [(action, episode.act(action).observation) for _ in range(1 + again)]
        told.append((problem.prompt, turns))
    return told


def written(policy: Any, told: Sequence[Told]) -> Batch:
    """Transcripts as a batch, as if the policy had acted so: `mask` on actions, `inputs["attend"]` on observations."""
    prompt, prompt_mask = policy.encode([p for p, _ in told])
    rows: list[list[tuple[int, bool]]] = []
    for _, turns in told:
        pieces = [(text, acted) for turn in turns for text, acted in zip(turn, (True, False), strict=True) if text]
        tokens, mask = policy.encode([text for text, _ in pieces], special=False)
        rows.append([(t, a) for k, (_, a) in enumerate(pieces) for t in tokens[k][mask[k]].tolist()])
    width = max(map(len, rows))
    tokens = torch.tensor([[t for t, _ in r] + [0] * (width - len(r)) for r in rows], device=policy.device)
    acted = torch.tensor([[a for _, a in r] + [False] * (width - len(r)) for r in rows], device=policy.device)
    exists = torch.arange(width, device=policy.device) < torch.tensor([[len(r)] for r in rows], device=policy.device)
    return Batch(
        mask=acted, group=torch.arange(len(rows), device=policy.device),
        inputs={"tokens": tokens, "attend": exists}, context={"prompt": prompt, "prompt_mask": prompt_mask},
    )  # fmt: skip


@dataclass(frozen=True)
class _Lessons(Rollout):
    """Lessons in place of the policy's own trajectories."""

    domains = ("language",)
    repeats: int = 0

    def __call__(
        self, policy: Any, task: Any, problems: Any, group_size: int, generator: torch.Generator, needs: Set[str]
    ) -> Batch:
        batch = written(policy, lessons(task, problems, self.repeats, generator))
        with torch.no_grad():
            logp = policy.evaluate(batch).logp
        return batch.but(logp=logp, reward=torch.zeros_like(logp))


def imitate(policy: Any, world: Any, repeats: int, steps: int, seed: int) -> None:
    """Teach the policy the habit: as many steps of supervised fine-tuning on lessons."""
    recipe = SFT.but(rollout=_Lessons(repeats=repeats), steps=steps, batch_size=LESSONS, lr=2e-3)
    train(recipe, policy, world, Run(seed))


def played(policy: Any, world: Any, size: int, seed: int) -> dict[str, float]:
    """Calls for a question, success, and right answers for each call, of `size` fresh questions at temperature 1."""
    streams = Generators(seed + 1_000_003)
    asked = world.problems(size, streams["evaluation/problems"])
    batch = Sample().sample(policy, world, asked, 1, streams["evaluation/tokens"])
    calls = sum(record["parts"]["calls"] for record in batch.records or ()) / size
    success = float((batch.need("outcome") >= 1).float().mean())
    return {"calls": calls, "success": success, "productivity": success / calls if calls else 0.0}
