"""One update of the replay loop: the losses of value, critic and actor, in this order, and the networks that lag."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from partita.core.errors import NonFinite, UserError
from partita.core.program import Columns, Program
from partita.core.ranks import averaged
from partita.core.transitions import Transitions
from partita.loops.descent import blame
from partita.loops.learner import Learner
from partita.parts.critic import Notes
from partita.policies.agent import Agent
from partita.policies.stack import Stack

if TYPE_CHECKING:
    from partita.loops.replay import OffPolicy

NETWORKS = ("value", "critic", "actor")  # in the order in which they are updated


class Learners:
    """An optimiser for every network of a policy that learns, and the parameters that lag behind."""

    def __init__(self, recipe: OffPolicy, agent: Agent) -> None:
        self.agent, self.learners = agent, dict[str, Learner]()
        self.named: dict[str, dict[str, Any]] = {}
        everything = agent.policy.trainable()
        for name in NETWORKS:
            mine = {n: p for n, p in everything.items() if n.startswith(name)}
            if not mine or (name != "critic" and getattr(recipe, name) is None):
                continue
            self.named[name] = mine
            self.learners[name] = recipe.learner(mine, getattr(recipe, f"{name}_lr"))
        lags = {name for part in recipe.parts() for name in getattr(part, "lags", ())}
        behind = dict(agent.lagged.named_parameters())
        follow = [n for n in everything if n.startswith(tuple(lags))]
        self.lagged, self.learnt = [behind[n] for n in follow], [everything[n] for n in follow]
        self.programs: dict[tuple[bool, bool], Program] = {}  # by what is due, the actor and the lagging networks
        if recipe.compile:  # a compiler joins operations better than we do by hand, where it sees them
            for learner in self.learners.values():
                learner.kernel = False
            for networks in (agent.policy.module, agent.lagged):
                for stack in networks.modules():
                    if isinstance(stack, Stack):
                        stack.fused = False

    def begin(self, step: int) -> float:
        """Set the learning rates of a step of the loop; returns the actor's, or the critics' where it has none."""
        rates = {name: learner.begin(step) for name, learner in self.learners.items()}
        return rates.get("actor", next(iter(rates.values())))

    def hold(self, name: str, still: bool) -> None:
        """Let gradients flow through a network without any for its own weights, or let these have theirs again."""
        for parameter in self.named.get(name, {}).values():
            parameter.requires_grad_(not still)

    def move(self, name: str, loss: Tensor, part: Any) -> None:
        """A step of the network `name` down `loss`, scalar, or (M,) whose gradients the part joins."""
        parameters = list(self.named[name].values())
        if loss.dim() == 0:
            gradients: Sequence[Tensor] = torch.autograd.grad(loss, parameters)
        else:
            last = len(loss) - 1
            found = [list(torch.autograd.grad(x, parameters, retain_graph=i < last)) for i, x in enumerate(loss)]
            for each in found:
                averaged(each)  # before they are joined, which need not be linear
            gradients = part.join(found)
        self.learners[name].move(list(self.named[name]), gradients)
        self.agent.moved(name)

    def state_dict(self) -> dict[str, Any]:
        return {**{name: learner.state_dict() for name, learner in self.learners.items()}, "lagged": list(self.lagged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, learner in self.learners.items():
            learner.load_state_dict(state[name])
        for mine, given in zip(self.lagged, state["lagged"], strict=True):
            mine.copy_(given)


def improve(recipe: OffPolicy, agent: Agent, learners: Learners, batch: Transitions) -> Notes:
    """One update of every network that is due; returns what to watch, scalars, and "error" (N,) of the critics."""
    agent.count += 1
    agent.alpha.fill_(recipe.temperature.alpha())
    seen = (_compiled if recipe.compile else _update)(recipe, agent, learners, batch)
    if "entropy" in seen:
        recipe.temperature.learn(seen["entropy"])
    return seen


def _update(recipe: OffPolicy, agent: Agent, learners: Learners, batch: Transitions) -> Notes:
    """What of an update is arithmetic on tensors alone."""
    with agent.update():
        seen = _losses(recipe, agent, learners, batch)
    recipe.target(learners.lagged, learners.learnt, agent.count)
    return seen


def _losses(recipe: OffPolicy, agent: Agent, learners: Learners, batch: Transitions) -> Notes:
    """A step of every network that is due, down its loss."""
    seen: Notes = {}
    if recipe.value is not None:
        loss, notes = recipe.value(agent, batch)
        learners.move("value", loss, recipe.value)
        seen |= {"value_loss": loss.detach().sum(), **notes}
    if recipe.critic is not None:
        loss, notes = recipe.critic(agent, batch)
        for penalty in recipe.regularisers:
            if (extra := penalty.critic(agent, batch)) is not None:
                loss = loss + extra
        learners.move("critic", loss, recipe.critic)
        seen |= {"critic_loss": loss.detach(), **notes}
    if "actor" in learners.learners and agent.count % recipe.actor.delay == 0:
        learners.hold("critic", True)
        loss, notes = recipe.actor(agent, batch)
        for penalty in recipe.regularisers:
            if (extra := penalty.actor(agent, batch)) is not None:
                loss = loss + extra
        learners.move("actor", loss, recipe.actor)
        learners.hold("critic", False)
        seen |= {"actor_loss": loss.detach(), **notes}
    return seen


def _compiled(recipe: OffPolicy, agent: Agent, learners: Learners, batch: Transitions) -> Notes:
    """The same as a program, one for every combination of what is due."""
    due = agent.count % recipe.actor.delay == 0, agent.count % recipe.target.every == 0
    if due not in learners.programs:
        for part in (recipe.value, recipe.critic, recipe.actor, recipe.target, *recipe.regularisers):
            if part is not None and hasattr(part, "state_dict"):
                raise UserError(
                    f"compile: {part.slot} {part.part_name()} keeps a state of its own; leave --compile out"
                )
        count = agent.count

        def update(columns: Columns) -> Notes:
            assert agent.count == count  # recorded at once
            return _update(recipe, agent, learners, batch.over(columns))

        learners.programs[due] = Program(update, list(_state(agent, learners)), [agent.generator])
    return learners.programs[due](batch.columns())


def _state(agent: Agent, learners: Learners) -> Iterator[Tensor]:
    """Every tensor that an update reads or changes, beside those of its batch."""
    yield agent.alpha
    for networks in (agent.policy.module, agent.lagged):
        yield from networks.parameters()
        yield from networks.buffers()
    for learner in learners.learners.values():
        yield from learner.tensors()


def check(agent: Agent, batch: Transitions, seen: Notes, step: int) -> None:
    """Raise NonFinite, naming what is to blame, unless the losses and every parameter are finite."""
    sizes = torch._foreach_norm(list(agent.policy.trainable().values()))
    if bool(torch.stack(sizes).isfinite().all()) and all(bool(v.isfinite().all()) for v in seen.values()):
        return
    suspects: list[tuple[str, str, Tensor | None]] = [
        ("replay", "obs", batch.obs), ("replay", "action", batch.action), ("replay", "reward", batch.reward),
        ("replay", "next_obs", batch.next_obs), ("replay", "weight", batch.weight),
        *((name, f"{name}_loss", seen.get(f"{name}_loss")) for name in NETWORKS),
    ]  # fmt: skip
    found = blame(suspects, step)
    raise found or NonFinite(f"step {step}: policy: parameters are not finite though the losses are; lower lr; stopped")
