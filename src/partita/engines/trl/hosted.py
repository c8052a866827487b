"""What TRL does in place of our loop's own parts: it samples, it keeps the reference, it holds the data."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.part import Domain
from partita.core.policy import Policy
from partita.core.task import Task
from partita.loops.descent import blame
from partita.loops.on_policy import OnPolicy, gather
from partita.loops.run import Generators
from partita.parts.reference import Reference
from partita.parts.rollout import Rollout


@dataclass(frozen=True)
class TrainDataset(Task):
    """The trainer's data set. max_tokens: the most of a response. batch: what TRL sampled for it just now."""

    domain: ClassVar[Domain] = "language"
    size: ClassVar[int] = 1  # it has responses, which the preference loop asks for

    max_tokens: int | None = 512  # as in TRL
    batch: Batch | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is None:
            raise UserError("max_completion_length: expected the most tokens of a response, got None; give a number")

    def problems(self, n: int, generator: torch.Generator) -> Batch | None:
        """Problems that are solved already."""
        return self.batch


@dataclass(frozen=True)
class Taken(Rollout):
    """Responses that TRL has sampled."""

    def __call__(
        self, policy: Any, task: Any, problems: Any, group_size: int, generator: torch.Generator, needs: Set[str]
    ) -> Batch:
        return problems


@dataclass(frozen=True)
class Kept(Reference):
    """The reference that TRL keeps, and has asked already."""

    def logp(self, policy: Any, batch: Batch) -> Tensor:
        return batch.need("ref_logp")


class Heard(Policy):
    """The policy on the one batch whose forward pass TRL has made."""

    domain: ClassVar[Domain] = "language"

    def __init__(self, said: Outputs) -> None:
        self.said = said

    def evaluate(self, batch: Batch, entropy: bool = False) -> Outputs:
        return self.said


def hosted(recipe: OnPolicy) -> OnPolicy:
    """The recipe as it runs in GRPOTrainer, every part with no state yet.

    Batches are as large as TRL makes them, so that a `select` that would sample again to fill them does not.
    """
    once = {"rounds": 1} if "rounds" in recipe.select.settings() else {}
    return recipe.but(rollout=Taken(), reference=Kept(), select=recipe.select.but(**once), batch_size=1).fresh()


def learnt(recipe: OnPolicy, batch: Batch, step: int) -> tuple[Batch, dict[str, float]]:
    """The rows of a sampled batch that are learnt from, with advantages and weights, and what to watch of them.

    By the on-policy loop's own `gather`, `recipe` being `hosted`. Rows that failed are left out. Raises NonFinite
    naming the slot whose numbers are not finite.
    """
    if batch.failed is not None and bool(batch.failed.all()):
        nothing = torch.zeros_like(batch[:0].need("reward"))
        return batch[:0].but(advantage=nothing, weight=nothing), {"failed": float(len(batch))}
    policy: Any = None  # nothing is asked of it: what parts need is in the batch
    kept, _, metrics = gather(recipe, policy, TrainDataset(batch=batch), Generators(0), step)
    advantage = kept.need("advantage")
    kept = kept.but(weight=recipe.focus(kept) if len(kept) else torch.zeros_like(advantage))
    suspects = [("reward", "reward", kept.reward), ("credit", "advantage", advantage), ("focus", "weight", kept.weight)]
    if (error := blame(suspects, step)) is not None:
        raise error
    return kept, {**metrics, **(recipe.focus.metrics(kept) if len(kept) else {})}


def acting(trainer: Any) -> Any:
    """The trainer's recipe; in an evaluation a copy, of which nothing is remembered."""
    return trainer.recipe if trainer.model.training else copy.deepcopy(trainer.recipe)


def watch(trainer: Any, metrics: Mapping[str, float]) -> None:
    """Hand numbers to the trainer's log, under names of their own."""
    kept = trainer._metrics["train" if trainer.model.training else "eval"]
    for name, value in metrics.items():
        kept[f"partita/{name}"].append(value)
