"""The replay loop: values and policies learnt from stored transitions, gathered meanwhile, given, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from partita.core.errors import UserError
from partita.core.limits import check_above, check_least, check_share
from partita.core.policy import Policy
from partita.core.ranks import world
from partita.core.spaces import Box, Discrete
from partita.core.store import Store, check_room, row
from partita.core.task import Task
from partita.core.transitions import Transitions
from partita.loops.collect import Collector
from partita.loops.improve import Learners, check, improve
from partita.loops.learned import Learned
from partita.loops.run import Run
from partita.parts.actor import Actor, SoftActor
from partita.parts.critic import Critic
from partita.parts.explore import Drawn, Explore
from partita.parts.penalty import Penalty
from partita.parts.replay import Replay, UniformReplay
from partita.parts.target import Polyak, Target
from partita.parts.temperature import FixedTemperature, Temperature
from partita.parts.value import Value
from partita.policies.agent import Agent
from partita.policies.feed_forward import FeedForwardPolicy

AHEAD = 16_384  # transitions that are gathered together where nothing changes in between what they are drawn from


@dataclass(frozen=True)
class OffPolicy(Learned):
    """A recipe of the replay loop: a part for each slot, and the numbers of the loop.

    updates: gradient updates of a step of the loop, each on `batch_size` transitions. envs: environments lived in side
    by side. ratio: updates for each step of an environment. start: steps by uniform actions before anything is learnt.
    n_step: rewards that are summed before a value is asked. capacity: own transitions that are remembered. mapped: they
    are kept in a file of the run, not in memory. value_lr, critic_lr, actor_lr: None is lr. normalise: observations are
    standardised by statistics of the logged data, as with --policy.normalise. compile: updates run as one compiled
    program, which takes some 20 s to make and a C++ compiler.

    Where the task gives logged data (`episodes`), these are learnt from; the environment is lived in from the beginning
    where it gives none, and after `task.online` steps of the loop where it names them. Without `explore` never.
    """

    loop: ClassVar[str] = "replay"
    slots: ClassVar[tuple[str, ...]] = (
        "replay", "value", "critic", "actor", "temperature", "regularisers", "target", "explore",
    )  # fmt: skip
    many: ClassVar[tuple[str, ...]] = ("regularisers",)

    replay: Replay = UniformReplay()
    value: Value | None = None
    critic: Critic | None = None
    actor: Actor = SoftActor()
    temperature: Temperature = FixedTemperature()
    regularisers: tuple[Penalty, ...] = ()
    target: Target = Polyak()
    explore: Explore | None = Drawn()

    max_grad_norm: float | None = None
    value_lr: float | None = None
    critic_lr: float | None = None
    actor_lr: float | None = None
    updates: int = 1000
    envs: int = 1
    ratio: float = 1.0
    start: int = 100
    discount: float = 0.99
    n_step: int = 1
    capacity: int = 1_000_000
    mapped: bool = False
    normalise: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.positive("updates", "envs", "n_step", "capacity")
        check_least("start", self.start)
        check_above("ratio", self.ratio)
        check_share("discount", self.discount)
        if self.capacity < self.envs:
            raise UserError(f"capacity: expected at least envs = {self.envs}, got {self.capacity}")

    @property
    def policies(self) -> Mapping[str, str]:  # type: ignore[override]
        """What acts unless another policy is asked for."""
        return {"control": self.actor.teaches.part_name()}

    def small(self) -> OffPolicy:
        return super().small().but(updates=8, start=min(self.start, 8 * self.envs))

    def settle(self, task: Task, policy: Policy | None = None) -> OffPolicy:
        """The recipe with every None filled in."""
        defaults = {"steps": 50, "batch_size": 256, "lr": 3e-4}
        filled = self.but(**{k: v for k, v in defaults.items() if getattr(self, k) is None})
        return filled.each(lambda part: part.settle(task))

    def head(self, task: Any) -> str:
        """The kind of policy that the actor teaches on this task; UserError where there is none."""
        discrete = isinstance(task.action_space, Discrete)
        for name in self.actor.heads:
            if (name in ("categorical", "greedy")) == discrete:
                return name
        raise UserError(
            f"actor: {self.actor.part_name()} teaches policies that are {', '.join(self.actor.heads)}, and task "
            f"{task.part_name()} has {'discrete' if discrete else 'real-valued'} actions; choose another --actor"
        )

    def equip(self, policy: Any, task: Any) -> Any:
        """The policy's settings with the networks that the parts ask for."""
        if not isinstance(policy, self.actor.teaches):
            return policy
        space, critic = task.action_space, self.critic
        wanted = {
            "head": self.head(task),
            "critics": 0 if critic is None else critic.members, "outputs": 1 if critic is None else critic.outputs,
            "dueling": critic is not None and critic.dueling and isinstance(space, Discrete),
            "values": 0 if self.value is None else self.value.members, "context": self.replay.length,
        }  # fmt: skip
        left = {name: value for name, value in wanted.items() if getattr(policy, name, False) is None}
        left["normalise"] = policy.settings()["normalise"] or self.normalise
        return policy.but(**left)

    def check(self, task: Any, policy: Policy) -> None:
        """Refuse combinations that cannot work, saying why."""
        self.complain(task, policy)
        if not isinstance(policy, FeedForwardPolicy) or not isinstance(policy.settings, self.actor.teaches):
            kind = self.actor.teaches.part_name()
            raise UserError(f"policy: actor {self.actor.part_name()} teaches a {kind} policy; use --policy {kind}")
        if policy.settings.head not in self.actor.heads:
            raise UserError(
                f"policy.head: {policy.settings.head} is none that {self.actor.part_name()} teaches "
                f"({', '.join(self.actor.heads)}); leave it out"
            )
        if world() > 1 and (self.compile or self.mapped):
            raise UserError(f"{'compile' if self.compile else 'mapped'}: not with several ranks; leave it out")
        if not lives(task):
            return
        if self.explore is None:
            raise UserError(
                f"task {task.part_name()}: this recipe learns from logged data alone; give it --task offline, or a "
                "way to act with --explore drawn, noisy or epsilon_greedy"
            )
        if not self.mapped and policy.device.type == "cpu":
            space = task.action_space
            check_room(self.capacity, row(task.observation_shape[0], space.size if isinstance(space, Box) else None))
        if self.start * self.envs and self.start >= self.capacity:
            raise UserError(f"start: {self.start} steps do not fit the capacity of {self.capacity}; lower it")


def episodes(task: Any) -> Any:
    """The logged data of a task, or None."""
    return getattr(task, "episodes", None)


def lives(task: Any) -> bool:
    """Whether the environment of a task is acted in while something is learnt."""
    return episodes(task) is None or getattr(task, "online", None) is not None


def stored(recipe: OffPolicy, policy: FeedForwardPolicy, task: Any, run: Run) -> Store:
    """The store of a run, with the logged data in it."""
    space, logged = policy.space, episodes(task)
    acts = lives(task)
    folder = run.spill("replay") if acts else None
    store = Store(
        policy.observation[0], space.size if isinstance(space, Box) else None, recipe.capacity if acts else 0,
        recipe.envs, 0 if logged is None else len(logged), policy.device, folder,
        folder / "mapped" if recipe.mapped and folder is not None else None,
    )  # fmt: skip
    if logged is not None:
        source = 1 if logged.source is None else logged.source + 1
        store.give(
            logged.obs, policy.scaled(logged.action), logged.reward, logged.next_obs, logged.terminated,
            logged.truncated, source, episode=logged.episode,
        )  # fmt: skip
    return store


def train(recipe: OffPolicy, policy: Any, task: Any, run: Run) -> None:
    """Train `policy` on `task` by `recipe`."""
    recipe = recipe.settle(task, policy).fresh()
    recipe.check(task, policy)
    assert recipe.steps is not None
    store = stored(recipe, policy, task, run)
    if store.fixed and policy.module.normaliser is not None:
        policy.module.normaliser.update(store.rows[: store.fixed, : store.observation])
    agent = Agent(policy, run.generators["update"])
    learners = Learners(recipe, agent)
    collector = Collector(task, recipe.envs, agent, store, run.generators["explore"]) if store.ring else None
    recipe.replay.start(store, recipe.discount)
    for penalty in recipe.regularisers:
        penalty.start(store, agent)
    remembering = {f"part.{i}.{p.part_name()}": p for i, p in enumerate(recipe.parts()) if hasattr(p, "state_dict")}
    state: dict[str, Any] = {
        "policy": policy, "agent": agent, "learners": learners, **({"collector": collector} if collector else {}),
        "store": store, "generators": run.generators, **remembering,
    }  # fmt: skip
    online = 0 if not store.fixed else getattr(task, "online", None)
    for step in run.steps(recipe.steps, state):
        rate = learners.begin(step)
        acting = collector if online is not None and step > online else None
        lived = collector.lived if collector else 0
        batch, seen = steps(recipe, agent, learners, store, acting, run)
        if acting is not None:
            acting.check(acting.lived - lived)
        check(agent, batch, seen, step)
        metrics = {name: float(value) for name, value in seen.items() if value.dim() == 0}
        if acting is not None:
            assert recipe.explore is not None
            new = float(acting.lived - lived)
            metrics |= {"steps": new, "samples": new, **acting.metrics(), **recipe.explore.metrics(acting.lived)}
        for penalty in recipe.regularisers:
            metrics |= penalty.metrics()
        if recipe.temperature != FixedTemperature():
            metrics["alpha"] = recipe.temperature.alpha()
        run.log(step, {**metrics, **recipe.replay.metrics(), "updates": float(recipe.updates), "lr": rate})


def steps(
    recipe: OffPolicy, agent: Agent, learners: Learners, store: Store, collector: Collector | None, run: Run
) -> tuple[Transitions, dict[str, torch.Tensor]]:
    """The updates of one step of the loop, and the steps of environments that go with them; the last batch, notes."""
    assert recipe.batch_size is not None
    seen: dict[str, torch.Tensor] = {}
    if collector is not None:
        while collector.lived < recipe.start:
            collector.step(None)
        first = collector.lived
    ahead = 1 if collector is not None or recipe.replay.learns else max(1, AHEAD // recipe.batch_size)
    for count in range(0, recipe.updates, ahead):
        while collector is not None and (collector.lived - first) * recipe.ratio <= count:
            collector.step(recipe.explore)
        for batch in drawn(recipe, store, min(ahead, recipe.updates - count), run.generators["replay"]):
            seen |= improve(recipe, agent, learners, batch)
            if recipe.replay.learns and "error" in seen:
                recipe.replay.learn(batch.need("index"), seen["error"])
    return batch, seen


def drawn(recipe: OffPolicy, store: Store, count: int, generator: torch.Generator) -> list[Transitions]:
    """The batches of the next updates, gathered together."""
    assert recipe.batch_size is not None
    rows, weights = zip(*(recipe.replay(store, recipe.batch_size, generator) for _ in range(count)), strict=True)
    batch = store.take(torch.cat(rows), recipe.discount, recipe.n_step)
    return batch.but(weight=None if weights[0] is None else torch.cat(weights)).split(count)
