"""The slot `regularisers` of the preference loop: what else is in the loss?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from partita.core.batch import Outputs
from partita.core.limits import check_least
from partita.core.pairs import Pairs
from partita.core.part import Part
from partita.estimators.margins import response_logp


class Tether(Part):
    """A further loss for each comparison, (M,), or for each of what it counts otherwise; the loop takes the mean.

    uncompared: whether it looks at responses that nothing is compared with.
    """

    slot: ClassVar[str] = "regularisers"
    loop: ClassVar[str] = "preference"
    domains = ("language",)
    uncompared: ClassVar[bool] = False

    def __call__(self, out: Outputs, pairs: Pairs) -> Tensor:
        raise NotImplementedError

    def count(self, pairs: Pairs) -> int:
        """How many losses there are."""
        return len(pairs)


@dataclass(frozen=True)
class Anchor(Tether):
    """The likelihood of the preferred responses, beside a loss on margins (Pang et al., 2024, arXiv:2404.19733).

        loss = -weight * mean_t log pi(y_w,t | x, y_w,<t)      or the sum over t, unless `mean`

    Keeps the better response from becoming less likely while the worse one does so faster.
    """

    weight: float = 1.0
    mean: bool = True

    def __post_init__(self) -> None:
        check_least("regularisers.anchor.weight", self.weight)

    def __call__(self, out: Outputs, pairs: Pairs) -> Tensor:
        logp = response_logp(out.logp, pairs.batch.mask, self.mean)
        return -self.weight * logp[torch.where(pairs.prefer < 0.5, pairs.second, pairs.first)]
