"""`Ensemble`: several reward models as one policy, which one run trains."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.limits import check_count
from partita.policies.language import Language, LanguagePolicy
from partita.policies.prefix import pack
from partita.policies.scorer import Scorer

if TYPE_CHECKING:
    from partita.core.task import Task

OWN = ("members", "together")  # settings that are not a language model's


@dataclass(frozen=True)
class Ensemble(Language):
    """Reward models that begin as one language model, each with a value head of its own drawing.

    members: how many. together: compute them in one pass, their weights stacked; without adapters, and with as many
    responses for each. The other settings are those of `language`. A folder that an ensemble was saved to is gone on
    with. It is there to judge: where it must write, its first member does.
    """

    members: int = 5
    together: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("policy.members", self.members)

    def build(self, task: Task | None, value: bool, generator: torch.Generator) -> EnsemblePolicy:
        """The members, with heads uniform within 1 / sqrt(width) drawn from `generator`, or as they were saved."""
        if not value:
            raise UserError("--policy ensemble: it is made of reward models, and this recipe trains none; "
                            "use rm_ensembles")  # fmt: skip
        plain = Language(**{name: held for name, held in self.settings().items() if name not in OWN})
        saved = members(Path(self.model).expanduser())
        if saved:
            if len(saved) != self.members:
                raise UserError(f"policy.members: {self.model} holds {len(saved)}; give --policy.members {len(saved)}")
            judges = [plain.but(model=str(folder)).build(task, True, generator) for folder in saved]
            return EnsemblePolicy(judges, self.together)
        judges = [plain.build(task, True, generator) for _ in range(self.members)]
        for judge in judges:
            assert judge.value_head is not None
            bound = judge.value_head.in_features**-0.5
            nn.init.uniform_(judge.value_head.weight, -bound, bound, generator=generator)
        return EnsemblePolicy(judges, self.together)


class EnsemblePolicy(LanguagePolicy):
    """Reward models side by side.

    In a batch whose `context` has "member", (B,) int64, each response is read by that member, from 0, which may learn
    from it. Otherwise all read all: the value is their mean, log-probabilities are the first one's, nothing learns.
    together: all language models in one pass (`Stacked`).
    """

    def __init__(self, judges: Sequence[LanguagePolicy], together: bool = False) -> None:
        first = judges[0]
        super().__init__(first.lm, first.tokenizer, first.settings, True, first.adapter, first.notes)
        self.judges = tuple(judges)
        self.module: nn.Module = nn.ModuleList([judge.module for judge in judges])
        self.stacked = Stacked(self.judges) if together else None

    def evaluate(self, batch: Batch, entropy: bool = False) -> Outputs:
        """What the members say of a batch; UserError where they should learn and none is named."""
        member = batch.context.get("member")
        if member is None:
            if torch.is_grad_enabled():
                raise UserError("--policy ensemble: its members learn from responses of their own; use rm_ensembles")
            found = self.read(batch, [torch.arange(len(batch), device=batch.mask.device)] * len(self.judges), entropy)
            return replace(found[0], value=torch.stack([out.need("value") for out in found]).mean(0))
        rows = [(member == k).nonzero()[:, 0] for k in range(len(self.judges))]
        read = self.read(batch, rows, entropy)
        place = torch.cat(rows).argsort()

        def joined(name: str) -> Tensor | None:
            values = [getattr(out, name) for out in read]
            return None if values[0] is None else torch.cat(values)[place]

        return Outputs(torch.cat([out.logp for out in read])[place], joined("entropy"), joined("value"))

    def read(self, batch: Batch, rows: Sequence[Tensor], entropy: bool) -> list[Outputs]:
        """What each member that has any says of its `rows`."""
        judges: Sequence[LanguagePolicy] = self.judges
        if self.stacked is not None and bool(batch.mask.any()):
            judges = [Told(*told) for told in zip(judges, self.stacked.hidden(batch, rows), strict=True)]
        return [judge.evaluate(batch[r], entropy) for r, judge in zip(rows, judges, strict=True) if len(r)]

    def save(self, folder: Path, merged: bool = False) -> None:
        """Write every member into a folder of its own, `member_1` and so on, as a reward model."""
        for k, judge in enumerate(self.judges, 1):
            judge.save(Path(folder) / f"member_{k}", merged)


class Stacked:
    """The language models of members as one, which computes all of them in one pass, each on rows of its own.

        h_k = f(theta_k, x_k), k = 1 .. K,    as vmap(f)(stack_k theta_k, stack_k x_k)

    Gradients reach the parameters of each; the stack, as large as all of them, lives as long as the graph. Prompts are
    not shared between rows. It is meant for small members on accelerators. On one CPU thread, 5 of tiny-0.3m train at
    1.14 times the speed of one after another from 4 prompts of 2 responses each, at 0.70 times from 32.
    Raises UserError for members that it cannot take: adapters, recomputed layers, models that do not batch.
    """

    def __init__(self, judges: Sequence[LanguagePolicy]) -> None:
        first = judges[0]
        what = "adapters" if first.adapter is not None else "gradient checkpointing"
        if first.adapter is not None or first.settings.gradient_checkpointing:
            raise UserError(f"policy.together: {what} cannot be computed together; leave one of both out")
        self.bases = [judge.lm.base_model for judge in judges]
        tokens = torch.arange(6, device=first.device).expand(len(judges), 1, -1)
        with torch.no_grad():
            try:
                alone = [base(input_ids=tokens[0], use_cache=False).last_hidden_state for base in self.bases]
                apart = torch.stack(alone)
                off = (self(tokens) - apart).abs().max()
            except Exception as error:
                reason = str(error).partition("\n")[0].partition(". ")[0]
                raise UserError(
                    f"policy.together: these members cannot be computed together ({reason}); leave it out"
                ) from error
        if not bool(off <= torch.finfo(apart.dtype).eps ** 0.5 * apart.abs().max()):
            raise UserError("policy.together: these members come out otherwise than one by one; leave it out")

    def __call__(self, tokens: Tensor) -> Tensor:
        """What the last layers read, (K, n, W, D), of `tokens` (K, n, W), member k's in row k."""
        named = [dict(base.named_parameters()) for base in self.bases]
        weights = {name: torch.stack([one[name] for one in named]) for name in named[0]}
        exist = tokens.new_ones(tokens.shape[1:])  # the same for all: else some models look for padding

        def one(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
            told = {"input_ids": tokens, "attention_mask": exist, "use_cache": False}
            return functional_call(self.bases[0], weights, (), told).last_hidden_state

        # The fused kernel for attention on CPUs is one that vmap would call member by member.
        with sdpa_kernel(SDPBackend.MATH) if tokens.device.type == "cpu" else nullcontext():
            return vmap(one)(weights, tokens)

    def hidden(self, batch: Batch, rows: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """`LanguagePolicy.hidden` of every member, for its `rows` of a batch; UserError where some have more."""
        counts = [len(r) for r in rows]
        if len(set(counts)) > 1:
            raise UserError(
                f"policy.together: expected as many responses for every member, got {', '.join(map(str, counts))}; "
                "leave it out, or minibatches and micro_batch"
            )
        packed, order = pack(batch), torch.stack(list(rows))
        start, length = packed.prompt_length[:, None], packed.length[:, None]
        column = torch.arange(int((start + length).max()) - 1, device=order.device)
        after = packed.prompt.shape[1] + (column - start).clamp_max(packed.tokens.shape[1] - 1)
        tokens = torch.cat((packed.prompt, packed.tokens), 1).gather(1, torch.where(column < start, column, after))
        found = []
        for r, hidden in zip(rows, self(tokens[order]), strict=True):
            row, step = batch.mask[r].nonzero(as_tuple=True)
            read = (start + packed.slot - 1)[r[row], step]
            found.append((hidden[row, read], row * batch.mask.shape[1] + step))
        return found


class Told(LanguagePolicy):
    """A member whose hidden states are known already."""

    def __init__(self, member: LanguagePolicy, known: tuple[Tensor, Tensor]) -> None:
        vars(self).update(vars(member))
        self.known = known

    def hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What was computed for this batch."""
        return self.known


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
