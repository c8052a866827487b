"""Turns and states of responses that talk with a world, and partial scores: what agent loops leave in verl's rows.

A turn is a run of the policy's tokens. An agent loop may tell the states in which turns begin, as texts, in its output:

    extra_fields={"partita": {"turn_states": ["room 1", "room 2"]}}

Otherwise the state of a turn is what the policy has just read: the prompt, then the world's tokens before the turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from partita.core.errors import UserError
from partita.engines.verl.rows import genuine
from partita.estimators.anchors import hashed, text_key


class Talk(NamedTuple):
    """The turns of a response of L tokens.

    turn, key: (L,) int64, the turn of each token and the state that the turn began in. turns: texts of states and
    actions, where the agent loop tells states.
    """

    turn: Tensor
    key: Tensor
    turns: list[dict[str, str]] | None = None


def talks(data: TensorDict) -> list[Talk]:
    """The turns of each row; UserError where an agent loop tells more or fewer states than a response has turns."""
    own = zip(genuine(data["uid"]).tolist(), extras(data), strict=True)
    told = [(extra.get("partita") or {}).get("turn_states") if real else None for real, extra in own]
    tensors = (data[name].unbind() for name in ("prompts", "responses", "response_mask"))
    return [talk(*row) for row in zip(*tensors, told, strict=True)]


def talk(prompt: Tensor, response: Tensor, mask: Tensor, told: Sequence[str] | None = None) -> Talk:
    """The turns of a response (L,), of which `mask` (L,) tells the policy's tokens; `told`: the state of each turn."""
    edge = torch.diff(mask.bool().long(), prepend=mask.new_zeros(1, dtype=torch.int64))
    begins, ends = (edge == 1).nonzero()[:, 0].tolist(), [0, *(edge == -1).nonzero()[:, 0].tolist(), len(mask)]
    turn = ((edge == 1).cumsum(0) - 1).clamp(min=0)
    if told is None:
        read = [response[end:begin].tolist() for begin, end in zip(begins, ends, strict=False)]
        keys = [hashed(str(tokens if k else prompt.tolist() + tokens)) for k, tokens in enumerate(read)]
        return Talk(turn, torch.tensor(keys or [0])[turn])
    if len(told) != len(begins):
        raise UserError(
            f"extra_fields['partita']['turn_states']: expected {len(begins)} states, one for each run of ones in "
            f"response_mask, got {len(told)}"
        )
    actions = [str(response[begin:end].tolist()) for begin, end in zip(begins, ends[1:], strict=False)]
    turns = [{"state": state, "action": action} for state, action in zip(told, actions, strict=True)]
    return Talk(turn, torch.tensor([text_key(state) for state in told] or [0])[turn], turns)


def columns(rows: Sequence[Talk]) -> dict[str, Tensor]:
    """`turn` and `state_key` of every response token, nested (B, j) int64; empty where nobody takes a second turn."""
    if not any(bool((row.turn > 0).any()) for row in rows):
        return {}
    found = {"turn": [row.turn for row in rows], "state_key": [row.key for row in rows]}
    return {name: torch.nested.as_nested_tensor(column, layout=torch.jagged) for name, column in found.items()}


def records(rows: Sequence[Talk], data: TensorDict) -> tuple[dict[str, Any], ...]:
    """The partial scores of each row, as its reward function returned them, and its turns where states are told."""
    parts = [dict(extra.get("reward_extra_info") or {}) for extra in extras(data)]
    return tuple(
        {"parts": each} | ({} if row.turns is None else {"turns": row.turns})
        for each, row in zip(parts, rows, strict=True)
    )


def extras(data: TensorDict) -> list[Mapping[str, Any]]:
    """What agent loops left beside each response, (B,) dictionaries."""
    if "extra_fields" not in data:
        return [{}] * len(data)
    return [extra if isinstance(extra, Mapping) else {} for extra in data["extra_fields"]]
