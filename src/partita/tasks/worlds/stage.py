"""Episodes side by side: each answers when it can, and one that breaks takes nobody with it."""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds.base import Broken, Episode, Reply, World

HANDS = 64  # episodes that may be under way at a time


@dataclass(frozen=True)
class Answer:
    """What came of an action: the state it was taken in and the reply, or what the world raised.

    failure: "" or "TypeError: ...", and then the episode is over and its reply empty.
    """

    state: str
    reply: Reply
    failure: str = ""


class Stage:
    """The episodes of some problems. Hosted and slow worlds answer in threads, others at once, in turn.

    `act` begins an action of episode i, `answers` gives those that have come in: (i, Answer). An episode that raises is
    over, and its answer says why; the others go on.
    """

    def __init__(self, world: World, problems: Sequence[Problem]) -> None:
        self.world = world
        self._episodes: list[Episode | None] = [None] * len(problems)
        self._inbox: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        self._pending = 0
        threads = world.slow or world.hosted
        self._hands = ThreadPoolExecutor(min(HANDS, max(len(problems), 1)), "world") if threads else None
        each = map if self._hands is None else self._hands.map
        self.openings: list[Answer] = list(each(self._open, range(len(problems)), problems))

    def _open(self, i: int, problem: Problem) -> Answer:
        try:
            episode = self.world.begin(problem)
            self._episodes[i] = episode
            return Answer("", _sound(Reply(episode.observation, 0.0, False)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return Answer("", Reply("", 0.0, True), told(error))

    def _act(self, i: int, action: str) -> Answer:
        episode = self._episodes[i]
        assert episode is not None
        try:
            return Answer(_text("state", episode.state), _sound(episode.act(action)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return Answer("", Reply("", 0.0, True), told(error))

    def act(self, i: int, action: str) -> None:
        """Begin an action of episode i, which must not have one under way."""
        self._pending += 1
        if self._hands is None:
            self._inbox.put((i, self._act(i, action)))
        else:
            self._hands.submit(lambda: self._inbox.put((i, self._act(i, action))))

    def answers(self) -> list[tuple[int, Answer]]:
        """Answers that have come in, in the order of episodes: all of them, or where the world is slow those that came
        within `World.patience` seconds; at least one, if any action is under way."""
        found: list[tuple[int, Answer]] = []
        end = time.monotonic() + self.world.patience
        while self._pending:
            hurry = self.world.slow and found
            try:
                found.append(self._inbox.get(timeout=max(end - time.monotonic(), 0.0) if hurry else None))
            except queue.Empty:
                break
            self._pending -= 1
        return sorted(found, key=lambda pair: pair[0])

    def close(self) -> None:
        """Close every episode; those that cannot be closed are let go."""
        if self._hands is not None:
            self._hands.shutdown(wait=False, cancel_futures=True)
        for episode in self._episodes:
            if episode is not None:
                try:
                    episode.close()
                except Exception:
                    continue


def _sound(reply: Reply) -> Reply:
    """The reply. Raises Broken where a rollout could not use it."""
    _text("observation", reply.observation)
    if not (math.isfinite(reply.reward) and math.isfinite(reply.score)):
        raise Broken(f"reward {reply.reward} and score {reply.score} must be finite")
    return reply


def _text(what: str, value: str) -> str:
    if not isinstance(value, str):
        raise Broken(f"its {what} is {type(value).__name__}, not text")
    return value


def told(error: BaseException) -> str:
    """An exception on one line."""
    if isinstance(error, (Broken, UserError)):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(": ")
