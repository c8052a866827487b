"""Let it Calm: Exploratory Annealed Decoding for Verifiable Reinforcement Learning (Yang et al., 2025),
arXiv:2510.05251.

Explore where a response is decided, at its beginning, and exploit after it: the temperature falls along each response
(`rollout`), ever more slowly as training goes on. What was drawn is then not quite what the policy itself would have
written, which a truncated importance weight sets right (`focus`).

    tau_t = max(1 + tau_max - e^(t / d_s), tau_min) for t >= c, else 1;    d_s = min(d_0 + 5 s, 40000) at step s
    weight_t = min(pi_old(y_t) / pi_old(y_t; tau_t), cap)

tau_max = 1.2, tau_min = 0.1, c = 10 and d_0 = 25, as described on the project's page and set in its official script.
The official sampler divides t by 20 d_s, its actor by d_s; here it is d_s, as in the formula. The official script
leaves the importance weight off; the paper is said to rely on it, with a cap that was not found: 2 is a common choice.
`ead_short` is for answers of a line: it anneals from the first token, and within ten.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_above, check_least
from partita.core.paper import Claim, Paper
from partita.papers.baselines.dapo import DAPO
from partita.papers.baselines.grpo import GRPO
from partita.parts.focus import TruncatedImportance
from partita.parts.rollout import Rollout, Sample, watched
from partita.parts.rollout.language import judged
from partita.policies.sampling import Sampling

PAPER = Paper(
    key="ead", title="Let it Calm: Exploratory Annealed Decoding for Verifiable Reinforcement Learning",
    arxiv="2510.05251", authors="Yang et al.", year=2025, changes=("rollout", "focus"),
)  # fmt: skip


@dataclass(frozen=True)
class AnnealedDecoding(Rollout):
    """Responses whose temperature falls from high to low along the sequence (Yang et al., 2025, arXiv:2510.05251).

        tau_t = max(1 + high - e^(t / d_s), low) for t >= warmup, else 1;    d_s = min(decay + growth * s, most)

    t counts the tokens of the response from 0, s the steps of training. `logp` is the policy's own log-probability, at
    temperature 1, at which it is learnt; `sampler_logp` that of the tempered distribution that was drawn from, exactly,
    for a focus such as `truncated_importance`. decay is in tokens: the temperature reaches `low` after
    d_s log(1 + high - low) of them. One forward pass more than plain sampling, for `logp`.
    """

    domains = ("language",)
    high: float = 1.2
    low: float = 0.1
    decay: float = 25.0
    growth: float = 5.0
    most: float = 40000.0
    warmup: int = 10
    max_tokens: int | None = None
    _live: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("high", "low", "decay", "most"):
            value = getattr(self, name)
            check_above(f"rollout.{name}", value)
        if self.low > self.high:
            raise UserError(f"rollout.low: expected at most high = {self.high}, got {self.low}")
        for name in ("growth", "warmup"):
            check_least(f"rollout.{name}", getattr(self, name))
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"rollout.max_tokens: expected a positive number, or None, got {self.max_tokens}")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if hasattr(task, "open"):
            return (
                f"rollout {self.part_name()} anneals over one response, and task {task.part_name()} takes turns; "
                "use --rollout sample"
            )
        return None

    def begin(self, step: int) -> None:
        self._live["step"] = step

    def temperatures(self, count: int, step: int = 0) -> Tensor:
        """tau_0 ... tau_{count-1} at a step of training, (count,) float64."""
        t = torch.arange(count, dtype=torch.float64)
        scale = min(self.decay + self.growth * step, self.most)
        tau = (1 + self.high - torch.exp(t / scale)).clamp(min=self.low)
        return torch.where(t < self.warmup, 1.0, tau)

    def __call__(
        self, policy: Any, task: Any, problems: Any, group_size: int, generator: torch.Generator, needs: Set[str]
    ) -> Batch:
        prompts = [p.prompt for p in problems]
        room = self.max_tokens or policy.room(prompts, task.max_tokens)
        schedule = self.temperatures(room, self._live.get("step", 0)).float()
        drawn = policy.generate(
            prompts, group_size, Sampling(max_tokens=room, stop=tuple(task.stop)), generator, schedule=schedule
        )
        asked = [p for p in problems for _ in range(group_size)]
        batch = judged(drawn.batch(), asked, drawn.texts, task.verify_all(asked, drawn.texts))
        batch = batch.but(inputs={**batch.inputs, "temperature": torch.ones_like(drawn.temperature)})
        with torch.no_grad():
            own = policy.evaluate(batch, entropy=True)
        batch = batch.but(logp=own.logp, sampler_logp=batch.logp, entropy=own.entropy)
        plain = Sample(max_tokens=self.max_tokens)
        return plain.compared(batch, policy, task, problems, group_size, generator, needs)

    def metrics(self, batch: Batch) -> dict[str, float]:
        seen = watched(batch)
        if batch.sampler_logp is not None and batch.logp is not None:
            seen["own_ratio"] = float(torch.exp(batch.logp - batch.sampler_logp)[batch.mask].mean())
        return seen


ANNEALED = AnnealedDecoding()
SHORT = AnnealedDecoding(warmup=0, decay=10.0, growth=0.0)

RECIPES = {
    "ead": GRPO.but(rollout=ANNEALED, focus=TruncatedImportance()),
    "ead_dapo": DAPO.but(rollout=ANNEALED, focus=TruncatedImportance()),
    "ead_short": GRPO.but(rollout=SHORT, focus=TruncatedImportance()),
}

CLAIM = Claim(
    statement="an annealed temperature reaches a higher success from as many samples than the best fixed temperature",
    treatment="ead_short",
    control="grpo",
    task="strings",
    metric="success",
    settings={"steps": 40, "batch_size": 16, "eval_size": 300},
    dial=(
        "how much of an answer follows its beginning",
        (("one step of about five characters", {"task.level": 1}), ("four steps", {"task.level": 4})),
    ),
    search={"lr": (5e-4, 1e-3)},
    search_treatment={"rollout.high": (1.0, 1.2, 1.4)},
    search_control={"rollout.temperature": (0.8, 1.0, 1.2)},
    analysis="Worse than a fixed temperature of 1, and the more so the more of an answer follows its beginning: a high "
    "temperature there makes wrong first steps, and presumably what follows a wrong step teaches little. Tuning chose "
    "the lowest of the three highs.",
)
