"""SALT: Step-level Advantage Assignment for Long-horizon Agents via Trajectory Graph (Li et al., 2025),
arXiv:2510.20022.

Changes GRPO or RLOO in the slot `credit`. The trajectories of a problem are laid over each other as a graph, states its
nodes and actions its edges. A step that several trajectories share is one edge, which gets the mean of their
advantages: what good and bad trajectories have in common is neither praised nor blamed. A step of one trajectory alone
keeps its advantage, so that the credit lies where trajectories part. Nothing more is sampled.

    A(e) = mean(A_i over the steps that are edge e)

As in the paper's abstract, and as Yao et al. (2026), arXiv:2609.28963, tell it in their appendix A.3: means over equal
transitions (s, a, s'), with no word of what came before. That is `look_back` 0 where state and action fix what follows;
whether the paper itself asks for a common history is not known here, and a longer `look_back` is for those who want it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_least
from partita.core.paper import Claim, Paper
from partita.estimators import anchors
from partita.estimators.groups import group_mean
from partita.papers.baselines.grpo import GRPO
from partita.papers.baselines.rloo import RLOO
from partita.parts.credit import GroupCredit, GroupRelative, LeaveOneOut, Promises

PAPER = Paper(
    key="salt",
    title="SALT: Step-level Advantage Assignment for Long-horizon Agents via Trajectory Graph",
    arxiv="2510.20022", authors="Li et al.", year=2025, changes=("credit",),
)  # fmt: skip


@dataclass(frozen=True)
class TrajectoryGraph(GroupCredit):
    """Group-based advantages, averaged over the steps that trajectories share (SALT, arXiv:2510.20022).

        A_t = mean(A_j over the steps (j, k) with edge_k = edge_t)
        edge_t = (problem, state_t, action_t, the `look_back` steps before: their states and actions)

    A_j: advantage of trajectory j by `base`: `grpo` (`group_relative`, with `eps`) or `rloo` (`leave_one_out`). (B, T),
    the same at every token of a turn. An action is its text as the policy wrote it, blanks at the ends of lines apart,
    or its tokens where the rollout keeps no texts; the state is `batch.state_key`. A step that a trajectory takes twice
    counts twice. look_back: 0 shares every step of equal state and action; with more, as many steps before must be
    equal too, or the beginning. Without shared steps, and in tasks without turns, this is `base`.
    """

    base: Literal["grpo", "rloo"] = "grpo"
    look_back: int = 0
    eps: float = 1e-6

    domains = ("language",)

    def __post_init__(self) -> None:
        if self.base not in ("grpo", "rloo"):
            raise UserError(f"credit.base: expected grpo or rloo, got {self.base!r}")
        if self.look_back < 0:
            raise UserError(f"credit.look_back: expected 0 or more turns, got {self.look_back}")
        check_least("credit.eps", self.eps)

    @property
    def promises(self) -> Promises:  # type: ignore[override]
        return Promises("invariant", "invariant", "invariant" if self.base == "grpo" else "equivariant")

    def __call__(self, batch: Batch) -> Tensor:
        advantage = GroupRelative(eps=self.eps)(batch) if self.base == "grpo" else LeaveOneOut()(batch)
        if batch.state_key is None:
            return advantage
        turns = anchors.turns(batch.mask, batch.turn)
        edge = self.edges(batch, turns)
        value, known = turns.at(advantage), edge >= 0
        return turns.spread(value.masked_scatter(known, group_mean(value[known], edge[known])))

    def edges(self, batch: Batch, turns: anchors.Turns) -> Tensor:
        """A number for each step that the graph holds, (B, K), equal where steps are shared; -1 elsewhere."""
        state = turns.at(batch.need("state_key"))
        known = turns.taken & (state != 0)
        step = anchors.same(known, batch.need("group"), state, actions(batch, turns))
        before = [torch.full_like(step, -1) for _ in range(self.look_back)]
        for j, label in enumerate(before, start=1):
            label[:, j:] = step[:, :-j]
        return anchors.same(known, step, *before)


def actions(batch: Batch, turns: anchors.Turns) -> Tensor:
    """A number for each turn, (B, K), equal where the policy's actions are; where nothing tells them, all differ."""
    places = turns.taken.nonzero().tolist()
    what: list[Hashable]
    if batch.records is not None and all("turns" in record for record in batch.records):
        what = [batch.records[i]["turns"][k]["action"] for i, k in places]
        plain = {text: anchors.normalised(str(text)) for text in set(what)}
        what = [plain[text] for text in what]
    elif "tokens" in batch.inputs:
        spans: dict[tuple[int, int], list[int]] = {}
        rows = turns.mask.nonzero()[:, 0]
        columns = (rows, turns.index[turns.mask], batch.inputs["tokens"][turns.mask])
        for i, k, token in zip(*(x.tolist() for x in columns), strict=True):
            spans.setdefault((i, k), []).append(token)
        what = [tuple(spans[i, k]) for i, k in places]
    else:
        what = list(range(len(places)))
    number = {each: n for n, each in enumerate(dict.fromkeys(what))}
    names = torch.tensor([number[each] for each in what], dtype=torch.int64, device=turns.taken.device)
    return torch.zeros_like(turns.last).masked_scatter_(turns.taken, names)


SALT = GRPO.but(credit=TrajectoryGraph())

RECIPES = {"salt": SALT, "salt_rloo": RLOO.but(credit=TrajectoryGraph(base="rloo"))}

CLAIM = Claim(
    statement="with advantages shared over the graph of a problem's trajectories GRPO beats GRPO in a text world at no "
    "extra rollout",
    treatment="salt", control="grpo", task="keydoor", metric="success",
    settings={"task.level": 1, "policy.model": "tiny-0.3m", "steps": 15, "eval_size": 300},
    search={"lr": (5e-4, 1e-3, 2e-3)},
    dial=(
        "how many trajectories are laid over each other",
        (("2", {"group_size": 2, "batch_size": 32}), ("8", {"group_size": 8, "batch_size": 8})),
    ),
    analysis="Worse, by 0.03 in groups of eight and by 0.06 in groups of two, at the same tuned rate. Steps "
    "that good and bad episodes share get next to no credit, and in a maze many first steps are "
    "shared by chance, right ones among them. The paper's rule for how much of the history must "
    "agree was not to be had, and `look_back` was left at 0; a longer one shares less.",
)  # fmt: skip
