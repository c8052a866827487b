"""Policies whose networks are asked by several ranks together: each computes its own rows, and all see all of them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.policy import Policy
from partita.core.ranks import gathered, own_rows, world
from partita.policies.feed_forward import FeedForwardPolicy, Networks
from partita.policies.language import LanguagePolicy
from partita.policies.sampling import Generation, Sampling, together

P = TypeVar("P", bound=Policy)


def spread(policy: P) -> P:
    """The same policy, shared out among the ranks; nothing changes where there is one process."""
    if world() > 1:
        base = type(policy)
        mixin = next((m for kind, m in SPREAD.items() if issubclass(base, kind)), _Spread)
        policy.__class__ = type(f"Spread{base.__name__}", (mixin, base), {})
    return policy


class _Spread(Policy):
    """Trajectories are evaluated where they belong."""

    def evaluate(self, batch: Batch, entropy: bool = False) -> Outputs:
        count = len(batch)
        out = super().evaluate(batch[own_rows(count)], entropy)
        held = {f.name: getattr(out, f.name) for f in fields(out)}
        return replace(out, **{name: gathered(x, count) for name, x in held.items() if x is not None})


class _SpreadLanguage(_Spread, LanguagePolicy):
    """Responses are sampled where they belong, too."""

    def respond(
        self, tokens: Tensor, mask: Tensor, group: Tensor, uniform: Tensor, sampling: Sampling,
        schedule: Tensor | None, entropy: bool,
    ) -> Generation:  # fmt: skip
        count = len(group)
        mine = own_rows(count)
        first, last = int(group[mine][0]), int(group[mine][-1]) + 1
        out = super().respond(
            tokens[first:last], mask[first:last], group[mine] - first, uniform[:, mine], sampling, schedule, entropy
        )
        return together(out, count)


class _SpreadFeedForward(FeedForwardPolicy):
    """Actors, critics and values of the replay loop: each network computes its own rows."""

    def head(self, obs: Tensor, networks: Networks | None = None) -> Tensor:
        if (networks or self.module).actor is None:  # the mean of critics, which are spread themselves
            return super().head(obs, networks)
        return gathered(super().head(obs[own_rows(len(obs))], networks), len(obs))

    def raw(
        self, obs: Tensor, action: Tensor | None = None, networks: Networks | None = None, first: int | None = None
    ) -> Tensor:
        mine = own_rows(len(obs))
        found = super().raw(obs[mine], None if action is None else action[mine], networks, first)
        return gathered(found.transpose(0, 1), len(obs)).transpose(0, 1)

    def v(self, obs: Tensor, networks: Networks | None = None) -> Tensor:
        return gathered(super().v(obs[own_rows(len(obs))], networks).T, len(obs)).T


SPREAD: dict[type[Policy], Any] = {LanguagePolicy: _SpreadLanguage, FeedForwardPolicy: _SpreadFeedForward}
