"""SimpleTIR: End-to-End Reinforcement Learning for Multi-Turn Tool-Integrated Reasoning (Xue et al., 2025),
arXiv:2509.02479.

What tools answer leads a policy away from the texts that it knows; there it writes unlikely tokens, turn after turn,
and the gradient of an unlikely token that is punished is large. Such trajectories show themselves by a void turn, one
that is neither a tool call nor an answer, and are left out of the update. Changes GRPO in the slot `select`:

    keep trajectory i   iff   every turn of i is a tool call or an answer

Advantages are computed before, over the whole group, so that what is left out still counts in its mean and deviation.
As in the official code, read together with summaries of the paper. That code ends a trajectory at its void turn, where
the worlds here answer `?` and go on; the update is the same. Around it, it also leaves out trajectories that fill the
context (`overlong`), and groups with too many or too few right answers (bounds 0.1 and 0.9 in its example; for 0 and 1
that is `drop_degenerate`), and clips as `dapo` does. Here the rest is GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_count
from partita.core.paper import Claim, Paper
from partita.loops.on_policy import gather, train
from partita.loops.run import Generators, Run
from partita.papers.baselines.grpo import GRPO
from partita.parts.rollout import Sample
from partita.parts.select import Select
from partita.policies.language import Language
from partita.tasks.worlds.calculator import Calculator

PAPER = Paper(
    key="simpletir",
    title="SimpleTIR: End-to-End Reinforcement Learning for Multi-Turn Tool-Integrated Reasoning",
    arxiv="2509.02479", authors="Xue et al.", year=2025, changes=("select",),
)  # fmt: skip


@dataclass(frozen=True)
class DropVoid(Select):
    """Trajectories with a void turn are left out of the update (SimpleTIR, arXiv:2509.02479).

        keep_i = 1[no turn of i is void] * 1[i was not cut at the context's length]

    A turn is void when the world could not read it: neither a tool call (or move) nor an answer. overlong: leave out
    trajectories that were cut at the context's length as well. rounds: how often in all the loop may sample to fill the
    batch again (1: never, as in the official code; smaller batches instead).
    """

    domains = ("language",)
    overlong: bool = True
    rounds: int = 1

    def __post_init__(self) -> None:
        check_count("select.rounds", self.rounds)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not hasattr(task, "open"):
            return (
                f"select drop_void judges the turns of a world, and task {task.part_name()} has none; use --task lookup"
            )
        return None

    def __call__(self, batch: Batch) -> Tensor:
        if batch.records is None:
            return torch.ones(len(batch), dtype=torch.bool, device=batch.mask.device)
        return torch.tensor([self.kept(record) for record in batch.records], device=batch.mask.device)

    def kept(self, record: dict[str, Any]) -> bool:
        """Whether the trajectory of a record enters the update."""
        if self.overlong and record["why"] == "context":
            return False
        return all(turn["valid"] for turn in record["turns"])


SIMPLETIR = GRPO.but(select=DropVoid())

RECIPES = {"simpletir": SIMPLETIR}


def punished(
    arm: str, seed: int, steps: int = 0, temperature: float = 1.5, level: int = 2, batch_size: int = 16,
    lr: float = 1e-3, model: str = "tiny-0.3m",
) -> dict[str, float]:  # fmt: skip
    """Mean norm of the gradient of one punished trajectory, for a unit of advantage, on the sampler itself.

        mean_i |grad (1 / |y_i|) sum_t log pi(y_it)|,    i: A_i < 0

    over trajectories with a void turn (`treatment`) or without (`control`), after `steps` steps of GRPO; both arms
    look at the same ones. Beside the value: how many there are, and the mean log-probability of their least likely
    tokens.
    """
    world, rng = Calculator(level=level), Generators(seed)
    policy = Language(model=model).build(world, False, rng["init"])
    recipe = GRPO.but(batch_size=batch_size, lr=lr, rollout=Sample(temperature=temperature))
    if steps:
        train(recipe.but(steps=steps), policy, world, Run(seed))
    batch, _, _ = gather(recipe, policy, world, Generators(seed + 1_000_003), 1)
    mine = DropVoid(overlong=False)(batch) != (arm == "treatment")
    batch = batch[mine & (batch.need("advantage").amin(1) < 0)]
    if not len(batch):
        raise UserError(f"temperature: {temperature} gives no such trajectory in a batch; choose a higher one")
    norms = []
    for i in range(len(batch)):
        row = batch[i : i + 1]
        loss = -(recipe.aggregate(row) * policy.evaluate(row).logp).sum()
        found = torch.autograd.grad(loss, list(policy.trainable().values()))
        norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in found]))))
    least = batch.need("logp").masked_fill(~batch.mask, 0.0).amin(1).mean()
    return {"value": sum(norms) / len(norms), "count": float(len(norms)), "least logp": float(least)}


_SETUP: dict[str, Any] = {
    "treatment": "simpletir", "control": "grpo", "task": "calculator",
    "settings": {
        "policy.model": "tiny-0.3m", "task.level": 2, "steps": 20, "batch_size": 8, "minibatches": 4,
        "max_grad_norm": None, "eval_size": 300,
    },
    "search": {"lr": (5e-4, 1e-3, 2e-3)},
    "dial": (
        "void turns, by the temperature of rollouts: one in 250, one in 9",
        (("1.0", {"rollout.temperature": 1.0}), ("1.5", {"rollout.temperature": 1.5})),
    ),
}  # fmt: skip

CLAIMS = (
    Claim(
        statement="the largest gradient norm of a run, before clipping, is below GRPO's where void turns are frequent",
        metric="grad_norm:max", kind="ratio", better="lower", **_SETUP,
        analysis="The largest norm is smaller by a third in the mean, at either frequency of void turns, but its "
        "spread over seeds is as large, and no run collapses here in 20 steps, with the filter or "
        "without: a norm of 1 is no spike.",
    ),
    Claim(statement="and it succeeds more often after training", metric="success", **_SETUP,
        analysis="No difference: both arms reach 0.97 where void turns are frequent.",
    ),
    Claim(
        statement="a punished trajectory with a void turn has a larger gradient than one without",
        treatment="void turn", control="no void turn", task="calculator", metric="gradient norm", kind="ratio",
        experiment=punished, dial=("steps of GRPO before", (("0", {"steps": 0}), ("10", {"steps": 10}))),
        analysis="What the method rests on holds: 3.3 times the gradient before training, 1.6 times after ten "
        "steps, by when the policy has learnt to avoid most void turns.",
    ),
)  # fmt: skip
