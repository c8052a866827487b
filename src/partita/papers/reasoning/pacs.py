"""Implicit Actor Critic Coupling via a Supervised Learning Framework for RLVR (Li et al., 2025), arXiv:2509.02522.

Verifiable rewards as labels of a classifier whose score is made of the policy's own log-ratios: what GRPO does with
advantages and ratios, cross-entropy does with one loss. Changes GRPO in `objective` (and needs no `credit`).

    score_i = beta * sum_t log(pi(a_it) / mu(a_it))
    psi_i   = score_i - mean_{j != i} score_j                              over the group, as in leave-one-out
    loss_i  = -w_i * [R_i log sigmoid(psi_i) + (1 - R_i) log(1 - sigmoid(psi_i))]

Its gradient couples both roles: the error of the label R - sigmoid(psi), known to the policy alone, is the advantage
of a policy gradient whose baseline is that of the group. Weights w balance right and wrong within a group, as in the
official code, which was followed here. Before the first update on a batch every psi is 0 and the gradient is that of
leave-one-out; the coupling acts from the second on (the paper makes four updates a batch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from partita.core.batch import Batch, Outputs
from partita.core.paper import Claim, Identity, Paper
from partita.estimators.groups import group_mean, leave_one_out
from partita.estimators.ratios import log_ratio
from partita.papers.baselines.grpo import GRPO
from partita.parts.aggregate import SequenceMean
from partita.parts.credit import Constant
from partita.parts.objective import Objective, check_clip

PAPER = Paper(
    key="pacs", title="Implicit Actor Critic Coupling via a Supervised Learning Framework for RLVR", arxiv="2509.02522",
    authors="Li et al.", year=2025, changes=("objective", "credit"),
)  # fmt: skip


@dataclass(frozen=True)
class LabelledScore(Objective):
    """Cross-entropy between a trajectory's label and its score against the group (PACS, arXiv:2509.02522).

        psi_i = beta * (sum_t log w_it - mean_{j != i} sum_t log w_jt),   w = pi / mu
        loss_it = w_i * BCE(sigmoid(psi_i), R_i)                              the same at every step of i

    so that averaging within and then over trajectories (`sequence_mean`) gives the mean over trajectories. R: the
    outcome, within 0 and 1. balance: w_i = G / (2 n(R_i)) for groups in which n(1) are right and n(0) wrong, else 1;
    off: 1 throughout. Groups must be whole. Advantages are not read.
    """

    unit = "group"
    beta: float = 1.0
    balance: bool = True

    def __post_init__(self) -> None:
        check_clip("objective.beta", self.beta)

    def scores(self, out: Outputs, batch: Batch) -> Tensor:
        """psi, (B,)."""
        total = self.beta * (log_ratio(out.logp, batch.need("logp")) * batch.mask).sum(1)
        return total - leave_one_out(total, batch.need("group"))

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """R and w, (B,)."""
        label = batch.need("outcome").clamp(0, 1)
        if not self.balance:
            return label, torch.ones_like(label)
        group = batch.need("group")
        right = group_mean((label >= 0.5).to(label.dtype), group)
        share = torch.where(label >= 0.5, right, 1 - right)
        mixed = (right > 0) & (right < 1)
        return label, torch.where(mixed, 0.5 / share.clamp(min=1e-12), torch.ones_like(share))

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        label, weight = self.labels(batch)
        psi = self.scores(out, batch)
        loss = weight * binary_cross_entropy_with_logits(psi, label.to(psi.dtype), reduction="none")
        return loss[:, None] * batch.mask

    def metrics(self, out: Outputs, batch: Batch) -> dict[str, Tensor]:
        label, _ = self.labels(batch)
        psi = self.scores(out, batch)
        return {"label_error": (label - psi.sigmoid()).abs().mean()}


PACS = GRPO.but(credit=Constant(), objective=LabelledScore(), aggregate=SequenceMean())

RECIPES = {"pacs": PACS}


def decomposition(seed: int) -> float:
    """The largest difference between the gradient by autograd and the paper's actor and critic terms, in float64.

    d loss / d theta = -sum_i w_i (R_i - sigmoid(psi_i)) * beta * (grad log pi_i - mean_{j != i} grad log pi_j) / B
    """
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 4, 5, generator=g, dtype=torch.float64, requires_grad=True)
    action = torch.randint(5, (6, 4), generator=g)
    mask = torch.arange(4) < torch.randint(1, 5, (6, 1), generator=g)
    logp = logits.log_softmax(-1).gather(-1, action[..., None])[..., 0] * mask
    old = (logp.detach() + 0.2 * torch.randn(6, 4, generator=g, dtype=torch.float64)) * mask
    outcome = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    batch = Batch(mask=mask, logp=old, outcome=outcome, group=torch.arange(6) // 3)
    part, out = LabelledScore(beta=0.7), Outputs(logp)
    loss = (part(out, batch) / batch.lengths[:, None]).sum() / 6
    ours = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    label, weight = part.labels(batch)
    error = weight * (label - part.scores(out, batch).detach().sigmoid())
    each = torch.stack([torch.autograd.grad(logp[i].sum(), logits, retain_graph=True)[0] for i in range(6)])
    theirs = torch.zeros_like(logits)
    for i in range(6):
        others = [j for j in range(6) if j // 3 == i // 3 and j != i]
        theirs -= error[i] * 0.7 * (each[i] - each[others].mean(0)) / 6
    return float((ours - theirs).abs().max() / theirs.abs().max())


CLAIMS = (
    Claim(
        statement="reaches a higher success than GRPO from the same samples",
        treatment="pacs", control="grpo", task="arithmetic",
        settings={"steps": 40, "batch_size": 8, "eval_size": 300, "task.level": 2},
        dial=("updates on each batch", (("1", {}), ("8", {"minibatches": 4, "epochs": 2}))),
        search={"lr": (1e-4, 3e-4, 1e-3)},
        analysis="Both arms solve 0.96 of the problems after 40 steps, with one update on a batch or eight; the "
        "difference of 0.000 (-0.008 to 0.008) leaves no room for an effect worth having at this scale. "
        "A harder level might.",
    ),
    Identity(
        statement="the gradient is the product of a label's error (critic) and a baselined score function (actor)",
        measure=decomposition, expected=0.0, tolerance=1e-9, seeds=8,
    ),
)  # fmt: skip
