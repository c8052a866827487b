"""Credit by a critic of whole utterances, learnt off-policy from a replay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from partita.core.batch import Batch
from partita.core.errors import NonFinite, UserError
from partita.core.part import Domain
from partita.parts.credit import Credit, Promises, check_unit
from partita.parts.utterance_replay import UtteranceReplay
from partita.policies.adam import Adam
from partita.policies.sampling import Sampling
from partita.policies.utterance_critic import UtteranceCritic
from partita.policies.utterances import Utterances, propose, read

SMALL, SMALL_LR, LARGE_LR = 5_000_000, 1e-3, 2e-5


@dataclass(frozen=True)
class UtteranceAdvantage(Credit):
    """The advantage of each utterance by twin critics Q and V that learn from replayed utterances (ArCHer's critic).

        A(s, a) = min(Q_1(s, a), Q_2(s, a)) - min(V_1(s), V_2(s)),   given to every token of the utterance a
        loss = sum_i (Q_i(s, a) - r - discount (1 - last) V'_i(s'))^2 + w (V_i(s) - Q'_i(s, a~))^2
        w = 2 |expectile - [Q'_i(s, a~) < V_i(s)]|,   Q', V' <- (1 - polyak) (Q', V') + polyak (Q, V)

    s is all that was said before the utterance, s' all before the next one. a~ is a fresh utterance of the policy
    (`resample`), so that V is the value of the policy as it is now, or the replayed one. expectile 0.5 is the squared
    error. An episode that was cut off ends there, as one that ended by itself.

    Every call of the loop adds the trajectories sampled to a replay of `capacity` utterances and makes `updates` steps
    of Adam, each on trajectories with about `minibatch` utterances, drawn with replacement; rows that are drawn twice
    are computed once and count twice. critic_lr None: 2e-5, or 1e-3 where the encoder has less than 5 million
    parameters. The encoder is a copy of the policy's trunk as it is at the start (Zhou et al. have a RoBERTa that reads
    histories and utterances apart); train_encoder False leaves it as it is and learns the heads alone.
    max_tokens, stop: of fresh utterances; None and empty: the task's own.
    """

    domains: ClassVar[tuple[Domain, ...]] = ("language",)
    copies: ClassVar[bool] = True
    promises = Promises("invariant", "invariant", "invariant")  # rewards reach it through the critic alone

    discount: float = 0.95
    polyak: float = 0.1
    updates: int = 50
    minibatch: int = 256
    capacity: int = 100_000
    critic_lr: float | None = None
    critic_grad_norm: float = 1.0
    expectile: float = 0.5
    resample: bool = True
    train_encoder: bool = True
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    _live: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_unit("credit.discount", self.discount)
        for name in ("updates", "minibatch", "capacity", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"credit.{name}: expected 1 or more, got {value}")
        if not 0 < self.polyak <= 1:
            raise UserError(f"credit.polyak: expected above 0 and at most 1, got {self.polyak}")
        if not 0 < self.expectile < 1:
            raise UserError(f"credit.expectile: expected a number between 0 and 1, got {self.expectile}")
        for name in ("critic_lr", "critic_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"credit.{name}: expected a number above 0, got {value}")

    def settle(self, task: Any) -> UtteranceAdvantage:
        if task.domain != "language":
            return self
        return self.but(max_tokens=self.max_tokens or task.max_tokens, stop=self.stop or tuple(task.stop))

    def __call__(self, batch: Batch) -> Tensor:
        """Zeros until something was learnt."""
        if "online" not in self._live:
            return torch.zeros_like(batch.need("logp"))
        utterances, rank = read(batch)
        value = self._live["online"].advantage(utterances)
        return value.gather(1, rank.clamp_max(value.shape[1] - 1)).to(batch.need("logp").dtype) * batch.mask

    def learn(self, policy: Any, batch: Batch, generator: torch.Generator) -> None:
        """Take a batch into the replay and train the critics."""
        reward = batch.need("reward")
        if not bool(reward.isfinite().all()):  # the loop is about to stop and say so
            return
        self._begin(policy, generator)
        replay: UtteranceReplay = self._live["replay"]
        replay.add(read(batch.but(reward=reward.float()))[0])
        if not len(replay):
            return
        draws = max(1, round(self.minibatch * len(replay) / replay.utterances))
        drawn = [replay.draw(draws, generator).unique(return_counts=True) for _ in range(self.updates)]
        rows, where = torch.cat([r for r, _ in drawn]).unique(return_inverse=True)
        held = replay.take(rows)
        other = self._propose(policy, batch, held, generator) if self.resample else None
        with torch.no_grad():
            known = None if self.train_encoder else self._live["online"].features(held, other)
        sums = torch.zeros(4, device=held.reward.device)
        for place, (_, counts) in zip(where.split([len(r) for r, _ in drawn]), drawn, strict=True):
            sums += self._update(held, other, known, place, counts.to(held.reward))
        self._live["metrics"] = dict(
            zip(("critic_q_loss", "critic_v_loss", "critic_q", "critic_v"), (sums / self.updates).tolist(), strict=True)
        ) | {"replayed": float(replay.utterances)}

    def _begin(self, policy: Any, generator: torch.Generator) -> None:
        """Make the critics at the first call, from the policy's trunk as it is then or from a checkpoint."""
        live = self._live
        if "online" in live:
            return
        trunk, width = policy.lm.base_model, policy.head.weight.shape[1]
        saved = live.pop("saved", None)
        unused = torch.Generator() if saved else generator  # a resumed run has drawn its first weights already
        online = UtteranceCritic(trunk, width, self.train_encoder, unused)
        lagged = online.lagged()
        rate = self.critic_lr or (SMALL_LR if sum(p.numel() for p in trunk.parameters()) < SMALL else LARGE_LR)
        learning = {name: p for name, p in online.named_parameters() if p.requires_grad}
        adam, replay = Adam(learning, rate, self.critic_grad_norm), UtteranceReplay(self.capacity)
        if saved:
            online.load_state_dict(saved["online"])
            lagged.load_state_dict({**saved["online"], **saved["lagged"]})
            adam.load_state_dict(saved["adam"])
            replay.load_state_dict({k: v.to(policy.device) for k, v in saved["replay"].items()})
        live.update(online=online, lagged=lagged, adam=adam, replay=replay)

    def _propose(
        self, policy: Any, batch: Batch, held: Utterances, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        heat = 1.0
        if "temperature" in batch.inputs and bool(batch.mask.any()):
            heat = float(batch.inputs["temperature"][batch.mask][0])
        most = self.max_tokens or int(batch.lengths.max())
        return propose(policy, held, Sampling(temperature=heat, max_tokens=most, stop=self.stop), generator)

    def _update(
        self,
        held: Utterances,
        other: tuple[Tensor, Tensor] | None,
        known: tuple[Tensor, ...] | None,
        place: Tensor,
        counts: Tensor,
    ) -> Tensor:
        """One step on the rows `place` of `held`, which count `counts` times each; what to watch of it, (4,)."""
        online, lagged = self._live["online"], self._live["lagged"]
        some = held[place]
        if known is None:
            mine = online.features(some)
            with torch.no_grad():
                theirs = lagged.features(some, None if other is None else (other[0][place], other[1][place]))
        else:
            mine = theirs = tuple(x[place] for x in known)
        q, v = online(*mine[:2])
        with torch.no_grad():
            q_other, v_lagged = lagged(theirs[0], theirs[-1])  # the fresh utterances, where there are some
            goal = q_goal(some, v_lagged, self.discount)
        weight = counts[:, None] * some.real
        weight = weight / weight.sum()
        q_loss = ((q - goal).square() * weight).sum()
        v_loss = (expectile_loss(q_other - v, self.expectile) * weight).sum()
        (q_loss + v_loss).backward()
        if not bool(self._live["adam"].apply().isfinite()):
            raise NonFinite(
                "credit: the gradient of the utterance critic is not finite; lower credit.critic_lr; stopped"
            )
        lagged.follow(online, self.polyak)
        seen = (q_loss, v_loss, (q.amin(0) * weight).sum(), (v.amin(0) * weight).sum())
        return torch.stack(seen).detach()

    def metrics(self) -> dict[str, float]:
        """Losses and mean values of the critics over the last call's updates, and the utterances in the replay."""
        return dict(self._live.get("metrics", {}))

    def state_dict(self) -> dict[str, Any]:
        live = self._live
        if "saved" in live:
            return {"saved": live["saved"]}
        if "online" not in live:
            return {}
        # A shared encoder is held once.
        mine = {
            n: x for n, x in live["lagged"].state_dict().items() if self.train_encoder or not n.startswith("encoder")
        }
        saved = {"online": live["online"].state_dict(), "lagged": mine}
        return {"saved": {**saved, "adam": live["adam"].state_dict(), "replay": live["replay"].state_dict()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The networks are built at the next `learn`, which knows the policy."""
        self._live.clear()
        if state:
            self._live["saved"] = state["saved"]


def q_goal(utterances: Utterances, value: Tensor, discount: float) -> Tensor:
    """What Q learns: r_k + discount * V'(s_{k+1}), without V' at the last utterance; value (2, N, K), so the result."""
    after = torch.zeros_like(value)
    after[..., :-1] = value[..., 1:] * utterances.real[:, 1:]
    return utterances.reward + discount * after


def expectile_loss(gap: Tensor, expectile: float) -> Tensor:
    """2 |expectile - [gap < 0]| gap^2, elementwise: the squared error at 0.5."""
    below = (gap < 0).to(gap.dtype)
    return 2 * (expectile - below).abs() * gap.square()
