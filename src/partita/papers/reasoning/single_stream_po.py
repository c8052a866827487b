"""Single-stream Policy Optimization (Xu and Ding, 2025), arXiv:2509.13232.

Changes GRPO in two slots and does without groups. `curriculum`: every problem of a fixed set has a value estimate that
lasts over the steps and forgets as the policy drifts; it also decides which problems come next. `credit`: the return of
a single response minus that estimate, normalised over the whole batch.

    a(x) = rho a_prev(x) + r,   b(x) = rho b_prev(x) + 1 - r,   v(x) = a / (a + b),   rho = 2^(-D(x) / D_half)
    A = r - v_prev(x),   A~ = (A - mean A) / std A                                     over the batch
    w(x) = sqrt(v (1 - v)) / (a + b)^gamma + epsilon                                   chance of x being next

D(x): how far the policy has moved since it last answered x. Written after the official code (verl-recipe, folder spo)
and notes on the paper; no equation is cited.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import UserError
from partita.core.limits import check_above
from partita.core.paper import Claim, Paper
from partita.papers.baselines.grpo import GRPO
from partita.parts.aggregate import TokenMean
from partita.parts.credit import Credit, Promises, spread, trajectory_return
from partita.parts.curriculum import Pool
from partita.parts.objective import ClippedSurrogate

PAPER = Paper(
    key="single_stream_po", title="Single-stream Policy Optimization", arxiv="2509.13232", authors="Xu and Ding",
    year=2025, changes=("curriculum", "credit", "objective", "aggregate"),
    url="https://github.com/verl-project/verl-recipe",
)  # fmt: skip

CHUNK = 32  # problems answered at once before the first step


@dataclass(frozen=True)
class ValueTracker(Pool):
    """A fixed set of problems, each with a Beta estimate of its success rate that outlives the steps (SPO).

        a <- rho a + r,   b <- rho b + 1 - r,   rho = clip(2^(-D / half), rho_min, rho_max),   v = a / (a + b)
        D = mean_t |log pi(y_t) - log pi_then(y_t)|

    y: the last response to the problem; pi_then: the policy after the update in which y was learnt from; pi: after this
    one. D is 0 at the first visit. This is the estimate of the official code for the divergence between the two.

    A problem comes next with a chance proportional to sqrt(v (1 - v)) / (a + b)^gamma + epsilon (without replacement);
    prioritise=False: with the same chance as any other. `batch.baseline` is v as it was before the batch.
    initial: responses to each problem before the first step; v is then their mean and a + b = 1 / (1 - rho_min).
    0: a = b = 1/2. They are sampled by the recipe's rollout and are not counted among a run's samples.

    Rewards are read as rates from 0 to 1 and held to that range. Several responses to a problem in one batch are added
    after a single decay. The paper defines the tracker for rewards of 0 and 1; gamma is 0 in its code.
    """

    tracks: ClassVar[bool] = True
    size: int = 256
    initial: int = 8
    half: float = 0.06
    rho_min: float = 0.875
    rho_max: float = 0.96
    epsilon: float = 0.05
    gamma: float = 0.0
    prioritise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial < 0:
            raise UserError(f"curriculum.initial: expected 0 or more responses, got {self.initial}")
        check_above("curriculum.half", self.half)
        if not 0 <= self.rho_min <= self.rho_max <= 1 or self.rho_min == 1:
            raise UserError(
                "curriculum.rho_max: expected 0 <= rho_min <= rho_max <= 1 and rho_min below 1, "
                f"got {self.rho_min} and {self.rho_max}"
            )
        check_above("curriculum.epsilon", self.epsilon)
        if not 0 <= self.gamma <= 1:
            raise UserError(f"curriculum.gamma: expected a number between 0 and 1, got {self.gamma}")

    def start(self, policy: Any, task: Any, rollout: Any, generator: torch.Generator) -> None:
        problems, rates = self.pool(task, generator), []
        for i in range(0, len(problems) if self.initial else 0, CHUNK):
            some = problems[i : i + CHUNK]
            batch = rollout(policy, task, some, self.initial, generator, frozenset())
            rates.append(trajectory_return(batch).double().cpu().clamp(0, 1).view(len(some), -1).mean(1))
        rate = torch.cat(rates) if rates else torch.full((len(problems),), 0.5, dtype=torch.float64)
        weight = 1 / (1 - self.rho_min) if self.initial else 1.0
        self._held.update(counts=weight * torch.stack((rate, 1 - rate)), past={})

    def value(self) -> Tensor:
        """v of every problem, (P,), float64."""
        a, b = self._held["counts"]
        return a / (a + b)

    def weights(self, count: int) -> Tensor:
        if not self.prioritise:
            return super().weights(count)
        v, size = self.value(), self._held["counts"].sum(0)
        return (v * (1 - v)).clamp(min=0).sqrt() / size**self.gamma + self.epsilon

    def annotate(self, batch: Batch) -> Batch:
        if batch.baseline is not None:  # measured otherwise, for a credit that asked for it
            return batch
        value = self.value().tolist()
        known = [0.5 if place is None else value[place] for place in self.places(batch)]
        return batch.but(baseline=batch.need("reward").new_tensor(known))

    def learn(self, policy: Any, batch: Batch) -> None:
        places, reward = self.places(batch), trajectory_return(batch).double().cpu().clamp(0, 1).tolist()
        rows = {place: row for row, place in enumerate(places) if place is not None}
        past, counts = self._held["past"], self._held["counts"]
        earlier = [past[place] for place in rows if place in past]
        if not rows:
            return
        together = Batch.cat([*(p.to(batch.mask.device) for p in earlier), *(_row(batch, i) for i in rows.values())])
        together = together.but(group=torch.arange(len(together), device=together.mask.device))
        with torch.no_grad():
            logp = policy.evaluate(together).logp
        moved = ((logp - together.need("logp")).abs() * together.mask).sum(1) / together.lengths.clamp(min=1)
        drift = dict(zip((place for place in rows if place in past), moved.double().tolist(), strict=False))
        self._held["drift"] = sum(drift.values()) / max(len(drift), 1)
        for place in rows:
            rho = 2.0 ** (-drift.get(place, 0.0) / self.half)
            counts[:, place] *= min(max(rho, self.rho_min), self.rho_max)
        for where, r in zip(places, reward, strict=True):
            if where is not None:
                counts[:, where] += torch.tensor([r, 1 - r], dtype=torch.float64)
        for i, place in enumerate(rows, start=len(earlier)):
            past[place] = _row(together.but(logp=logp), i)

    def metrics(self) -> dict[str, float]:
        if "counts" not in self._held:
            return {}
        return {"tracked_value": float(self.value().mean()), "tracked_drift": self._held.get("drift", 0.0)}

    def state_dict(self) -> dict[str, Any]:
        past = [[place, row.to("cpu").state_dict()] for place, row in self._held.get("past", {}).items()]
        held: dict[str, Any] = {k: self._held[k] for k in ("counts", "drift") if k in self._held}
        return {**super().state_dict(), **held, "past": past}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        past = {int(place): Batch.from_state(row) for place, row in state.get("past", ())}
        super().load_state_dict({**state, "past": past})


def _row(batch: Batch, row: int) -> Batch:
    """What evaluating one trajectory takes, without padding."""
    long = int(batch.mask[row].nonzero().max()) + 1 if bool(batch.mask[row].any()) else 1
    one = batch[row : row + 1]
    context = dict(one.context)
    if "prompt_mask" in context:
        wide = int(context["prompt_mask"].sum())
        context = {name: value[:, :wide] for name, value in context.items()}
    inputs = {name: value[:, :long] for name, value in one.inputs.items()}
    return Batch(mask=one.mask[:, :long], logp=one.need("logp")[:, :long], inputs=inputs, context=context)


@dataclass(frozen=True)
class TrackedBaseline(Credit):
    """Return minus the value that the curriculum tracks for the problem, normalised over the batch (SPO).

        A_i = R_i - v(x_i),   A~_i = (A_i - mean_j A_j) / (std_j A_j + 1e-8)

    over all trajectories j of the batch, with the (n - 1) deviation; given to every step of trajectory i. v is as it
    was before the batch, so that it does not depend on the response. normalise=False: A_i itself.
    """

    domains = ("language",)
    normalise: bool = True

    @property
    def promises(self) -> Promises:  # type: ignore[override]
        return Promises("invariant") if self.normalise else Promises("equivariant", "equivariant")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if not recipe.curriculum.tracks:
            return (
                f"credit {self.part_name()} reads values that a curriculum tracks, and {recipe.curriculum.part_name()} "
                "tracks none; use --curriculum value_tracker"
            )
        return None

    def __call__(self, batch: Batch) -> Tensor:
        advantage = trajectory_return(batch) - batch.need("baseline")
        if self.normalise and len(batch) > 1:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        return spread(advantage, batch)


SPO = GRPO.but(
    curriculum=ValueTracker(), credit=TrackedBaseline(), objective=ClippedSurrogate(clip_low=0.2, clip_high=0.28),
    aggregate=TokenMean(), group_size=1, batch_size=128,
)  # fmt: skip

RECIPES = {
    "single_stream_po": SPO,
    "single_stream_po_uniform": SPO.but(curriculum=ValueTracker(prioritise=False)),
    "grpo_on_a_pool": GRPO.but(curriculum=Pool(), objective=SPO.objective, aggregate=SPO.aggregate, batch_size=16),
}


def batches_an_hour(arm: str, seed: int, spread: float, keep: bool = False, batches: int = 200) -> float:
    """Batches of 128 responses an hour that 256 machines give when a response takes exp(spread * z) minutes.

    One arm takes the first 128 responses that are ready, the other the first 16 groups of 8 whose responses are all
    ready. keep: what is under way goes on into the next batch, and machines are never idle; else every batch starts
    anew with the newest policy and drops what is not ready. The time to learn is left out.
    """
    g = torch.Generator().manual_seed(seed)
    size = 1 if arm == "treatment" else 8
    if not keep:
        minutes = (torch.randn(batches, 256 // size, size, generator=g, dtype=torch.float64) * spread).exp()
        ready = minutes.amax(2).sort(1).values[:, 128 // size - 1]
        return 60 * batches / float(ready.sum())
    durations = iter((torch.randn(batches * 128 * 4, generator=g, dtype=torch.float64) * spread).exp().tolist())
    running = [(next(durations), i // size) for i in range(256)]
    heapq.heapify(running)
    left: dict[int, int] = {}
    started, done, now = 256, 0, 0.0
    while done < batches * 128:
        now, group = running[0]
        left[group] = left.get(group, size) - 1
        done += size if left[group] == 0 else 0
        heapq.heapreplace(running, (now + next(durations), started // size))
        started += 1
    return 60 * batches / now


_FLEET: dict[str, Any] = dict(
    treatment="single_stream_po", control="grpo", task="a simulated fleet", metric="batches an hour", kind="ratio",
    dial=("unevenness of response times", (("none", {"spread": 0.0}), ("heavy tail", {"spread": 1.5}))),
    experiment=batches_an_hour,
)  # fmt: skip

CLAIMS = (
    Claim(
        statement="with as many responses a step, one for each problem learns more than groups of eight do",
        treatment="single_stream_po", control="grpo_on_a_pool", task="arithmetic",
        settings={"steps": 30, "curriculum.size": 256, "eval_size": 300},
        dial=("degenerate groups", (("few (level 2)", {"task.level": 2}), ("many (level 4)", {"task.level": 4}))),
        search_treatment={"lr": (1e-4, 3e-4, 1e-3), "curriculum.initial": (0,)},
        search_control={"lr": (1e-4, 3e-4, 1e-3), "group_size": (8,)},
        analysis="As much, not more: 0.89 against 0.89 where many groups of eight are degenerate. What groups "
        "without a signal cost is samples, and both arms were given as many.",
    ),
    Claim("without groups to wait for, batches of the newest policy come faster if times are uneven", **_FLEET),
    Claim("they come faster, too, if responses under way are kept for the next", settings={"keep": True}, **_FLEET),
)  # fmt: skip
