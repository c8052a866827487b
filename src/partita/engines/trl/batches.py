"""TRL's tensors as batches, and back: N responses of C tokens at most, padded on the right behind their prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from partita.core.batch import PER_STEP, PER_TRAJECTORY, Batch
from partita.core.errors import UserError
from partita.core.pairs import Pairs
from partita.estimators.anchors import text_key
from partita.estimators.masked import put_last
from partita.parts.rollout.world import turn_ends

OURS = "partita_"  # begins the names of what a batch leaves in TRL's dictionaries
SPENT = {"logp", "reward", "terminated", "truncated", "bootstrap", "failed"}  # not read again, or kept by TRL itself


class Scored(NamedTuple):
    """What reward functions said of a generation.

    values: (N, F), nan where a function gave None. weights: (F,). names: of the functions. prompts, completions: of
    the rows, texts or messages.
    """

    values: Tensor
    weights: Tensor
    names: Sequence[str]
    prompts: Sequence[Any]
    completions: Sequence[Any]

    @property
    def total(self) -> Tensor:
        """Weighted sums over the functions that said something, (N,)."""
        return (self.values * self.weights).nansum(1)

    @property
    def failed(self) -> Tensor:
        """Rows of which no function said anything, (N,) bool."""
        return self.values.isnan().all(1)

    def records(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
        """For each row its columns, what was asked and answered, its score and the functions' parts in it."""
        seen = zip(rows, self.prompts, self.completions, self.total.tolist(), self.values.tolist(), strict=True)
        return tuple(
            {
                **row,
                "prompt": asked,
                "response": said,
                "score": score,
                "parts": dict(zip(self.names, each, strict=True)),
            }
            for row, asked, said, score, each in seen
        )


def acted(inputs: Mapping[str, Any]) -> Tensor:
    """The policy's own tokens, (N, C) bool: no padding, and nothing that a tool or a world wrote."""
    mask = inputs["completion_mask"]
    return (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).bool()


def sampled(
    inputs: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], scored: Scored, group_size: int, ends: Sequence[int]
) -> Batch:
    """A generation of GRPOTrainer as a batch, (N, C), before credit.

    inputs: what GRPOTrainer made of it. rows: the rows of the data set, and what a `rollout_func` added to them (see
    `played`). ends: token ids that end a response. `context["row"]` counts the rows. The reward stands at the last
    token that counts, or at the first of a row in which none does, so that its group still sees it.
    """
    mask, tokens, failed = acted(inputs), inputs["completion_ids"], scored.failed
    index = torch.arange(len(mask), device=mask.device)
    last = put_last(torch.ones(len(mask), device=mask.device), mask).bool()
    paid = mask.clone()
    paid[:, 0] |= ~mask.any(1)
    ended = torch.isin(tokens, torch.tensor(ends, device=mask.device))

    def held(name: str) -> Tensor | None:
        return torch.where(mask, inputs[name], 0) if name in inputs else None

    batch = Batch(
        mask=mask, reward=put_last(scored.total, paid), outcome=scored.total, group=index // group_size,
        logp=held("old_per_token_logps"), ref_logp=held("ref_per_token_logps"), terminated=last & ended,
        truncated=last & ~ended, failed=failed if bool(failed.any()) else None, inputs={"tokens": tokens},
        context={"row": index}, records=scored.records(rows),
    )  # fmt: skip
    return played(batch, rows)


def played(batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
    """The batch with what rows tell of turns; a turn is a run of the policy's own tokens and what answers it.

    turn_states: for each turn of a row, the text of the state in which it began. turn_rewards: for each turn, the
    share that it had in the row's reward; they add up to it. Raises UserError where they do not, or where a row tells
    another number of turns than it has.
    """
    begins = batch.mask.clone()
    begins[:, 1:] &= ~batch.mask[:, :-1]
    turn, counts = (begins.cumsum(1) - 1).clamp(min=0), begins.sum(1).tolist()
    states, rewards = told(rows, "turn_states", counts), told(rows, "turn_rewards", counts)
    batch = batch.but(turn=turn if max(counts, default=0) > 1 or states is not None else None)
    if states is not None:
        keys = table([[text_key(text) for text in row] for row in states], batch.mask, torch.int64)
        batch = batch.but(state_key=keys.gather(1, turn) * batch.mask)
    if rewards is not None:
        whole = batch.need("outcome")
        each = table(rewards, batch.mask, whole.dtype)
        wrong = ((each.sum(1) - whole).abs() > 1e-4 * whole.abs().clamp(min=1)) & batch.mask.any(1)
        if batch.failed is not None:
            wrong &= ~batch.failed
        for i in wrong.nonzero()[:1, 0].tolist():
            raise UserError(
                f"turn_rewards: those of row {i} add up to {float(each[i].sum()):g}, and its reward is "
                f"{float(whole[i]):g}; let a reward function give their sum"
            )
        earned = each.gather(1, turn) * turn_ends(batch.mask, turn)
        batch = batch.but(reward=torch.where(batch.mask.any(1, keepdim=True), earned, batch.need("reward")))
    return batch


def told(rows: Sequence[Mapping[str, Any]], name: str, counts: Sequence[int]) -> list[list[Any]] | None:
    """What each row tells of its turns under a name, nothing for rows without a token that counts; None: nothing."""
    if not any(name in row for row in rows):
        return None
    found = [list(row.get(name) or ()) if count else [] for row, count in zip(rows, counts, strict=True)]
    for i, (row, count) in enumerate(zip(found, counts, strict=True)):
        if len(row) != count:
            raise UserError(
                f"{name}: row {i} tells of {len(row)} turns, and its completion has {count}; "
                "give one for each run of ones in env_mask"
            )
    return found


def table(rows: Sequence[Sequence[Any]], like: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of different lengths as a tensor (N, K), zeros behind their ends."""
    out = torch.zeros(len(rows), max(1, *map(len, rows)), dtype=dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=dtype)
    return out.to(like.device)


def packed(batch: Batch, count: int) -> dict[str, Tensor]:
    """The fields of the rows that are learnt from, at their places among `count` rows; TRL shuffles and splits them."""
    place = batch.context["row"]
    fields = {name: getattr(batch, name) for name in PER_STEP + PER_TRAJECTORY if name not in SPENT}
    fields |= {"keep": torch.ones(len(batch), dtype=torch.bool, device=place.device)}
    return {
        OURS + name: value.new_zeros((count, *value.shape[1:])).index_copy_(0, place, value)
        for name, value in fields.items()
        if value is not None
    }


def unpacked(inputs: Mapping[str, Any]) -> Batch:
    """The rows of a micro-batch that are learnt from."""
    fields = {name.removeprefix(OURS): value for name, value in inputs.items() if name.startswith(OURS)}
    keep = fields.pop("keep")
    return Batch(**fields, inputs={"tokens": inputs["completion_ids"]})[keep]


def compared(inputs: Mapping[str, Tensor]) -> Pairs:
    """A batch of DPOTrainer, M chosen responses above the M rejected ones, as comparisons.

    Position t scores the token after it, so that (2M, L) tokens have (2M, L - 1) steps.
    """
    mask = inputs["completion_mask"][:, 1:].bool()
    rows = torch.arange(len(mask) // 2, device=mask.device)
    batch = Batch(mask=mask, group=torch.cat((rows, rows)), inputs={"tokens": inputs["input_ids"][:, 1:]})
    ref = torch.cat((inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]))
    return Pairs(batch, rows, rows + len(rows), torch.ones(len(rows), device=mask.device), ref=ref)
