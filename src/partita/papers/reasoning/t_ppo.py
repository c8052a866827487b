"""Truncated Proximal Policy Optimization (Fan et al., 2025), arXiv:2506.15050.

PPO that does not wait for the longest response. A step draws a window of tokens for every response; those that are not
finished are updated on all the same, and go on in the next step where they were cut, while new problems take the places
of the finished ones. Changes PPO in three slots:

    rollout   at most `window` tokens of each of B responses, whose number stays the same        (Windowed)
    credit    GAE from the value of the state at the cut, V(s_l) := V(s_{l-1})                   (ExtendedGAE)
    focus     the policy learns from tokens drawn in this step, each once                        (LatestWindow)

and the critic learns from responses that have ended, all of their tokens, by Monte Carlo returns: unfinished ones have
no outcome yet. What is compared with PPO's rollout time here is `decode_steps`, sampler steps that follow one another.

Written after descriptions of the paper, which give the value at the cut and the two filters; no official code is
known, and Monte Carlo returns for the critic (`value_lambda`) could not be confirmed. A window of a third of the
longest response is ours; clipping, epochs and the policy's lambda are those of `ppo`. Policy and critic are one
network whose losses are divided by the same number of tokens, in the paper two that are updated apart. Advantages are
whitened together with those of the older tokens of responses that ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from partita.core.batch import Batch
from partita.core.paper import Claim, Paper
from partita.core.part import Domain
from partita.estimators.masked import last_step, put_last
from partita.papers.baselines.ppo import PPO
from partita.parts.credit import GAE, check_unit
from partita.parts.focus import Focus
from partita.parts.rollout.windows import WindowedRollout, ended, latest

PAPER = Paper(
    key="t_ppo", title="Truncated Proximal Policy Optimization", arxiv="2506.15050", authors="Fan et al.", year=2025,
    changes=("rollout", "credit", "focus"),
)  # fmt: skip


@dataclass(frozen=True)
class Windowed(WindowedRollout):
    """Responses drawn a window at a time: what is not finished goes on in the next step (T-PPO, arXiv:2506.15050).

        new tokens of response i = min(window, until it ends, max_tokens - those that it has)

    The number of responses under way is the batch size; those that end give their places to the first of the step's
    problems. window None: a third of the longest response that the task allows. Unfinished responses have outcome 0
    until they end, and survive checkpoints. With a window as long as the responses it is `sample`.
    """

    window: int | None = None
    _live: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)


@dataclass(frozen=True)
class ExtendedGAE(GAE):
    """GAE for responses that may be unfinished (T-PPO, arXiv:2506.15050).

        A_t = sum_{k < l - t} (discount * gae_lambda)^k * delta_{t+k},   delta_t = r_t + discount * V_{t+1} - V_t

    l: tokens so far; the value of the state at the cut is taken to be that of the one before, V(s_l) = V(s_{l-1}), and
    0 where the response has ended. Rewards of unfinished responses are left out. The critic's returns have a lambda of
    their own, value_lambda; 1 gives Monte Carlo returns for responses that have ended. On ended responses it is `gae`.
    """

    domains: ClassVar[tuple[Domain, ...]] = ("language",)
    unfinished: ClassVar[bool] = True
    value_lambda: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit("credit.value_lambda", self.value_lambda)

    def settle(self, task: Any) -> ExtendedGAE:
        return self if self.discount is not None else replace(self, discount=1.0)

    def advantage(self, batch: Batch, gae_lambda: float) -> Tensor:
        """The estimate with another lambda, (B, T)."""
        cut, value = ~ended(batch), batch.need("value")
        final = value.gather(1, last_step(batch.mask)[:, None])[:, 0]
        extended = batch.but(reward=batch.need("reward") * ~cut[:, None], bootstrap=put_last(final * cut, batch.mask))
        return GAE(self.discount, gae_lambda, self.observations)(extended)

    def __call__(self, batch: Batch) -> Tensor:
        return self.advantage(batch, self.gae_lambda)

    def returns(self, batch: Batch) -> Tensor:
        return self.advantage(batch, self.value_lambda) + batch.need("value")


@dataclass(frozen=True)
class LatestWindow(Focus):
    """Only the steps of the last window (or turn) of each trajectory: the policy learns from a token once (T-PPO).

        weight_t = 1 if token t was drawn in this step, else 0

    Where a batch has neither windows nor turns, all steps count.
    """

    def __call__(self, batch: Batch) -> Tensor:
        return latest(batch).to(batch.need("advantage").dtype)


T_PPO = PPO.but(rollout=Windowed(), credit=ExtendedGAE(), focus=LatestWindow())

RECIPES = {"t_ppo": T_PPO}

_SETTINGS: dict[str, Any] = {
    "steps": 40, "batch_size": 32, "epochs": 1, "minibatches": 2, "lr": 1e-4, "eval_size": 300,
}  # fmt: skip

CLAIMS = (
    Claim(
        statement="where some responses are long, as many updates take less than 1 / 1.5 of PPO's rollout time",
        treatment="t_ppo", control="ppo", task="arithmetic", metric="decode_steps:sum", kind="ratio",
        better="lower", threshold=1 / 1.5, settings={**_SETTINGS, "eval_size": 0},
        dial=("responses", (("short (level 1)", {"task.level": 1}), ("short to long (1 to 4)", {"task.level": 0}))),
    ),
    Claim(
        statement="and after as many updates, where responses are short to long, success is the same",
        treatment="t_ppo", control="ppo", task="arithmetic", better="equal", threshold=0.05,
        settings=_SETTINGS, search={"lr": (5e-5, 1e-4, 2e-4)},
    ),
)  # fmt: skip
