"""`partita evaluate --endpoint URL`: a served model plays a world, or answers a single-turn language task.

Problems are those that `partita evaluate` gives a policy of one's own at the same seed.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.loops.run import Generators
from partita.policies.endpoint import Asking, Client, ContextFull, Endpoint, Message, RequestFailed, Said, Traffic
from partita.tasks.worlds.base import MALFORMED, MARKER
from partita.tasks.worlds.stage import told

ROOM = 256  # least tokens of an answer in chat, where an action is a line and a task's own number counts characters
PATIENCE = 3  # episodes that are tried although nothing was ever answered
RULES = """\
You act in a world of text. Each message of yours is one action: a single line that holds the action and nothing \
else, no explanation, no quotation marks, no Markdown. You have {turns} actions at most. What you are shown ends in \
`{marker}`, where your action goes; an answer that begins with `{malformed}` says that the last action could not be \
read."""
SINGLE = "Answer in exactly the format that is described here, and write nothing else."


@dataclass(frozen=True)
class Asked:
    """What is asked of the endpoint: `size` problems of the task, drawn from `seed`.

    max_tokens None: the task's own, in chat at least ROOM. stop: send the task's stop strings, which spares tokens;
    a model that thinks before it acts may need it off. manual: what the system message says of the task in chat (None:
    the task's `manual`, or the description that its class has).
    """

    task: Any
    size: int = 200
    seed: int = 0
    temperature: float = 0.0
    max_tokens: int | None = None
    stop: bool = True
    manual: str | None = None

    def asking(self, chat: bool, seed: int | None) -> Asking:
        """The settings of a request."""
        tokens = self.max_tokens or max(self.task.max_tokens, ROOM if chat else 1)
        return Asking(tokens, self.temperature, tuple(self.task.stop) if self.stop else (), seed)


@dataclass(frozen=True)
class Played:
    """One episode or answer. why: "done", "turns" (all taken), "context" (no more room), or "failed: ..." and how.

    text: all that was read and written. turns, malformed: actions, and those that the world could not read.
    """

    problem: int
    category: str
    level: int
    score: float
    turns: int
    malformed: int
    why: str
    parts: dict[str, float] = field(default_factory=dict)
    text: str = ""

    @property
    def failed(self) -> bool:
        """Whether the request or the world broke, so that the score means nothing."""
        return self.why.startswith("failed")


@dataclass(frozen=True)
class Report:
    """All episodes in the order of the problems, and what went over the line."""

    played: tuple[Played, ...]
    traffic: Traffic
    left_out: tuple[str, ...]
    seconds: float


def play(endpoint: Endpoint, asked: Asked, progress: Callable[[int], None] = lambda done: None) -> Report:
    """Let the model at the endpoint play; up to `endpoint.connections` episodes at a time.

    An episode whose request or world fails is over, and says why; the others go on. Raises UserError when nothing is
    answered from the start, or every episode fails.
    """
    streams = Generators(asked.seed)
    asked.task.met(None)
    problems = asked.task.problems(asked.size, streams["evaluation/problems"])
    start = time.monotonic()
    waits = any(getattr(asked.task, name, False) for name in ("slow", "hosted"))
    client, hands = Client(endpoint), ThreadPoolExecutor(endpoint.connections if waits else 1, "world")
    try:
        player = _Player(client, asked, streams, hands)
        played = asyncio.run(player.all(problems, progress))
    finally:
        hands.shutdown(wait=False, cancel_futures=True)
    return Report(tuple(played), client.traffic, tuple(sorted(client.left_out)), time.monotonic() - start)


class _Player:
    """Plays problems through a client; worlds live in threads of their own, so that they hold up no request."""

    def __init__(self, client: Client, asked: Asked, streams: Generators, hands: ThreadPoolExecutor) -> None:
        self.client, self.asked, self.streams, self.hands = client, asked, streams, hands
        self.task, self.chat = asked.task, client.endpoint.chat
        self.world = hasattr(asked.task, "open")
        self.manual = manual(asked) if self.chat else ""
        self.refusals: list[RequestFailed] = []

    async def all(self, problems: Sequence[Problem], progress: Callable[[int], None]) -> list[Played]:
        """Every problem, in order; see `play`."""
        waiting = deque(enumerate(problems))
        running: set[asyncio.Task[Played]] = set()
        done: dict[int, Played] = {}
        jobs = self.client.endpoint.connections
        async with self.client:
            while waiting or running:
                while waiting and len(running) < jobs and self._hopeful(len(done) + len(running)):
                    running.add(asyncio.create_task(self.one(*waiting.popleft())))
                if not running:
                    break
                ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                done |= {played.problem: played for played in (task.result() for task in ended)}
                progress(len(done))
        if self.client.traffic.answered == 0 and self.refusals:
            raise self._nobody_answers()
        if all(p.failed for p in done.values()):
            whys = [p.why.removeprefix("failed: ") for p in done.values()]
            why = max(whys, key=whys.count)
            raise UserError(f"--endpoint {self.client.endpoint.shown}: all {len(done)} episodes failed: {why}")
        return [done[i] for i in range(len(problems))]

    def _hopeful(self, begun: int) -> bool:
        """Whether to begin one more: not while nothing was ever answered and what was asked has failed for good."""
        if self.client.traffic.answered or not self.refusals:
            return True
        return begun < PATIENCE and not any(r.final for r in self.refusals)

    def _nobody_answers(self) -> UserError:
        final = [r for r in self.refusals if r.final]
        if final:
            return final[0]
        whys = [str(r) for r in self.refusals]
        why, count = max(whys, key=whys.count), len(whys)
        none = "the request was not answered" if count == 1 else f"none of {count} requests was answered"
        return UserError(f"--endpoint {self.client.endpoint.shown}: {none}: {why}")

    async def one(self, i: int, problem: Problem) -> Played:
        """One episode, or one answer."""
        game, ask = _Game(), _Questions(self, i)
        try:
            await (self._episode if self.world else self._answer)(problem, ask, game)
            if not math.isfinite(game.score):
                game.why = f"failed: the world gave the score {game.score}"
        except ContextFull as failure:
            self.refusals.append(failure)
            game.why = "context"
        except RequestFailed as failure:
            self.refusals.append(failure)
            game.why = f"failed: {failure}"
        except Exception as error:
            game.why = f"failed: the world: {told(error)}"
        g = game
        return Played(
            i, problem.category, problem.level, g.score, g.turns, g.malformed, g.why, dict(g.parts), g.text
        )  # fmt: skip

    async def _episode(self, problem: Problem, ask: _Questions, game: _Game) -> None:
        episode = await self._aside(self.task.begin, problem)
        game.text = problem.prompt + episode.observation
        talk: list[Message] = [_message("system", self.manual), _message("user", game.text)]
        try:
            while game.turns < self.task.max_turns and game.why != "done":
                action = self.action(await ask(talk if self.chat else game.text))
                reply = await self._aside(episode.act, action)
                game.turns += 1
                game.malformed += not reply.valid
                game.text += action + reply.observation
                talk += [_message("assistant", action.strip()), _message("user", reply.observation)]
                game.score, game.parts = float(reply.score), reply.parts
                game.why = "done" if reply.done else "turns"
        finally:
            await self._aside(_close, episode)

    async def _answer(self, problem: Problem, ask: _Questions, game: _Game) -> None:
        talk = [_message("system", self.manual)] * bool(self.manual) + [_message("user", problem.prompt)]
        response = self.response(await ask(talk if self.chat else problem.prompt))
        game.turns, game.text, game.why = 1, problem.prompt + response, "done"
        outcome = await self._aside(self.task.verify, problem, response)
        game.score, game.parts = float(outcome.score), outcome.parts

    async def _aside(self, function: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.hands, function, *given)

    def action(self, said: Said) -> str:
        """The action in an answer: its first line, up to the first stop string, ended by the world's own.

        In plain text just what the model wrote, as of a policy of one's own: an action that was cut has no end.
        """
        text = said.text.strip() if self.chat else said.text
        found = _before(text, (*self.task.stop, "\n") if self.chat else self.task.stop)
        whole = self.chat or found != text or not said.cut
        return found + (self.task.stop[0] if whole and self.task.stop else "")

    def response(self, said: Said) -> str:
        """The response in an answer to a single question: all of it, up to a stop string of the task, included."""
        text = said.text.lstrip() if self.chat else said.text
        found = _before(text, self.task.stop)
        return found + (self.task.stop[0] if self.task.stop and not (said.cut and found == text) else "")


@dataclass
class _Game:
    """How far an episode has come."""

    score: float = 0.0
    turns: int = 0
    malformed: int = 0
    why: str = "turns"
    parts: Mapping[str, float] = field(default_factory=dict)
    text: str = ""


class _Questions:
    """The questions of one episode: each with a seed of its own where the answer is drawn at random."""

    def __init__(self, player: _Player, i: int) -> None:
        self.player = player
        self.waits = player.streams[f"endpoint/waits/{i}"]
        self.seeds = player.streams[f"endpoint/seeds/{i}"]

    async def __call__(self, said: str | list[Message]) -> Said:
        player, seed = self.player, None
        if player.asked.temperature > 0:
            seed = int(torch.randint(2**31 - 1, (), generator=self.seeds))
        return await player.client.ask(said, player.asked.asking(player.chat, seed), self.waits)


def manual(asked: Asked) -> str:
    """The system message: how to act, and what the task says of itself."""
    task = asked.task
    world = hasattr(task, "open")
    about = asked.manual if asked.manual is not None else getattr(task, "manual", None)
    if about is None and (world or hasattr(task, "flaws")):  # other tasks explain themselves in their prompts
        about = inspect.cleandoc(type(task).__doc__ or "")
        about = "\n\n".join(p for p in about.split("\n\n") if not p.startswith("Raises "))
    if world:
        rules = RULES.format(turns=task.max_turns, marker=MARKER, malformed=MALFORMED)
        return f"{rules}\n\n{about}" if about else rules
    return "" if not about else about if asked.manual is not None else f"{SINGLE}\n\n{about}"


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": text or "(nothing)"}  # some servers refuse empty messages


def _before(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((i for s in stops if (i := text.find(s)) >= 0), default=len(text))]


def _close(episode: Any) -> None:
    try:
        episode.close()
    except Exception:
        return
