"""Group-in-Group Policy Optimization for LLM Agent Training (Feng et al., 2025), arXiv:2505.10978.

Changes GRPO in the slot `credit`. An episode's advantage within its group, and beside it, for every state that the
group's episodes pass through more than once, an advantage among the actions that were taken in it: what came after this
action, against what came after the others. Groups within the group cost no further rollouts.

    A(a_t) = A_E(episode) + omega * A_S(a_t)                                                               (eq. 8)
    A_E = (R - mean(R)) / F(R)    over the episodes of a problem                                           (eq. 3)
    A_S = (R_t - mean(R_t)) / F(R_t)    over the steps in the state of step t                              (eq. 7)
    R_t = sum_{k >= t} discount^{k - t} r_k,    t and k count turns                                        (eq. 5)

F is the standard deviation, or 1. Equations are numbered as the official code numbers them; the paper's text was read
second-hand only. The official runs also fine malformed actions and hold the policy to its reference: other slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_least
from partita.core.paper import Claim, Paper
from partita.estimators import anchors
from partita.estimators.groups import group_mean, group_std
from partita.papers.baselines.grpo import GRPO
from partita.parts.credit import Effect, GroupCredit, GroupRelative, Promises, check_unit

PAPER = Paper(
    key="gigpo",
    title="Group-in-Group Policy Optimization for LLM Agent Training",
    arxiv="2505.10978", authors="Feng et al.", year=2025, changes=("credit",),
)  # fmt: skip


@dataclass(frozen=True)
class GroupInGroup(GroupCredit):
    """Advantage of the episode in its group plus that of the action in its state (GiGPO, arXiv:2505.10978).

        A_t = (R - mean(R)) / std(R) + step_weight * (R_t - mean_S(R_t)) / std_S(R_t)
        R_t = sum_{k >= t} discount^{k - t} r_k
        S = {(j, k): same problem, state_k of episode j = state_t}

    (B, T), the same at every token of a turn; t and k count turns. S holds all visits, those that an episode makes
    again too; where it holds one alone, or equal returns, its part is zero. std=False leaves both divisions out;
    deviations divide by n - 1. similarity 1: states are equal where `batch.state_key` is; below 1: where their texts
    have a leader in common (`partita.estimators.anchors.leaders`), which needs a world. A response to a task without
    turns is one step, from the problem. With step_weight 0 this is `group_relative`.
    """

    step_weight: float = 1.0
    discount: float = 0.95
    std: bool = True
    similarity: float = 1.0
    eps: float = 1e-6

    domains = ("language",)

    def __post_init__(self) -> None:
        for name in ("step_weight", "eps"):
            check_least(f"credit.{name}", getattr(self, name))
        check_unit("credit.discount", self.discount)
        check_unit("credit.similarity", self.similarity)

    @property
    def promises(self) -> Promises:  # type: ignore[override]
        shift: Effect = "invariant" if self.discount == 1 or not self.step_weight else "neither"
        return Promises(shift, shift, "invariant" if self.std else "equivariant")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if self.similarity < 1 and not hasattr(task, "max_turns"):
            return (
                f"credit.similarity: task {task.part_name()} takes no turns and has no states to compare; "
                f"leave --credit.similarity out"
            )
        return super().refuses(recipe, task)

    def __call__(self, batch: Batch) -> Tensor:
        episode = GroupRelative(eps=self.eps, std=self.std)(batch)
        return episode + self.step_weight * self.step_advantage(batch)

    def step_advantage(self, batch: Batch) -> Tensor:
        """The second term without its weight, (B, T)."""
        turns = anchors.turns(batch.mask, None if batch.state_key is None else batch.turn)
        value = anchors.turn_return(turns.sum(batch.need("reward")), turns.taken, self.discount)
        state, known = self._states(batch, turns)
        anchor = anchors.same(known, batch.need("group"), state)[known]
        advantage = value[known] - group_mean(value[known], anchor)
        if self.std:
            deviation = group_std(value[known], anchor)
            advantage = torch.where(deviation > 0, advantage / (deviation + self.eps), torch.zeros_like(advantage))
        return turns.spread(torch.zeros_like(value).masked_scatter_(known, advantage))

    def _states(self, batch: Batch, turns: anchors.Turns) -> tuple[Tensor, Tensor]:
        """The key of the state that each turn began in, (B, K), and where there is one."""
        if self.similarity < 1:
            return _alike(batch, turns, self.similarity), turns.taken
        if batch.state_key is None:
            return torch.zeros_like(turns.last), turns.taken
        key = turns.at(batch.state_key)
        return key, turns.taken & (key != 0)


def _alike(batch: Batch, turns: anchors.Turns, threshold: float) -> Tensor:
    """Keys of the texts that stand for the states of each turn, (B, K); texts are compared within their problem."""
    if batch.records is None or not all("turns" in record for record in batch.records):
        raise UserError("credit.similarity: this rollout tells no texts of states; leave --credit.similarity out")
    texts: dict[int, list[str]] = {}
    places, group = turns.taken.nonzero().tolist(), batch.need("group").tolist()
    for i, k in places:
        texts.setdefault(group[i], []).append(batch.records[i]["turns"][k]["state"])
    found = {name: iter(anchors.leaders(said, threshold)) for name, said in texts.items()}
    leaders = [next(found[group[i]]) for i, _ in places]
    key = {text: anchors.text_key(text) for text in set(leaders)}
    keys = torch.tensor([key[text] for text in leaders], dtype=torch.int64, device=turns.taken.device)
    return torch.zeros_like(turns.last).masked_scatter_(turns.taken, keys)


GIGPO = GRPO.but(credit=GroupInGroup())

RECIPES = {"gigpo": GIGPO, "gigpo_mean": GIGPO.but(credit=GroupInGroup(std=False))}

CLAIM = Claim(
    statement="beats GRPO in a text world on the same rollouts, by comparing actions in states that come back",
    treatment="gigpo", control="grpo", task="keydoor", metric="success",
    settings={"task.level": 1, "policy.model": "tiny-0.3m", "steps": 15, "eval_size": 300},
    search={"lr": (5e-4, 1e-3, 2e-3)},
    dial=(
        "how many episodes of a problem meet in its states",
        (("2", {"group_size": 2, "batch_size": 32}), ("8", {"group_size": 8, "batch_size": 8})),
    ),
    analysis="0.93 against 0.90, and more so in groups of two (0.94 against 0.88), against what the dial expects. "
    "There GRPO has one other episode to compare with, while an episode's own returns to a state still tell actions "
    "apart. "
    "Tuning gave GRPO half the learning rate.",
)  # fmt: skip
