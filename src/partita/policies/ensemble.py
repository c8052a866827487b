"""`Ensemble`: several reward models as one policy, which one run trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.policies.language import Language, LanguagePolicy
from partita.policies.scorer import Scorer

if TYPE_CHECKING:
    from partita.core.task import Task


@dataclass(frozen=True)
class Ensemble(Language):
    """Reward models that begin as one language model, each with a value head of its own drawing.

    members: how many. The other settings are those of `language`. A folder that an ensemble was saved to is gone on
    with. It is there to judge: where it must write, its first member does.
    """

    members: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.members < 1:
            raise UserError(f"policy.members: expected 1 or more, got {self.members}")

    def build(self, task: Task | None, value: bool, generator: torch.Generator) -> EnsemblePolicy:
        """The members, with heads uniform within 1 / sqrt(width) drawn from `generator`, or as they were saved."""
        if not value:
            raise UserError("--policy ensemble: it is made of reward models, and this recipe trains none; "
                            "use rm_ensembles")  # fmt: skip
        plain = Language(**{name: held for name, held in self.settings().items() if name != "members"})
        saved = members(Path(self.model).expanduser())
        if saved:
            if len(saved) != self.members:
                raise UserError(f"policy.members: {self.model} holds {len(saved)}; give --policy.members {len(saved)}")
            return EnsemblePolicy([plain.but(model=str(folder)).build(task, True, generator) for folder in saved])
        judges = [plain.build(task, True, generator) for _ in range(self.members)]
        for judge in judges:
            assert judge.value_head is not None
            bound = judge.value_head.in_features**-0.5
            nn.init.uniform_(judge.value_head.weight, -bound, bound, generator=generator)
        return EnsemblePolicy(judges)


class EnsemblePolicy(LanguagePolicy):
    """Reward models side by side.

    In a batch whose `context` has "member", (B,) int64, each response is read by that member, from 0, which may learn
    from it. Otherwise all read all: the value is their mean, log-probabilities are the first one's, nothing learns.
    """

    def __init__(self, judges: Sequence[LanguagePolicy]) -> None:
        first = judges[0]
        super().__init__(first.lm, first.tokenizer, first.settings, True, first.adapter, first.notes)
        self.judges = tuple(judges)
        self.module: nn.Module = nn.ModuleList([judge.module for judge in judges])

    def evaluate(self, batch: Batch, entropy: bool = False) -> Outputs:
        """What the members say of a batch; UserError where they should learn and none is named."""
        member = batch.context.get("member")
        if member is None:
            if torch.is_grad_enabled():
                raise UserError("--policy ensemble: its members learn from responses of their own; use rm_ensembles")
            found = [judge.evaluate(batch, entropy) for judge in self.judges]
            return replace(found[0], value=torch.stack([out.need("value") for out in found]).mean(0))
        rows = [(member == k).nonzero()[:, 0] for k in range(len(self.judges))]
        read = [judge.evaluate(batch[r], entropy) for r, judge in zip(rows, self.judges, strict=True) if len(r)]
        place = torch.cat(rows).argsort()

        def joined(name: str) -> Tensor | None:
            values = [getattr(out, name) for out in read]
            return None if values[0] is None else torch.cat(values)[place]

        return Outputs(torch.cat([out.logp for out in read])[place], joined("entropy"), joined("value"))

    def save(self, folder: Path, merged: bool = False) -> None:
        """Write every member into a folder of its own, `member_1` and so on, as a reward model."""
        for k, judge in enumerate(self.judges, 1):
            judge.save(Path(folder) / f"member_{k}", merged)


def members(folder: Path) -> list[Path]:
    """The folders of the members that an ensemble was saved as, in order; none where it was not."""
    return sorted(folder.glob("member_*"), key=lambda found: int(found.name.partition("_")[2]))


def scorers(
    names: Sequence[str], field: str, device: torch.device | str = "cpu", stop: Sequence[str] = ()
) -> list[Scorer]:
    """The reward models of some folders, each of a run or of the policy in it: the members of an ensemble, or the one.

    Raises UserError, naming `field`, for a folder that has none.
    """
    found: list[str] = []
    for name in names:
        held = members(Path(name) / "policy") or members(Path(name))
        found += [str(folder) for folder in held] or [name]
    return [Scorer.load(name, field, device, stop) for name in found]
