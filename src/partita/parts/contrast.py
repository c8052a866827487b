"""The slot `objective` of the preference loop: comparisons and log-probabilities to a loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from partita.core.batch import Outputs
from partita.core.errors import UserError
from partita.core.limits import check_above, check_least
from partita.core.pairs import Pairs
from partita.core.part import Part
from partita.estimators import margins
from partita.estimators.masked import last_value

Loss = Literal["sigmoid", "hinge", "ipo"]


class Contrast(Part):
    """A loss for each comparison, (M,), or for each labelled response, (B',); the loop takes the mean.

    `needs` may name "ref" (the reference's log-probabilities of the responses), "value" (a scalar head), "label"
    (desirable or not, instead of comparisons), and "drift" (the mean log-ratio on mismatched prompts).
    """

    slot: ClassVar[str] = "objective"
    loop: ClassVar[str] = "preference"
    domains = ("language",)
    compares: ClassVar[bool] = True  # whether responses without a comparison or a label are of no use
    learns_from: ClassVar[tuple[str, ...]] = ("compared",)  # what the data must offer, any of it

    def refuses(self, recipe: Any, task: Any) -> str | None:
        offers = getattr(task, "offers", None)
        if recipe.resample.samples or offers is None or set(offers) & set(self.learns_from):
            return None
        words = {"compared": "comparisons", "labels": "labels", "scores": "scores"}
        return (
            f"objective {self.part_name()}: it learns from {' or '.join(words[n] for n in self.learns_from)}, and task "
            f"{task.part_name()} holds {' and '.join(words[n] for n in offers)} only; train by "
            f"{'kto' if 'labels' in offers else 'dpo'}"
        )

    def __call__(self, out: Outputs, pairs: Pairs) -> Tensor:
        raise NotImplementedError

    def count(self, pairs: Pairs) -> int:
        """How many losses there are: comparisons, or labelled responses."""
        if "label" not in self.needs or pairs.label is None:
            return len(pairs)
        return int((~pairs.label.isnan()).sum())

    def reward(self, out: Outputs, pairs: Pairs) -> Tensor | None:
        """The reward that the loss implies for every response, (B,), for accuracy and margins; None if there is
        none."""
        return None


@dataclass(frozen=True)
class Direct(Contrast):
    """Direct preference optimisation (Rafailov et al., 2023, arXiv:2305.18290, eq. 7) and its kin.

        h    = beta * [log(pi(y_1|x) / ref(y_1|x)) - log(pi(y_2|x) / ref(y_2|x))]
        loss = -log s(h)                  sigmoid
               max(0, 1 - h)              hinge (SLiC, arXiv:2305.10425, in the form of RSO)
               (h / beta - 1/(2 beta))^2  ipo (arXiv:2310.12036, eq. 17)

    in expectation over the label, which is wrong with probability `label_smoothing`. mean: log-ratios a token (length-
    normalised DPO; TRL's IPO is this with `loss` ipo).
    """

    needs = ("ref",)
    loss: Loss = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    mean: bool = False

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise UserError(f"objective.loss: expected one of {', '.join(get_args(Loss))}, got {self.loss!r}")
        check_above("objective.beta", self.beta)
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"objective.label_smoothing: expected 0 to below 0.5, got {self.label_smoothing}")

    def ratio(self, out: Outputs, pairs: Pairs) -> Tensor:
        """log(pi / ref) of every response, (B,)."""
        mask = pairs.batch.mask
        ref = pairs.need("ref")
        ref = ref / mask.sum(1).clamp(min=1) if self.mean else ref
        return margins.response_logp(out.logp, mask, self.mean) - ref

    def reward(self, out: Outputs, pairs: Pairs) -> Tensor:
        return self.beta * self.ratio(out, pairs)

    def __call__(self, out: Outputs, pairs: Pairs) -> Tensor:
        r = self.reward(out, pairs)
        h = r[pairs.first] - r[pairs.second]
        prefer = smoothed(pairs.prefer, self.label_smoothing)
        if self.loss == "ipo":
            return margins.ipo_loss(h / self.beta, prefer, self.beta)
        return margins.sigmoid_loss(h, prefer) if self.loss == "sigmoid" else margins.hinge_loss(h, prefer)


@dataclass(frozen=True)
class Simpo(Contrast):
    """Simple preference optimisation, without a reference (Meng et al., 2024, arXiv:2405.14734, eq. 6).

        loss = -log s(beta / |y_1| * log pi(y_1|x) - beta / |y_2| * log pi(y_2|x) - gamma)

    gamma: the target margin; the paper gives it as a share of beta (0.3 to 1.6 of 2 to 10).
    """

    beta: float = 2.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_above("objective.beta", self.beta)
        check_least("objective.gamma", self.gamma)

    def reward(self, out: Outputs, pairs: Pairs) -> Tensor:
        return self.beta * margins.response_logp(out.logp, pairs.batch.mask, mean=True)

    def __call__(self, out: Outputs, pairs: Pairs) -> Tensor:
        r = self.reward(out, pairs)
        h = r[pairs.first] - r[pairs.second]
        return -(
            pairs.prefer * torch.nn.functional.logsigmoid(h - self.gamma)
            + (1 - pairs.prefer) * torch.nn.functional.logsigmoid(-h - self.gamma)
        )


@dataclass(frozen=True)
class Orpo(Contrast):
    """Odds-ratio preference optimisation, without a reference (Hong et al., 2024, arXiv:2403.07691).

        loss = -mean_t log pi(y_w,t) - weight * log s(log(odds(y_w) / odds(y_l)))
        odds = P / (1 - P),    P = exp(mean_t log pi(y_t))

    y_w: the preferred response. Soft labels weigh both orders.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        check_least("objective.weight", self.weight)

    def reward(self, out: Outputs, pairs: Pairs) -> Tensor:
        return self.weight * margins.response_logp(out.logp, pairs.batch.mask, mean=True)

    def __call__(self, out: Outputs, pairs: Pairs) -> Tensor:
        mean = margins.response_logp(out.logp, pairs.batch.mask, mean=True)
        first, second = mean[pairs.first], mean[pairs.second]
        taught = -(pairs.prefer * first + (1 - pairs.prefer) * second)
        return taught + self.weight * margins.sigmoid_loss(margins.odds_ratio(first, second), pairs.prefer)


@dataclass(frozen=True)
class Kto(Contrast):
    """Kahneman-Tversky optimisation from labels without pairs (Ethayarajh et al., 2024, arXiv:2402.01306).

        r = beta * log(pi(y|x) / ref(y|x)),    z = max(0, mean over mismatched (x, y') of r)
        loss = lambda_D (1 - s(r - z))  for desirable,    lambda_U (1 - s(z - r))  for undesirable responses

    The reference point z, which is not differentiated, is measured on each prompt with the response to another one
    (`pairs.drift`, which the loop fills for whoever needs "drift").
    """

    needs = ("ref", "label", "drift")
    learns_from = ("compared", "labels")
    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0

    def __post_init__(self) -> None:
        check_above("objective.beta", self.beta)
        check_least("objective.desirable", self.desirable)
        check_least("objective.undesirable", self.undesirable)

    def reward(self, out: Outputs, pairs: Pairs) -> Tensor:
        return self.beta * (margins.response_logp(out.logp, pairs.batch.mask) - pairs.need("ref"))

    def __call__(self, out: Outputs, pairs: Pairs) -> Tensor:
        r, label = self.reward(out, pairs), pairs.need("label")
        z = (self.beta * pairs.need("drift")).clamp(min=0)
        known = ~label.isnan()
        return margins.kto_loss(r[known], label[known], z, self.desirable, self.undesirable)


@dataclass(frozen=True)
class SelfPlay(Contrast):
    """Self-play preference optimisation, SPPO (Wu et al., 2024, arXiv:2405.00675).

        loss = sum_y (log(pi(y|x) / ref(y|x)) - (P(y beats pi_t) - 1/2) / beta)^2

    over the two responses of a comparison; P is `prefer` for the first and 1 - `prefer` for the second. The paper's
    eta is 1 / beta here, and its reference the policy of the iteration before (`--reference reset`).
    """

    needs = ("ref",)
    beta: float = 1e-3

    def __post_init__(self) -> None:
        check_above("objective.beta", self.beta)

    def reward(self, out: Outputs, pairs: Pairs) -> Tensor:
        return self.beta * (margins.response_logp(out.logp, pairs.batch.mask) - pairs.need("ref"))

    def __call__(self, out: Outputs, pairs: Pairs) -> Tensor:
        ratio = self.reward(out, pairs) / self.beta
        goal = (pairs.prefer - 0.5) / self.beta
        return (ratio[pairs.first] - goal).square() + (ratio[pairs.second] + goal).square()


@dataclass(frozen=True)
class Likelihood(Contrast):
    """Supervised fine-tuning on the preferred responses.

        loss = -mean_t log pi(y_w,t | x, y_w,<t)

    Where labels take the place of comparisons, on the desirable ones.
    """

    learns_from = ("compared", "labels")

    def count(self, pairs: Pairs) -> int:
        return len(pairs) if pairs.label is None else int((pairs.label == 1).sum())

    def __call__(self, out: Outputs, pairs: Pairs) -> Tensor:
        mean = margins.response_logp(out.logp, pairs.batch.mask, mean=True)
        if pairs.label is None:
            return -(pairs.prefer * mean[pairs.first] + (1 - pairs.prefer) * mean[pairs.second])
        return -mean[pairs.label == 1]


@dataclass(frozen=True)
class BradleyTerry(Contrast):
    """Reward modelling: a scalar head at the last token learns which response is preferred.

        loss = -log s(r(x, y_w) - r(x, y_l) - margin_scale * m) + centre * (r(x, y_w) + r(x, y_l))^2

    (Ouyang et al., 2022, arXiv:2203.02155, eq. 1; the margin m, where the data hold one, as in Llama 2,
    arXiv:2307.09288, eq. 2; centring as in Eisenstein et al., 2023, arXiv:2312.09244.) Soft labels weigh both orders.
    """

    needs = ("value",)
    margin_scale: float = 1.0
    centre: float = 0.0

    def __post_init__(self) -> None:
        check_least("objective.margin_scale", self.margin_scale)
        check_least("objective.centre", self.centre)

    def reward(self, out: Outputs, pairs: Pairs) -> Tensor:
        return last_value(out.need("value"), pairs.batch.mask)

    def __call__(self, out: Outputs, pairs: Pairs) -> Tensor:
        r = self.reward(out, pairs)
        h, total = r[pairs.first] - r[pairs.second], r[pairs.first] + r[pairs.second]
        m = 0.0 if pairs.margin is None else self.margin_scale * pairs.margin
        soft = torch.nn.functional.logsigmoid
        loss = -(pairs.prefer * soft(h - m) + (1 - pairs.prefer) * soft(-h - m))
        return loss + self.centre * total.square()


@dataclass(frozen=True)
class Regression(Contrast):
    """Reward modelling by regression: a scalar head at the last token learns the score of a response.

        loss = (r(x, y) - score)^2 / 2

    score: `batch.outcome`, what the judge gave.
    """

    needs = ("value",)
    compares = False
    learns_from = ("scores",)

    def count(self, pairs: Pairs) -> int:
        return len(pairs.batch)

    def reward(self, out: Outputs, pairs: Pairs) -> Tensor:
        return last_value(out.need("value"), pairs.batch.mask)

    def __call__(self, out: Outputs, pairs: Pairs) -> Tensor:
        return (self.reward(out, pairs) - pairs.batch.need("outcome")).square() / 2


def smoothed(prefer: Tensor, eps: float) -> Tensor:
    """Labels that are wrong with probability eps: (1 - eps) p + eps (1 - p)."""
    return prefer if eps == 0 else (1 - 2 * eps) * prefer + eps
