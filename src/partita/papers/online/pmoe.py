"""Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning (Ren et al., 2021), arXiv:2104.09122.

Changes SAC in one slot: `actor`. The policy is a mixture of K Gaussians and a gate w,

    pi(a|s) = sum_k w_k(s) pi_k(a|s)

so that several best actions may be held at once. Which expert acts is a draw that no gradient passes; in place of a
relaxation, every expert draws an action, and the gate learns how often each has the best:

    a_k ~ pi_k(s),   best = argmax_k Q(s, a_k),   L_freq = mean_s (1/K) sum_k (w_k(s) - 1[k = best])^2
    L_pri = mean_s alpha log pi_best(a_best|s) - Q(s, a_best),   Q = min_j Q_j

The least of L_freq has w_k(s) the chance that expert k's action is the best. Gradients of Q reach the best expert alone
(`through` all: every expert), those of L_freq the gate alone. With one expert it is `sac`. Beside it `moe_gumbel` is
the same mixture by Gumbel-softmax, SAC's loss through a relaxed draw.

`pmoe_ppo` changes PPO in `regularisers`. Its ratios are those of the whole mixture, which teach gate and experts alike;
L_freq comes on top. On-policy data do not say what the actions of other experts were worth, so that a critic of
actions learns to, by the returns that the state's value learns:

    loss = L_clip + L_V + L_freq + mean_t (Q(s_t, a_t) - G_t)^2

Written after the third author's code; the paper's text was not at hand. In its SAC the trunk has more layers, rewards
are standardised by batch, and the critics' target takes log pi of the expert that was drawn; here that of the mixture.
In its PPO the value loss is clipped, Q has a layer more, and experts draw anew for every minibatch (here with the noise
of their draws when the batch was sampled).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.limits import check_above, check_least
from partita.core.paper import Claim, Paper
from partita.core.part import Domain
from partita.core.transitions import Transitions
from partita.loops.run import Generators
from partita.papers.baselines.ppo import PPO
from partita.papers.measuring import acting
from partita.papers.online.sac import SAC
from partita.parts.actor import Actor, check_delay
from partita.parts.critic import Notes, pessimistic
from partita.parts.regularisers import Regulariser
from partita.parts.rollout import Segments
from partita.policies.agent import Agent
from partita.policies.feed_forward import FeedForwardPolicy
from partita.policies.mixture import Mixture
from partita.policies.mixture_actor_critic import MixtureActorCritic, MixtureOutputs

PAPER = Paper(
    key="pmoe", title="Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning",
    arxiv="2104.09122", loop="replay", authors="Ren et al.", year=2021, changes=("actor", "regularisers"),
)  # fmt: skip

Through = Literal["best", "all"]


def mixture(policy: FeedForwardPolicy) -> Mixture:
    """The head of a policy that is a mixture."""
    assert isinstance(policy.shape, Mixture)
    return policy.shape


@dataclass(frozen=True)
class BestExpert(Actor):
    """The gate by how often an expert is best, the experts by what they reach (Ren et al., 2021, arXiv:2104.09122).

        loss = mean alpha log pi_b(a_b|s) - min_j Q_j(s, a_b)  +  weight * mean (1/K) sum_k (w_k(s) - 1[k = b])^2
        b    = argmax_k min_j Q_j(s, a_k),    a_k ~ pi_k(s), reparameterised

    through: "best", as written, or "all", the first mean over every expert's a_k, summed. The entropy that the
    temperature sees is -log pi_b(a_b|s). How many experts: `policy.experts`.
    """

    heads: ClassVar[tuple[str, ...]] = ("mixture",)
    through: Through = "best"
    weight: float = 1.0
    delay: int = 1

    def __post_init__(self) -> None:
        check_delay(self.delay)
        if self.through not in get_args(Through):
            raise UserError(f"actor.through: expected best or all, got {self.through!r}")
        check_least("actor.weight", self.weight)

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        head, h = mixture(agent.policy), agent.head(batch.obs)
        noise = agent.policy.noise((len(batch),), agent.generator)
        assert noise is not None
        action, logp = head.each(h, noise)
        obs = batch.obs.repeat_interleave(head.experts, 0)
        q = pessimistic(agent.q(obs, action.flatten(0, 1))).view_as(logp)
        best = one_hot(q.detach().argmax(-1), head.experts).to(q.dtype)
        taught = best if self.through == "best" else torch.ones_like(best)
        primitive = batch.mean(((agent.alpha * logp - q) * taught).sum(-1))
        frequency = batch.mean((head.gate(h).exp() - best).square().mean(-1))
        entropy = -(logp.detach() * best).sum(-1).mean()
        return primitive + self.weight * frequency, {"entropy": entropy, "frequency_loss": frequency.detach()}


@dataclass(frozen=True)
class GumbelMixture(Actor):
    """A mixture by the Gumbel-softmax trick, the estimator that `best_expert` takes the place of.

        loss = mean alpha log pi(a|s) - min_j Q_j(s, a),    a = sum_k m_k a_k,   a_k ~ pi_k(s)
        m    = one-hot argmax_k (log w_k + g_k), whose gradient is that of softmax((log w + g) / temperature)

    g: standard Gumbel noise (Jang et al., 2017, arXiv:1611.01144, straight-through). pi is the whole mixture.
    """

    heads: ClassVar[tuple[str, ...]] = ("mixture",)
    temperature: float = 1.0
    delay: int = 1

    def __post_init__(self) -> None:
        check_delay(self.delay)
        check_above("actor.temperature", self.temperature)

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        noise = agent.policy.noise((len(batch),), agent.generator)
        assert noise is not None
        action, logp = mixture(agent.policy).relaxed(agent.head(batch.obs), noise, self.temperature)
        q = pessimistic(agent.q(batch.obs, action))
        return batch.mean(agent.alpha * logp - q), {"entropy": -logp.detach().mean()}


class OfExperts(Regulariser):
    """Base of losses of a mixture (policy `mixture_actor_critic`) whose critic of actions compares experts."""

    abstract: ClassVar[bool] = True
    domains: ClassVar[tuple[Domain, ...]] = ("control",)
    needs = ("value", "noise")
    teaches: ClassVar[type[MixtureActorCritic]] = MixtureActorCritic
    weight: float

    def __post_init__(self) -> None:
        check_least(f"regularisers.{self.part_name()}.weight", self.weight)

    def refuses(self, recipe: Any, task: Any) -> str | None:
        name = self.part_name()
        if not isinstance(recipe.rollout, Segments | None):
            return f"regularisers {name}: what experts drew is known of segments alone; use --rollout segments"
        if "value" not in recipe.credit.needs:
            return (
                f"regularisers {name} goes by returns that a critic learns, and credit {recipe.credit.part_name()} has "
                "none; use --credit gae"
            )
        return None


@dataclass(frozen=True)
class FrequencyLoss(OfExperts):
    """The gate learns how often each expert's draw is the best (Ren et al., 2021, arXiv:2104.09122).

        loss_t = weight (1/K) sum_k (w_k(s_t) - 1[k = b_t])^2,    b_t = argmax_k Q(s_t, a_k),   a_k ~ pi_k(s_t)

    Gradients reach the gate alone. Q is learnt by `action_value_loss`.
    """

    weight: float = 1.0

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        assert isinstance(out, MixtureOutputs) and out.gate is not None
        if out.best is None:
            return torch.zeros_like(out.logp)
        gate = out.gate.exp()
        return self.weight * (gate - one_hot(out.best, gate.shape[-1])).square().mean(-1)


@dataclass(frozen=True)
class ActionValueLoss(OfExperts):
    """Squared error of the critic of actions, which says what the draws of all experts are worth.

        loss_t = weight (Q(s_t, a_t) - G_t)^2

    G_t as in `value_loss`. With one expert there is nothing to compare, and no Q.
    """

    weight: float = 1.0

    def __call__(self, out: Outputs, batch: Batch) -> Tensor:
        assert isinstance(out, MixtureOutputs)
        if out.action_value is None:
            return torch.zeros_like(out.logp)
        return self.weight * (out.action_value - batch.need("returns")).square()


PMOE = SAC.but(actor=BestExpert())

RECIPES = {
    "pmoe": PMOE,
    "pmoe_all": PMOE.but(actor=BestExpert(through="all")),
    "moe_gumbel": SAC.but(actor=GumbelMixture()),
    "pmoe_ppo": PPO.but(regularisers=(*PPO.regularisers, FrequencyLoss(), ActionValueLoss())),
}


@torch.no_grad()
def distinct(policy: Any, obs: Tensor, generator: torch.Generator) -> float:
    """How well an action tells which expert took it, in nats, all experts acting alike often.

        mean_s mean_k E_{a ~ pi_k}[log pi_k(a|s) - log (1/K) sum_j pi_j(a|s)]

    from 0, where the experts are alike, to log K. obs: (N, D).
    """
    head, h = mixture(policy), policy.head(obs)
    noise = policy.noise((len(obs),), generator)
    action, own = head.each(h, noise)
    even = torch.cat((h[:, : h.shape[-1] - head.gates], torch.zeros_like(h[:, : head.gates])), -1)
    both = head.logp(even.repeat_interleave(head.experts, 0), action.flatten(0, 1)).view_as(own)
    return float((own - both).mean())


def distinct_in(folder: Path) -> float:
    """`distinct` of the policy of a finished run on `round_room`, where its episodes begin."""
    (task, policy), streams = acting(folder), Generators(0)
    return distinct(policy, task.observe(task.problems(256, streams["starts"])), streams["actions"])


_ROOM: dict[str, Any] = {
    "steps": 4, "updates": 500, "batch_size": 128, "envs": 4, "ratio": 0.25, "discount": 0.9,
    "policy.hidden": (64, 64), "temperature": "fixed_temperature", "temperature.value": 0.02, "task.speed": 0.5,
    "eval_size": 256,
}  # fmt: skip
_SEARCH = {"lr": (1e-3, 3e-3), "temperature.value": (0.01, 0.03)}
_SEGMENTS: dict[str, Any] = {
    "steps": 60, "rollout": {"part": "segments", "steps": 32}, "batch_size": 64, "credit.discount": 0.9,
    "policy.hidden": (64, 64), "task.speed": 0.5, "eval_size": 256,
}  # fmt: skip
_DOORS = (
    "doors", (("one", {"task.modes": 1}), ("four, of which one is best", {"task.values": (0.25, 0.5, 0.75, 1.0)})),
)  # fmt: skip

CLAIMS = (
    Claim(
        statement="where optima are several it comes to a higher return than a unimodal policy",
        treatment="pmoe", control="sac", task="round_room", metric="return", dial=_DOORS, settings=_ROOM,
        search=_SEARCH,
        analysis="0.97 against 1.00: each finds the best of four doors on seven seeds of eight or on all. On tuning "
        "seeds SAC stayed at lesser doors (0.62 to 0.75); a few seeds decide which.",
    ),
    Claim(
        statement="and than a mixture by Gumbel-softmax",
        treatment="pmoe", control="moe_gumbel", task="round_room", metric="return", dial=_DOORS, settings=_ROOM,
        search=_SEARCH,
        analysis="0.962 against 0.935: a tie. One seed of PMOE and two of the other end at the second best of four "
        "doors, all others at the best; with one door 0.994 against 0.996.",
    ),
    Claim(
        statement="its experts are easier to tell apart than those of a mixture by Gumbel-softmax",
        treatment="pmoe", control="moe_gumbel", task="round_room", metric="nats by which experts are distinct",
        measure=distinct_in, tuned_by="return", settings=_ROOM, search=_SEARCH,
        dial=("doors, all alike", (("one", {"task.modes": 1}), ("four", {"task.modes": 4}))),
        analysis="0.08 against 0.71 nats: the opposite. Both find the best return there; the experts of PMOE come "
        "to mean much the same, those of Gumbel-softmax stay apart, with one door as with four.",
    ),
    Claim(
        statement="in PPO, too, it comes to a higher return than a unimodal policy where optima are several",
        treatment="pmoe_ppo", control="ppo", task="round_room", metric="return", dial=_DOORS, settings=_SEGMENTS,
        search={"lr": (1e-3, 3e-3), "policy.log_std": (-1.0, 0.0)},
        analysis="0.9992 against 0.9999: both find the best of four doors on every seed: probably because 64 "
        "rooms at once see all doors from the first step on, which leaves experts nothing to win.",
    ),
)  # fmt: skip
