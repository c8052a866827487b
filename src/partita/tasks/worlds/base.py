"""Multi-turn worlds: text goes in, text comes out, several times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from partita.core.errors import UserError, nearest
from partita.core.part import Domain
from partita.core.task import Problem, Task

if TYPE_CHECKING:
    import torch

MARKER = ">"  # ends every observation, and the prompt: the policy acts next
MALFORMED = "?"  # begins the observation that follows an action which could not be read
inside = False  # true in a worker process, where episodes are opened as they are


@dataclass(frozen=True)
class Reply:
    """A world's answer to one action.

    observation: text the policy reads next, ending in `MARKER` ("" when done). reward: earned by this action.
    done: the episode is over. valid: the action was well formed. score: the outcome so far, 1.0 is success.
    parts: counts so far that a reward may read, such as "calls" (uses of a tool).
    """

    observation: str
    reward: float
    done: bool
    valid: bool = True
    score: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)


class Broken(Exception):
    """The world of an episode failed: it raised, hung or died. The text says how."""


class Episode:
    """One running episode. `observation` is what there is to read between the prompt and the first action."""

    observation: str = ""
    state: str  # canonical text of the current state; equal for equal states (hashed into `state_key`)

    def act(self, action: str) -> Reply:
        """Take one action. Malformed text is an observation that says so, never an exception.

        An action after the end changes nothing and earns nothing.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what the episode holds (a simulator); an episode that is over has done so itself."""


@dataclass(frozen=True)
class Transcript:
    """An episode written out: prompt, action, observation, action, ...

    text: all of it. spans: (start, end) in `text` of each action, the only characters that a policy wrote;
    rewards, states: per action, what it earned and the state it was taken in. score, done, parts: of the last reply.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    rewards: tuple[float, ...]
    states: tuple[str, ...]
    score: float
    done: bool
    parts: Mapping[str, float]


class World(Task):
    """Base of multi-turn language tasks.

    A policy reads `problem.prompt + episode.observation`, writes an action that ends in a stop string, reads the
    reply's observation, and so on, until a reply is done or `max_turns` actions were taken (the caller counts).

    hosted: its episodes live in `workers` processes of its own, because a process can be stopped and a thread cannot.
    What raises there, takes longer than `seconds` (an episode opened, an action taken), goes beyond `memory_mb` of
    address space (0: no limit) or kills its process costs the episode that did it; other episodes of that process are
    played again from their actions, and one that then goes another way was not deterministic and is over. Such a world
    is defined in a module or a file, and its settings and problems can be pickled. With `hosted = False` a world plays
    in our process: faster, and no limit holds.

    slow: an action may take long (a process, a network): a batch of episodes waits for its slowest for `patience`
    seconds, then the others act again. Where it is not slow, everybody is waited for.
    """

    domain: ClassVar[Domain] = "language"
    domains: ClassVar[tuple[Domain, ...]] = ("language",)
    max_tokens: ClassVar[int] = 16  # tokens of one action
    stop: ClassVar[tuple[str, ...]] = ("\n",)  # strings that end one action
    levels: ClassVar[tuple[int, ...]] = ()  # what a curriculum can choose between
    hard: ClassVar[int | None] = None  # a level outside `levels`
    flaws: ClassVar[tuple[str, ...]] = ("random",)  # flawed procedures that `demonstrate` knows
    counts: ClassVar[tuple[str, ...] | None] = None  # names of `Reply.parts` (None: not known before it is played)
    hosted: ClassVar[bool] = True
    slow: ClassVar[bool] = False
    patience: ClassVar[float] = 1.0
    max_turns: int = 8
    workers: int = 2
    seconds: float = 10.0
    memory_mb: int = 0

    def met(self, policy: Any) -> Self:
        """Itself. Raises UserError, before anything is written, on a world that no worker could play."""
        if self.hosted:
            from partita.tasks.worlds.hosts import hosts

            hosts(self)
        return self

    def problems(self, n: int, generator: torch.Generator) -> list[Problem]:
        """n problems; `Problem.prompt` is what the policy reads before its first action."""
        raise NotImplementedError

    def open(self, problem: Problem) -> Episode:
        """A new episode of the problem, deterministic in it, in whatever process this is called."""
        raise NotImplementedError

    def begin(self, problem: Problem) -> Episode:
        """A new episode of the problem where it belongs: in a worker process, if the world is `hosted`."""
        if inside or not self.hosted:
            return self.open(problem)
        from partita.tasks.worlds.hosts import Proxy, hosts

        return Proxy(hosts(self), problem)

    def demonstrate(self, problem: Problem, generator: torch.Generator, flaw: str | None = None) -> list[str]:
        """At most `max_turns` actions, each with its stop string: an expert's, or those of the procedure `flaw`.

        A flawed procedure sometimes succeeds by luck. Raises UserError on an unknown flaw.
        """
        if flaw is not None and flaw not in self.flaws:
            raise UserError(f"flaw: {self.part_name()} has no `{flaw}`; {nearest(flaw, self.flaws)}")
        return self._demonstrate(problem, generator, flaw)

    def _demonstrate(self, problem: Problem, generator: torch.Generator, flaw: str | None) -> list[str]:
        raise NotImplementedError

    def transcript(self, problem: Problem, actions: Iterable[str]) -> Transcript:
        """What the actions lead to, up to the end of the episode or `max_turns`; later actions are ignored."""
        episode = self.begin(problem)
        text = problem.prompt + episode.observation
        spans, rewards, states = [], [], []
        reply = Reply(episode.observation, 0.0, False)
        for action, _ in zip(actions, range(self.max_turns), strict=False):
            states.append(episode.state)
            reply = episode.act(action)
            spans.append((len(text), len(text) + len(action)))
            rewards.append(reply.reward)
            text += action + reply.observation
            if reply.done:
                break
        episode.close()
        return Transcript(text, tuple(spans), tuple(rewards), tuple(states), reply.score, reply.done, reply.parts)

    def play(self, problem: Problem, choose: Callable[[Episode], str]) -> list[str]:
        """The actions of a scripted agent: `choose` sees the episode and names the next action."""
        episode = self.open(problem)
        actions: list[str] = []
        for _ in range(self.max_turns):
            actions.append(choose(episode))
            if episode.act(actions[-1]).done:
                break
        episode.close()
        return actions


def check_limits(world: World) -> None:
    """Raise UserError where the limits of a hosted world are none."""
    if world.workers < 1:
        raise UserError(f"workers: expected 1 process or more, got {world.workers}")
    if not 0 < world.seconds < float("inf"):
        raise UserError(f"seconds: {world.seconds} is no time limit; choose a number above 0, such as 10")
    if world.memory_mb < 0:
        raise UserError(f"memory_mb: {world.memory_mb} is no memory limit; choose 0 for none, or 1024, say")
