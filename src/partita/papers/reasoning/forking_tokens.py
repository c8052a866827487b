"""Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM Reasoning
(Wang et al., 2025), arXiv:2506.01939.

Changes DAPO in one slot, `focus`: of all tokens that a step sampled, only those where the policy hesitated most (the
forks of a chain of thought) carry a policy gradient.

    J = (1 / sum_i |y_i|) sum_i sum_t I[H_it >= tau_rho] min(w A, clip(w, 1 - eps_low, 1 + eps_high) A)

tau_rho: the entropy that a share rho = 0.2 of the batch's tokens reach (section 5, as notes on the paper give it).
The divisor still counts all tokens; the official code divides by those that are kept (`--focus.rescale`). The recipe
`forking_rest` is the paper's opposite arm: the tokens that the first leaves out, and only those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.paper import Claim, Paper
from partita.papers.baselines.dapo import DAPO
from partita.parts.focus import Focus

PAPER = Paper(
    key="forking_tokens",
    title="Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM "
    "Reasoning",
    arxiv="2506.01939", authors="Wang et al.", year=2025, changes=("focus",),
)  # fmt: skip


@dataclass(frozen=True)
class ForkingTokens(Focus):
    """The steps of highest entropy count, the others do not (Wang et al., 2025, arXiv:2506.01939, section 5).

        weight_it = I[H_it >= tau],   tau = the ceil(keep * N)-th largest entropy of the batch's N steps

    keep: rho, the share of steps that count; steps as uncertain as the last of them count too. rest: the others
    instead, I[H_it < tau]. rescale: weights times N over the number that count, so that `token_mean` divides by those
    alone, as the official code does. H is the entropy of the policy that sampled, at its temperature, and tau that of
    all that a step sampled; the paper takes both of the policy as it learns, which is the same before its first update.
    """

    needs = ("entropy",)
    keep: float = 0.2
    rest: bool = False
    rescale: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UserError(f"focus.keep: expected a share above 0 and at most 1, got {self.keep}")
        if self.rest and self.keep == 1:
            raise UserError("focus.keep: 1 leaves nothing for the rest; use a smaller share, or --focus all_steps")

    def __call__(self, batch: Batch) -> Tensor:
        mask, entropy = batch.mask, batch.need("entropy")
        weight = torch.zeros_like(batch.need("advantage"))
        acted = entropy[mask]
        if not len(acted):
            return weight
        tau = acted.topk(math.ceil(self.keep * len(acted) - 1e-9)).values[-1]
        counts = ((entropy < tau) if self.rest else (entropy >= tau)) & mask
        scale = len(acted) / max(1, int(counts.sum())) if self.rescale else 1.0
        return weight.masked_fill(counts, scale)


FORKING = DAPO.but(focus=ForkingTokens())

RECIPES = {"forking_tokens": FORKING, "forking_rest": FORKING.but(focus=ForkingTokens(rest=True))}

_LONG_CHAINS = {"policy.model": "tiny-0.3m", "task.level": 3, "steps": 40, "batch_size": 12, "eval_size": 300}
_RATES = {"lr": (3e-4, 1e-3, 2e-3)}

CLAIMS = (
    Claim(
        statement="updates on the fifth of the tokens of highest entropy are not worse than updates on all",
        treatment="forking_tokens", control="dapo", task="arithmetic", metric="success", threshold=-0.03,
        settings=_LONG_CHAINS, search=_RATES,
        analysis="Four tokens in five can be left out of the update without a loss of more than 0.008 in success.",
    ),
    Claim(
        statement="updates on the tokens of highest entropy beat updates on all the others",
        treatment="forking_tokens", control="forking_rest", task="arithmetic", metric="success",
        dial=("share of the tokens taken for forks", (("0.02", {"focus.keep": 0.02}), ("0.2", {"focus.keep": 0.2}))),
        settings=_LONG_CHAINS, search=_RATES,
        analysis="Without the fifth of highest entropy learning all but stops (0.29 against 0.94); even the "
        "fiftieth of highest entropy, alone, learns as much as all the other tokens together, and a "
        "little more.",
    ),
)  # fmt: skip
