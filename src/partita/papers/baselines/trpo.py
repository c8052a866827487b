"""Trust Region Policy Optimization (Schulman et al., 2015), arXiv:1502.05477.

The expected advantage of a new policy, estimated on the data of the old one, is maximised as far as the two stay close:

    maximise E[pi(a|s) / old(a|s) A(s, a)]    subject to    E[KL(old(.|s) || pi(.|s))] <= max_kl

One step a batch (`optimiser`): along the natural gradient, found by conjugate gradients, as far as a quadratic model of
the divergence allows, and back from there until divergence and loss themselves are right. The critic takes steps of
Adam on the same batch. Advantages by GAE (arXiv:1506.02438), whitened over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.limits import check_count, check_least
from partita.core.paper import Paper
from partita.core.part import Domain
from partita.core.ranks import averaged
from partita.estimators import trust_region
from partita.estimators.masked import masked_mean
from partita.estimators.ratios import log_ratio
from partita.loops.on_policy import OnPolicy
from partita.parts.credit import GAE
from partita.parts.objective import Objective
from partita.parts.optimiser import Again, Optimiser
from partita.parts.regularisers import ValueLoss
from partita.policies.adam import Adam

PAPER = Paper(
    key="trpo", title="Trust Region Policy Optimization", arxiv="1502.05477",
    kind="baseline", authors="Schulman et al.", year=2015, changes=("objective", "optimiser"),
)  # fmt: skip


@dataclass(frozen=True)
class Surrogate(Objective):
    """The expected advantage under another policy than the one that sampled (Kakade and Langford, 2002).

        loss_t = -w_t A_t,   w_t = pi(a_t|s_t) / mu(a_t|s_t)

    Its gradient where pi is mu is that of `reinforce`. Nothing here keeps pi near mu.
    """

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        return -batch.need("advantage") * log_ratio(out.logp, batch.need("logp")).exp()


@dataclass(frozen=True)
class TrustRegion(Optimiser):
    """The natural gradient, as far as the divergence from the old policy allows; Adam for the critic (TRPO).

        theta <- theta - decay^j sqrt(2 max_kl / x.F x) x,   F x = g,   F = Hessian of E[KL(old || pi)] + damping

    Schulman et al. (2015), arXiv:1502.05477, section 6 and appendix C. g: gradient of the loss by the weights that move
    action distributions. j: the first of 0 .. backtracks - 1 for which the loss falls and E[KL(old || pi)], in nats, is
    at most max_kl; the weights stay where none is. cg_steps: of conjugate gradients. All other weights, the critic's,
    then take critic_steps steps of Adam by the recipe's numbers.
    """

    needs: ClassVar[tuple[str, ...]] = ("old",)
    whole: ClassVar[bool] = True
    domains: ClassVar[tuple[Domain, ...]] = ("control",)
    max_kl: float = 0.01
    damping: float = 0.1
    cg_steps: int = 10
    backtracks: int = 10
    decay: float = 0.8
    critic_steps: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.max_kl < math.inf:
            raise UserError(f"optimiser.max_kl: expected a number of nats above 0, got {self.max_kl}")
        check_least("optimiser.damping", self.damping)
        for name in ("cg_steps", "backtracks", "critic_steps"):
            check_count(f"optimiser.{name}", getattr(self, name))
        if not 0 < self.decay < 1:
            raise UserError(f"optimiser.decay: expected a number between 0 and 1, got {self.decay}")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if recipe.epochs * recipe.minibatches == 1:
            return None
        return "optimiser trust_region takes one step on a whole batch; use --epochs 1 --minibatches 1"

    def __call__(self, learner: Adam, batch: Batch, again: Again) -> dict[str, Tensor]:
        held = [(p, p.grad) for p in learner.parameters.values() if p.grad is not None]
        averaged([g for _, g in held])
        norm = torch.linalg.vector_norm(trust_region.flatten([g for _, g in held]))
        if not bool(norm.isfinite()):
            return {"grad_norm": norm}
        loss, out = again()
        slopes = torch.autograd.grad(divergence(out, batch), [p for p, _ in held], create_graph=True, allow_unused=True)
        moving = [(p, g, s) for (p, g), s in zip(held, slopes, strict=True) if s is not None]
        actor = [p for p, _, _ in moving]
        product = trust_region.hessian_product([s for _, _, s in moving], actor, self.damping)
        gradient = trust_region.flatten([g for _, g, _ in moving])
        step = trust_region.trust_region_step(product, gradient, self.max_kl, self.cg_steps)
        share, reached = self.search(actor, step, float(loss.detach()), batch, again)
        for parameter in actor:
            parameter.grad = None
        watched = {"grad_norm": norm, "step_share": norm.new_tensor(share), "step_kl": norm.new_tensor(reached)}
        critic = [p for (p, _), s in zip(held, slopes, strict=True) if s is None]
        for count in range(self.critic_steps if critic else 0):
            if count:
                for parameter, g in zip(critic, torch.autograd.grad(again()[0], critic), strict=True):
                    parameter.grad = g
            if not bool((last := learner.apply()).isfinite()):
                return {"grad_norm": last}
        return watched

    def search(
        self, actor: Sequence[Tensor], step: Tensor, before: float, batch: Batch, again: Again
    ) -> tuple[float, float]:
        """Leave the weights at the share of `step` (N,) that is accepted; returns it, and the divergence there."""
        start, steps = [p.detach().clone() for p in actor], trust_region.unflatten(step, actor)

        @torch.no_grad()
        def at(share: float) -> tuple[float, float]:
            for parameter, origin, whole in zip(actor, start, steps, strict=True):
                parameter.copy_(origin.add(whole, alpha=share))
            loss, out = again()
            return float(loss), float(divergence(out, batch))

        def accepts(share: float) -> bool:
            loss, kl = at(share)
            return loss < before and kl <= self.max_kl

        share = trust_region.line_search(accepts, self.backtracks, self.decay)
        return share, at(share)[1]


def divergence(out: Outputs, batch: Batch) -> Tensor:
    """Mean KL(old || pi) over the steps of the batch, scalar."""
    return masked_mean(out.need("forward_kl"), batch.mask)


TRPO = OnPolicy(
    credit=GAE(gae_lambda=0.95),
    objective=Surrogate(),
    regularisers=(ValueLoss(weight=0.5),),
    optimiser=TrustRegion(),
    max_grad_norm=0.5,
    adam_eps=1e-5,
    whiten="batch",
)

RECIPES = {"trpo": TRPO}
