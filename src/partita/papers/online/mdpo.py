"""Mirror Descent Policy Optimization (Tomar et al., 2022), arXiv:2005.09814.

Mirror descent maximises a linearised return near the policy pi_k that it has, in the geometry of a Bregman divergence,
which is KL where the potential is the negative entropy:

    pi_{k+1} = argmax_pi E_{s ~ pi_k}[E_{a ~ pi}[A_k(s, a)] - KL(pi(.|s) || pi_k(.|s)) / t_k]      (eq. 5)

On-policy MDPO takes m gradient steps towards it on the whole batch, and lets the step size fall, t_k = 1 - (k - 1) / K.
Its first gradient is the plain policy gradient, for the divergence begins flat; with one step it is that and no more.
Against PPO with a price on KL, it turns the divergence round, has a schedule for the price in place of a target, and
takes no minibatches (`regularisers` and numbers); TRPO has another step besides (`optimiser`).

Where a policy is a table the maximum is known, and TRPO's natural gradient leads along the same line:

    pi_{k+1}(a|s) = pi_k(a|s) exp(t_k A_k(s, a)) / Z(s)

Off-policy MDPO (`mdpo_off`) is a soft actor-critic whose policy is held to what it was up to m updates ago (`actor`):

    loss = E[log pi(a|s) - log pi_k(a|s) - t Q(s, a)],    a ~ pi, reparameterised

plus the entropy of SAC. With pi_k uniform, or t infinite, it is SAC.

Written after notes on the paper and its official code. On-policy there, the critic takes five epochs of minibatches of
its own with clipped values; here it shares the m steps; m = 10 and the gradient norm are those of the code. Off-policy
there, a state value is learnt beside two critics, of which the policy follows the first, and two more terms keep its
numbers small; here critics are SAC's, and the policy follows the lesser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from partita.core.batch import Batch, Outputs
from partita.core.errors import UserError
from partita.core.limits import check_above
from partita.core.paper import Claim, Identity, Paper
from partita.core.policy import Policy
from partita.core.transitions import Transitions
from partita.estimators.trust_region import hessian_product, trust_region_step
from partita.loops.replay import train
from partita.loops.run import Generators, Run
from partita.papers.baselines.ppo_kl import PPO_KL, Direction, StepKL
from partita.papers.baselines.trpo import TRPO, TrustRegion
from partita.papers.online.sac import SAC
from partita.parts.actor import Actor, SoftActor, check_delay
from partita.parts.critic import Notes, pessimistic
from partita.parts.regularisers import ValueLoss
from partita.parts.temperature import FixedTemperature
from partita.policies.agent import Agent
from partita.policies.feed_forward import FeedForward
from partita.tasks.control.probes import ProbeContinuous

PAPER = Paper(
    key="mdpo", title="Mirror Descent Policy Optimization", arxiv="2005.09814",
    authors="Tomar et al.", year=2022, changes=("regularisers", "actor"),
)  # fmt: skip


@dataclass(frozen=True)
class MirrorStep(StepKL):
    """The proximity term of mirror descent, whose steps grow shorter (MDPO, arXiv:2005.09814, eq. 5).

        loss_t = KL(pi(.|s_t) || pi_k(.|s_t)) / t_k,      t_k = step_size (1 - (k - 1) / K)

    k: the update, of K. anneal False: t_k = step_size. direction forward: KL(pi_k || pi). beta multiplies the price.
    """

    direction: Direction = "reverse"
    step_size: float = 1.0
    anneal: bool = True
    _done: dict[str, float] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above("regularisers.mirror_step.step_size", self.step_size)

    def price(self) -> float:
        return self.beta / (self.step_size * (1 - self._done.get("share", 0.0)))

    def adapt(self, policy: Policy, batch: Batch, step: int, total: int) -> dict[str, float]:
        paid = self.price()
        if self.anneal and step < total:
            self._done["share"] = step / total
        return {"step_size": 1 / paid}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._done)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._done.clear()
        self._done.update(state)


@dataclass(frozen=True)
class MirrorActor(Actor):
    """Towards the Boltzmann policy of the critics, from what the policy was (off-policy MDPO, arXiv:2005.09814).

        loss = mean alpha log pi(a|s) + (log_q pi(a|s) - q log_q pi_k(a|s)) / step_size - min_j Q_j(s, a)
        log_q x = (x^(q - 1) - 1) / (q - 1),   log_1 = log

    a: the policy's draw, through which gradients flow, also into log pi_k. pi_k: the policy as it was at the last
    multiple of m updates. The term in brackets is the Bregman divergence of Tsallis' entropy of index q, but for what
    does not depend on pi: KL(pi || pi_k) at 1; the paper tries up to 2. step_size inf: no such term. anchor uniform: a
    pi_k that gives all actions the same, so that at q = 1 it is `soft_actor` with alpha + 1 / step_size.
    """

    step_size: float = 1.0
    m: int = 1000
    q: float = 1.0
    anchor: Literal["old", "uniform"] = "old"
    delay: int = 1
    _old: dict[str, Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_delay(self.delay)
        if not self.step_size > 0:
            raise UserError(f"actor.step_size: expected a number above 0 (inf: no divergence), got {self.step_size}")
        if self.m < 1:
            raise UserError(f"actor.m: expected 1 update or more, got {self.m}")
        if not 1 <= self.q <= 2:
            raise UserError(f"actor.q: expected a number from 1 to 2, got {self.q}")
        if self.anchor not in ("old", "uniform"):
            raise UserError(f"actor.anchor: expected old or uniform, got {self.anchor!r}")

    def refuses(self, recipe: Any, task: Any) -> str | None:
        if any("actor" in getattr(part, "lags", ()) for part in recipe.parts()):
            return "actor mirror_actor keeps the policy of m updates ago, where another part needs one that lags"
        return None

    def log_q(self, logp: Tensor) -> Tensor:
        """log_q of a probability, given its logarithm."""
        return logp if self.q == 1 else torch.expm1((self.q - 1) * logp) / (self.q - 1)

    def remember(self, agent: Agent) -> None:
        """Let the lagging actor be pi_k."""
        if not self._old or (agent.count - 1) % self.m == 0:
            mine = agent.policy.trainable().items()
            self._old.update({name: p.detach().clone() for name, p in mine if name.startswith("actor")})
        behind = dict(agent.lagged.named_parameters())
        for name, weight in self._old.items():
            behind[name].data = weight

    def __call__(self, agent: Agent, batch: Transitions) -> tuple[Tensor, Notes]:
        self.remember(agent)
        policy, price = agent.policy, 1 / self.step_size
        before = policy.head(batch.obs, agent.lagged) if self.anchor == "old" else None
        if agent.discrete:
            with torch.no_grad():
                values = pessimistic(agent.q(batch.obs))
            logp = agent.table(batch.obs)
            old = torch.zeros_like(logp) if before is None else before.log_softmax(-1)
            step = self.log_q(logp) - self.q * self.log_q(old)
            loss = (logp.exp() * (agent.alpha * logp + price * step - values)).sum(-1)
            return batch.mean(loss), {"entropy": -(logp.exp() * logp).detach().sum(-1).mean()}
        action, drawn = agent.draw(batch.obs)
        assert drawn is not None and policy.shape is not None
        old_logp = torch.zeros_like(drawn) if before is None else policy.shape.logp(before, action)
        assert old_logp is not None
        step = self.log_q(drawn) - self.q * self.log_q(old_logp)
        loss = agent.alpha * drawn + price * step - pessimistic(agent.q(batch.obs, action))
        return batch.mean(loss), {"entropy": -drawn.detach().mean(), "step_kl": (drawn - old_logp).detach().mean()}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._old)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._old.clear()
        self._old.update(state)


MDPO = PPO_KL.but(
    regularisers=(ValueLoss(weight=0.5), MirrorStep()), epochs=10, minibatches=1, lr_schedule="linear",
)  # fmt: skip

MDPO_OFF = SAC.but(actor=MirrorActor(), temperature=FixedTemperature(value=0.2))

RECIPES = {"mdpo": MDPO, "mdpo_off": MDPO_OFF}


@dataclass(frozen=True)
class Table:
    """A policy of independent softmax rows and its exact advantages; float64.

    logits, advantage: (S, A), the second with mean zero under the policy. states: (S,), how often each state is seen.
    """

    logits: Tensor
    advantage: Tensor
    states: Tensor

    @staticmethod
    def random(seed: int, states: int = 5, actions: int = 4) -> Table:
        g = torch.Generator().manual_seed(seed)
        logits, values, seen = (torch.randn(states, n, generator=g, dtype=torch.float64) for n in (actions, actions, 1))
        mean = (logits.softmax(1) * values).sum(1, keepdim=True)
        return Table(logits, values - mean, seen[:, 0].softmax(0))

    def batch(self) -> Batch:
        """Every action in every state, each weighted by how often it is met."""
        logp = self.logits.log_softmax(1)
        return Batch(
            mask=torch.ones_like(logp, dtype=torch.bool), logp=logp, advantage=self.advantage,
            weight=self.states[:, None] * logp.exp(),
        )  # fmt: skip

    def outputs(self, logits: Tensor) -> Outputs:
        """What the policy of other logits says of that batch."""
        old, new = self.logits.log_softmax(1), logits.log_softmax(1)
        forward = (old.exp() * (old - new)).sum(1, keepdim=True).expand_as(new)
        reverse = (new.exp() * (new - old)).sum(1, keepdim=True).expand_as(new)
        return Outputs(new, forward_kl=forward, reverse_kl=reverse)

    def loss(self, logits: Tensor, step: StepKL) -> Tensor:
        """What MDPO's gradient steps lower, in expectation."""
        batch, out = self.batch(), self.outputs(logits)
        return (batch.need("weight") * (MDPO.objective(out, batch) + step(out, batch))).sum()

    def mirror(self, step_size: float) -> Tensor:
        """log of pi_k exp(t A) / Z, (S, A)."""
        return (self.logits + step_size * self.advantage).log_softmax(1)


def off_the_mirror_step(seed: int) -> float:
    """How far many gradient steps end from the closed form in a random table, in log-probabilities at worst."""
    table, t = Table.random(seed), 0.5
    logits = table.logits.clone().requires_grad_()
    for _ in range(1500):
        slope = torch.autograd.grad(table.loss(logits, MirrorStep(step_size=t)), logits)[0]
        with torch.no_grad():
            logits -= 2 * t * slope / table.states[:, None]
    return float((logits.detach().log_softmax(1) - table.mirror(t)).abs().max())


def off_the_natural_gradient(seed: int) -> float:
    """How far the step of TRPO in a random table is from some mirror step, in log-probabilities at worst."""
    table, step = Table.random(seed), TRPO.optimiser
    assert isinstance(step, TrustRegion)
    logits, batch = table.logits.clone().requires_grad_(), table.batch()
    out, weight = table.outputs(logits), batch.need("weight")
    gradient = torch.autograd.grad((weight * TRPO.objective(out, batch)).sum(), logits, retain_graph=True)[0]
    slope = torch.autograd.grad((weight * out.need("forward_kl")).sum(), logits, create_graph=True)[0]
    product = hessian_product([slope], [logits])
    moved = trust_region_step(product, gradient.flatten(), step.max_kl, logits.numel()).view_as(gradient)
    after = (table.logits + moved).log_softmax(1)
    length = float((weight * moved * table.advantage).sum() / (weight * table.advantage.square()).sum())
    return float((after - table.mirror(length)).abs().max())


def steps_without_a_price(seed: int) -> float:
    """Largest difference between the weights that SAC and off-policy MDPO with an infinite step size end with."""
    ends = []
    task = ProbeContinuous()
    for recipe in (SAC.but(temperature=FixedTemperature(value=0.2)), MDPO_OFF.but(actor=MirrorActor(math.inf, m=7))):
        recipe = recipe.but(steps=1, updates=50, start=20, batch_size=32)
        policy = recipe.equip(FeedForward(hidden=(16,)), task).build(task, False, Generators(seed)["init"])
        train(recipe, policy, task, Run(seed))
        ends.append(torch.cat([p.detach().flatten() for p in policy.trainable().values()]))
    return float((ends[0] - ends[1]).abs().max())


def held_to_the_uniform_policy(seed: int) -> float:
    """Largest difference, to its size, of the gradients of SAC and of MDPO held to a uniform policy; 1 / t of alpha."""
    task, g = ProbeContinuous(), torch.Generator().manual_seed(seed)
    policy = SAC.equip(FeedForward(hidden=(16,)), task).build(task, False, g)
    obs, action = (torch.rand(64, 1, generator=g) * 2 - 1 for _ in range(2))
    batch = Transitions(obs, action, obs[:, 0], obs, torch.ones(64))
    slopes = []
    for part, alpha in ((SoftActor(), 0.5), (MirrorActor(step_size=1 / 0.3, anchor="uniform"), 0.2)):
        agent = Agent(policy, torch.Generator().manual_seed(seed))
        agent.alpha = torch.tensor(alpha)
        actor = [p for n, p in policy.trainable().items() if n.startswith("actor")]
        slopes.append(torch.cat([x.flatten() for x in torch.autograd.grad(part(agent, batch)[0], actor)]))
    return float((slopes[0] - slopes[1]).abs().max() / slopes[0].abs().max())


_PENDULUM: dict[str, Any] = {
    "batch_size": 16, "steps": 80, "lr_schedule": "linear", "reward.outcome.scale": 0.1, "eval_size": 256,
}  # fmt: skip
_RATES = {"lr": (1e-3, 3e-3, 1e-2)}
_AGAINST_TRPO: dict[str, Any] = dict(
    treatment="mdpo", control="trpo",
    search_treatment={"lr": (1e-3, 3e-3), "regularisers.mirror_step.step_size": (1.0, 3.0)},
    search_control={"lr": (1e-3, 3e-3), "optimiser.max_kl": (0.003, 0.01)},
)  # fmt: skip

CLAIMS = (
    Claim(
        statement="on the whole batch, a price on divergence does at least as well as a clipped ratio (within 50)",
        treatment="mdpo", control="ppo", task="pendulum", metric="return", threshold=-50.0, search=_RATES,
        settings={**_PENDULUM, "minibatches": 1},
        dial=("gradient steps on a batch", (("1", {"epochs": 1}), ("10", {"epochs": 10}))),
        analysis="-168 against -199 on seven seeds, ahead on all of them, and -714 against -157 on the eighth. With "
        "one step they are the same to the bit, as they must be.",
    ),
    Claim(
        statement="and at least as well as PPO with its minibatches, in as many environment steps (within 50)",
        treatment="mdpo", control="ppo", task="pendulum", metric="return", threshold=-50.0, search=_RATES,
        settings=_PENDULUM,
        analysis="-168 against -181 on seven seeds, and on the eighth it ends at -714 where PPO has -166: a price that "
        "grows with the steps does not bring a policy back that an update has spoilt. Both took the highest rate.",
    ),
    Claim(
        statement="and as TRPO, without line search or second derivatives (within 50)",
        task="pendulum", metric="return", threshold=-50.0, settings=_PENDULUM, **_AGAINST_TRPO,
        analysis="-220 against -169: behind by 51, give or take 42, and on all seeds but one (-316 on the worst). Step "
        "sizes were searched for both.",
    ),
    Claim(
        statement="balances a pole at least as long as TRPO, on average over training (within 25)",
        task="cartpole", metric="return:mean", threshold=-25.0,
        settings={"batch_size": 16, "steps": 40, "lr_schedule": "linear"}, **_AGAINST_TRPO,
        analysis="221 against 228: behind by 7, give or take 20, so that a margin of 25 is not shown to hold; one "
        "seed of mirror descent is 60 behind.",
    ),
    Claim(
        statement="off-policy, at least as good as SAC at the same temperature (within 50)",
        treatment="mdpo_off", control="sac_fixed", task="pendulum", metric="return", threshold=-50.0,
        settings={"policy.hidden": (64, 64), "steps": 8, "updates": 500, "eval_size": 256},
        search={"lr": (3e-4, 1e-3, 3e-3)},
        analysis="-233 against -239, but seeds lie between -150 and -504: each loses some (one of ours, three of SAC "
        "at this highest of three rates, which both took), so that a margin of 50 is not shown to hold.",
    ),
    Identity(
        statement="SAC is off-policy MDPO without a price on divergence: after training, the same weights",
        measure=steps_without_a_price, expected=0.0, tolerance=0.0, seeds=8,
    ),
    Identity(
        statement="and MDPO held to the uniform policy at price 1 / t is SAC with 1 / t more temperature",
        measure=held_to_the_uniform_policy, expected=0.0, tolerance=1e-4, seeds=8,
    ),
    Identity(
        statement="in a table, its gradient steps end at pi_k exp(t A) / Z",
        measure=off_the_mirror_step, expected=0.0, tolerance=1e-9, seeds=8,
    ),
    Identity(
        statement="in a table, TRPO's natural gradient is a mirror step too, whose length follows from max_kl",
        measure=off_the_natural_gradient, expected=0.0, tolerance=1e-4, seeds=8,
    ),
)  # fmt: skip
