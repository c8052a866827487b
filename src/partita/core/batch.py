"""`Batch`: what a rollout leaves behind. `Outputs`: what the policy says of it now.

Layout. B trajectories (or segments of one environment's life), T steps (control: environment steps;
language: the tokens after the prompt), right-padded. Two kinds of field and no third: per step, with
leading sizes (B, T), and per trajectory, with leading size B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from partita.core.checks import check_bool

PER_STEP = (
    "mask", "logp", "reward", "terminated", "truncated", "value", "bootstrap", "ref_logp", "entropy",
    "turn", "state_key", "advantage", "returns", "weight", "sampler_logp", "value_weight",
)  # fmt: skip
PER_TRAJECTORY = ("group", "outcome", "baseline", "source", "age", "failed")


@dataclass(frozen=True)
class Batch:
    """Tensors of a rollout, in the logical layout (B, T).

    Per step, (B, T):
        mask: bool, true where the policy acted (false: padding, observation tokens).
        logp: log-probability under the behaviour policy of the action taken, exact for the sampler used.
        reward: reward received after the step.
        terminated, truncated: bool, the episode ended here by its own rules, or was cut.
        value: V(s_t) of the behaviour-time critic.
        bootstrap: V of the true next state where the recursion is cut without termination (truncation,
            end of a segment); zero elsewhere.
        ref_logp, entropy: under the reference, and of the behaviour policy.
        turn: int64, turn index of the token (multi-turn worlds), or the window in which it was drawn.
        state_key: int64, equal for equal states (0 where there is none).
        advantage, returns, weight: filled by the slots `credit` and `focus`.
        sampler_logp: log-probability under the distribution that was really drawn from, where `logp` is that of the
            policy itself (another temperature along the sequence, for example); empty where they are the same.
        value_weight: weights of steps in the critic's loss (empty: all 1), as `weight` has those of the policy's.
    Per trajectory, (B,):
        group: int64, equal for trajectories of the same problem.
        outcome: the verifier's score, or the episode's undiscounted return.
        baseline: a per-trajectory baseline that a rollout measured (greedy decoding, value tracker).
        source: int64, who acted: 0 the policy, 1 a demonstration; other numbers as a rollout says (empty: all 0).
        age: int64, updates since the policy that acted was current (empty: all 0).
        failed: bool, the world broke on the way, so that nothing is known of the actions (empty: none did).
    inputs: per step, what the policy consumes: observations and actions, or tokens; (B, T, ...).
    context: per trajectory, what precedes the first step: a prompt; (B, ...).
    records: per trajectory, plain Python values for people and reward functions (problem, text).
    """

    mask: Tensor
    logp: Tensor | None = None
    reward: Tensor | None = None
    terminated: Tensor | None = None
    truncated: Tensor | None = None
    value: Tensor | None = None
    bootstrap: Tensor | None = None
    ref_logp: Tensor | None = None
    entropy: Tensor | None = None
    turn: Tensor | None = None
    state_key: Tensor | None = None
    advantage: Tensor | None = None
    returns: Tensor | None = None
    weight: Tensor | None = None
    sampler_logp: Tensor | None = None
    value_weight: Tensor | None = None
    group: Tensor | None = None
    outcome: Tensor | None = None
    baseline: Tensor | None = None
    source: Tensor | None = None
    age: Tensor | None = None
    failed: Tensor | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    context: Mapping[str, Tensor] = field(default_factory=dict)
    records: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        check_bool("mask", self.mask)
        lead = tuple(self.mask.shape)
        if len(lead) != 2:
            raise ValueError(f"mask: expected (B, T), got {lead}")
        for name in PER_STEP:
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != lead:
                raise ValueError(f"{name}: expected (B, T) = {lead}, got {tuple(value.shape)}")
        for name in PER_TRAJECTORY:
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != lead[:1]:
                raise ValueError(f"{name}: expected (B,) = {lead[:1]}, got {tuple(value.shape)}")
        for name, value in self.inputs.items():
            if tuple(value.shape[:2]) != lead:
                raise ValueError(f"inputs[{name!r}]: expected (B, T, ...) = {lead}, got {tuple(value.shape)}")
        for name, value in self.context.items():
            if value.shape[0] != lead[0]:
                raise ValueError(f"context[{name!r}]: expected (B, ...) = {lead[:1]}, got {tuple(value.shape)}")
        if self.records is not None and len(self.records) != lead[0]:
            raise ValueError(f"records: expected {lead[0]} entries, got {len(self.records)}")

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Number of steps on which the policy acted, (B,) int64."""
        return self.mask.sum(1)

    def need(self, name: str) -> Tensor:
        """The field `name`, or a ValueError that says who should have filled it."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"batch.{name} is empty: the part that reads it must list it in `needs`")
        return value

    def but(self, **changes: Any) -> Batch:
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def _map(self, change) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                out[f.name] = change(value)
            elif isinstance(value, Mapping):
                out[f.name] = {k: change(v) for k, v in value.items()}
        return out

    def columns(self) -> dict[str, Tensor]:
        """Every tensor, by field, or by field and key."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        flat = {name: value for name, value in held.items() if isinstance(value, Tensor)}
        for name in ("inputs", "context"):
            flat |= {f"{name}.{key}": value for key, value in held[name].items()}
        return flat

    def over(self, columns: Mapping[str, Tensor]) -> Batch:
        """The same columns with other values."""
        given: dict[str, Any] = {name: value for name, value in columns.items() if "." not in name}
        for name in ("inputs", "context"):
            given[name] = {key: columns[f"{name}.{key}"] for key in getattr(self, name)}
        return replace(self, **given)

    def to(self, device: torch.device | str) -> Batch:
        """A copy on another device."""
        return replace(self, **self._map(lambda x: x.to(device)))

    def __getitem__(self, rows: Tensor | slice) -> Batch:
        """The trajectories chosen by a slice, a boolean mask (B,) or an index tensor."""
        if isinstance(rows, slice):
            records = self.records[rows] if self.records is not None else None
        else:
            if rows.dtype == torch.bool:
                rows = rows.nonzero()[:, 0]
            records = tuple(self.records[i] for i in rows.tolist()) if self.records is not None else None
        return replace(self, **self._map(lambda x: x[rows]), records=records)

    def steps(self) -> Batch:
        """The same steps as trajectories of length one, (number of true `mask` entries, 1).

        Only for policies without memory, whose `inputs` stand alone at each step.
        """
        keep = None if bool(self.mask.all()) else self.mask.flatten().nonzero()[:, 0]

        def flat(value: Tensor) -> Tensor:
            value = value.flatten(0, 1)
            return (value if keep is None else value[keep]).unsqueeze(1)

        def per_step(value: Tensor) -> Tensor:
            value = value[:, None].expand(self.mask.shape).flatten()
            return value if keep is None else value[keep]

        out: dict[str, Any] = {n: flat(v) for n in PER_STEP if (v := getattr(self, n)) is not None}
        out |= {n: per_step(v) for n in PER_TRAJECTORY if (v := getattr(self, n)) is not None}
        return Batch(**out, inputs={k: flat(v) for k, v in self.inputs.items()})

    def state_dict(self) -> dict[str, Any]:
        """The fields that are filled, as a checkpoint can hold them."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in held.items() if value is not None}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Batch:
        """Undo `state_dict`."""
        records = state.get("records")
        return Batch(**{**state, "records": None if records is None else tuple(records)})

    @staticmethod
    def cat(batches: Sequence[Batch]) -> Batch:
        """Concatenate trajectories; shorter ones (and shorter contexts) are padded on the right with zeros."""
        if len(batches) == 1:
            return batches[0]
        length = max(b.mask.shape[1] for b in batches)

        def join(values: list[Tensor], size: int | None) -> Tensor:
            if size is not None:
                values = [pad(v, (0, 0) * (v.dim() - 2) + (0, size - v.shape[1])) for v in values]
            return torch.cat(values)

        def held(name: str) -> list[Tensor] | None:
            values = [getattr(b, name) for b in batches]
            present = [v is not None for v in values]
            if any(present) and not all(present):
                raise ValueError(f"cat: {name} is filled in some batches and empty in others")
            return values if all(present) else None

        out: dict[str, Any] = {}
        for name in PER_STEP + PER_TRAJECTORY:
            if (values := held(name)) is not None:
                out[name] = join(values, length if name in PER_STEP else None)
        for name, size in (("inputs", length), ("context", None)):
            tables = [getattr(b, name) for b in batches]
            keys = set(tables[0])
            if any(set(t) != keys for t in tables):
                raise ValueError(f"cat: {name} hold different keys: {[sorted(t) for t in tables]}")
            out[name] = {}
            for key in tables[0]:
                values = [t[key] for t in tables]
                width = size if name == "inputs" else max((v.shape[1] for v in values if v.dim() > 1), default=None)
                out[name][key] = join(values, width)
        records = [b.records for b in batches]
        if all(r is not None for r in records):
            out["records"] = tuple(x for r in records if r is not None for x in r)
        return Batch(**out)


@dataclass(frozen=True)
class Outputs:
    """What the policy says now of the actions in a batch, with gradients. All (B, T).

    logp: log-probability of the action taken; entropy: of the action distribution; value: V(s_t).
    alternatives: (B, T, K), log-probabilities of the actions in `batch.inputs["alternatives"]`, where it holds some.
    forward_kl, reverse_kl: KL(old || pi) and KL(pi || old) of whole action distributions, exact, where
    `batch.inputs["old"]` holds those of an older policy (`Policy.distribution`).
    Entries where `batch.mask` is false are zero.
    """

    logp: Tensor
    entropy: Tensor | None = None
    value: Tensor | None = None
    alternatives: Tensor | None = None
    forward_kl: Tensor | None = None
    reverse_kl: Tensor | None = None

    def need(self, name: str) -> Tensor:
        """The field `name`, or a ValueError that says what is missing."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"outputs.{name} is empty: the part that reads it must list it in `needs`")
        return value
