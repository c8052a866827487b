"""The slot `replay`: which of the stored transitions are learnt from next, and how much does each count?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.errors import UserError
from partita.core.limits import check_share
from partita.core.part import Domain, Part
from partita.core.store import Store

BLOCK = 1024  # transitions whose priorities are summed together


class Replay(Part):
    """Chooses rows of the store.

    learns: whether the part wants the errors of the critic on what it chose. length: steps that belong together.
    """

    slot: ClassVar[str] = "replay"
    loop: ClassVar[str] = "replay"
    domains: ClassVar[tuple[Domain, ...]] = ("control",)
    learns: ClassVar[bool] = False
    length: int = 1

    def start(self, store: Store, discount: float) -> None:
        """Called once, with the logged data (if any) in the store."""

    def __call__(self, store: Store, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Rows (count,) int64 of the store, and their weights (count,) in the losses (None: all 1)."""
        raise NotImplementedError

    def learn(self, index: Tensor, error: Tensor) -> None:
        """Take the absolute errors (N,) of the critics on rows `index`."""

    def metrics(self) -> dict[str, float]:
        """What to watch of it."""
        return {}


def uniform(count: int, size: int, generator: torch.Generator, start: int = 0) -> Tensor:
    """`count` rows from `start` to `size`, with replacement."""
    return torch.randint(start, size, (count,), generator=generator, device=generator.device)


@dataclass(frozen=True)
class UniformReplay(Replay):
    """Every transition alike, with replacement.

        P(i) = 1 / size

    of what the store holds: logged and own.
    """

    def __call__(self, store: Store, count: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return uniform(count, len(store), generator).to(store.rows.device), None


@dataclass(frozen=True)
class MixedReplay(Replay):
    """A share of every batch from the logged data, the rest from what this run has lived through (Ball et al., 2023).

        share * batch_size  logged,   (1 - share) * batch_size  own

    arXiv:2302.02948. All logged as long as there is nothing else, and the other way round.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        check_share("replay.share", self.share)

    def __call__(self, store: Store, count: int, generator: torch.Generator) -> tuple[Tensor, None]:
        own = len(store) - store.fixed
        logged = count if not own else 0 if not store.fixed else round(self.share * count)
        found = [uniform(logged, store.fixed, generator)] if logged else []
        if count > logged:
            found.append(uniform(count - logged, len(store), generator, store.fixed))
        return torch.cat(found).to(store.rows.device), None


class LoggedReplay(Replay):
    """Base of parts that choose among whole logged episodes, and remember what they found there at the start."""

    abstract: ClassVar[bool] = True

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if getattr(task, "episodes", None) is not None and getattr(task, "online", None) is None:
            return None
        return (
            f"replay {self.part_name()} chooses among logged episodes, and task {task.part_name()} "
            "gives none, or others besides; use --task offline, without --task.online"
        )


def drawn(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of some rows, with replacement."""
    return rows[uniform(count, len(rows), generator).to(rows.device)]


@dataclass(frozen=True)
class BestEpisodes(LoggedReplay):
    """Transitions of the logged episodes with the highest returns, all alike.

        P(i) = 1 / N,    N the transitions of the best share of the episodes

    and 0 for the rest (%BC: Chen et al., 2021, arXiv:2106.01345).
    """

    share: float = 0.1
    _held: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_share("replay.share", self.share, above=True)

    def start(self, store: Store, discount: float) -> None:
        returns, episode = episode_returns(store)
        count = max(1, round(self.share * len(returns)))
        best = torch.zeros_like(returns, dtype=torch.bool)
        best[returns.argsort(descending=True, stable=True)[:count]] = True
        self._held["rows"] = best[episode].nonzero()[:, 0]

    def __call__(self, store: Store, count: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return drawn(self._held["rows"], count, generator), None


@dataclass(frozen=True)
class Demonstrations(LoggedReplay):
    """A share of every batch by the expert, the rest by others; every row is marked as one or the other.

        share * batch_size  the expert's,   (1 - share) * batch_size  others'

    expert: who that is, by `source` of the store: 1 is the first behaviour of a recorded mixture. share 1 leaves the
    others out. Batches have `extra["expert"]` (N,), 1 for the expert's rows and 0 for others.
    """

    expert: int = 1
    share: float = 0.5
    _held: dict[str, Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_share("replay.share", self.share, above=True)

    def start(self, store: Store, discount: float) -> None:
        mine = store.source == self.expert
        store.extra["expert"] = mine.float()
        self._held.update(expert=mine.nonzero()[:, 0], others=(~mine).nonzero()[:, 0])
        if not len(self._held["expert"]) or (self.share < 1 and not len(self._held["others"])):
            known = ", ".join(map(str, store.source.unique().tolist()))
            raise UserError(f"replay.expert: expected rows of source {self.expert} and of others, got {known} alone")

    def __call__(self, store: Store, count: int, generator: torch.Generator) -> tuple[Tensor, None]:
        mine = max(1, round(self.share * count))
        rows = [drawn(self._held["expert"], mine, generator)]
        if mine < count:
            rows.append(drawn(self._held["others"], count - mine, generator))
        return torch.cat(rows), None


def episode_returns(store: Store) -> tuple[Tensor, Tensor]:
    """The return of every logged episode, (E,), and the episode of every logged transition, (fixed,)."""
    episode = store.extra["episode"][: store.fixed]
    rewards = store.rows[: store.fixed, -2]
    return torch.zeros(int(episode.max()) + 1, device=rewards.device).index_add_(0, episode, rewards), episode


@dataclass(frozen=True)
class PrioritisedReplay(Replay):
    """Transitions on which the critics err more, more often (Schaul et al., 2016, arXiv:1511.05952).

        P(i) = p_i^alpha / sum_j p_j^alpha,    p_i = |error_i| + eps            (eq. 1)
        w_i = (N P(i))^-beta / max_j w_j       over the batch                   (section 3.4)

    A transition that has not been learnt from has the largest priority there has been. beta rises from its value to 1
    over `anneal` draws.
    """

    alpha: float = 0.6
    beta: float = 0.4
    anneal: int = 100_000
    eps: float = 1e-6
    _held: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            check_share(f"replay.{name}", getattr(self, name))
        if self.anneal < 1 or not self.eps > 0:
            raise UserError(f"replay: expected anneal of 1 or more and eps above 0, got {self.anneal} and {self.eps}")

    def _tables(self, store: Store) -> tuple[Tensor, Tensor]:
        """Priorities to the power of alpha, (blocks, BLOCK), and their sums (blocks,); new rows filled in."""
        held = self._held
        if "power" not in held:
            blocks = -(-len(store.rows) // BLOCK)
            held |= {"power": torch.zeros(blocks, BLOCK, dtype=torch.float64, device=store.rows.device)}
            held |= {"sums": held["power"].sum(1), "top": 1.0, "seen": 0, "draws": 0}
            self._fill(0, store.fixed)
        new = store.written - held["seen"]
        if new > 0:
            first = held["seen"] % max(store.ring, 1)
            held["seen"] = store.written
            new = min(new, store.ring)
            self._fill(store.fixed + first, min(store.fixed + first + new, store.fixed + store.ring))
            self._fill(store.fixed, store.fixed + max(0, first + new - store.ring))
        return held["power"], held["sums"]

    def _fill(self, start: int, stop: int) -> None:
        if stop > start:
            power = self._held["power"]
            power.view(-1)[start:stop] = self._held["top"]
            blocks = slice(start // BLOCK, (stop - 1) // BLOCK + 1)
            self._held["sums"][blocks] = power[blocks].sum(1)

    def __call__(self, store: Store, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        power, sums = self._tables(store)
        edges = sums.cumsum(0)
        total = edges[-1]
        place = torch.rand(count, generator=generator, dtype=torch.float64).to(edges.device) * total
        block = torch.searchsorted(edges, place, right=True).clamp(max=len(edges) - 1)
        within = power[block].cumsum(1)
        rest = (place - (edges[block] - sums[block]))[:, None]
        column = torch.searchsorted(within, rest, right=True)[:, 0].clamp(max=BLOCK - 1)
        index = (block * BLOCK + column).clamp(max=len(store) - 1)
        self._held["draws"] += 1
        beta = self.beta + (1 - self.beta) * min(1.0, self._held["draws"] / self.anneal)
        weight = (power.view(-1)[index].clamp(min=1e-300) / total * len(store)).pow(-beta)
        return index, (weight / weight.max()).to(store.rows.dtype)

    def learn(self, index: Tensor, error: Tensor) -> None:
        power, sums = self._held["power"], self._held["sums"]
        fresh = (error.double() + self.eps).pow(self.alpha)
        self._held["top"] = max(self._held["top"], float(fresh.max()))
        power.view(-1)[index] = fresh
        blocks = (index // BLOCK).unique()
        sums[blocks] = power[blocks].sum(1)

    def state_dict(self) -> dict[str, Any]:
        return {**self._held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._held.clear()
        self._held.update({k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()})
