"""A world as a user writes one in a file of their own: some of its problems make trouble."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

from partita.core.task import Problem
from partita.tasks.worlds.base import Episode, Reply, World

LENGTHS = (1, 3, 5)  # turns after which an episode is over by itself; the world allows four


@dataclass(frozen=True)
class Mood:
    """What goes wrong, and in which turn (-1: at the opening)."""

    what: str = ""
    turn: int = 0

    def show(self, turn: int) -> None:
        if turn == self.turn and self.what:
            TROUBLES[self.what]()


def fail():
    raise RuntimeError("lost my keys")


TROUBLES = {
    "hang": lambda: re.match("(a+)+$", "a" * 64 + "b"),  # an endless loop that lets no other thread run
    "sleep": lambda: time.sleep(600),
    "blow up": lambda: bytearray(1 << 31),
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: sys.exit(3),
    "fail": fail,
}


class Count(Episode):
    """Earns ten times the turn plus the length of the action; over after `most` turns; silent after the second."""

    def __init__(self, most: int, mood: Mood = Mood()) -> None:
        self.most, self.mood, self.turn, self.state = most, mood, 0, "start"

    def act(self, action: str) -> Reply:
        self.mood.show(self.turn)
        self.turn += 1
        self.state = f"{self.turn % 2}"  # states repeat every second turn
        done = self.turn == self.most
        return Reply(
            "" if done or self.turn == 2 else f"{self.turn}>", 10.0 * self.turn + len(action), done, score=float(done),
            parts={"turns": self.turn},
        )  # fmt: skip


@dataclass(frozen=True)
class Troubled(World):
    """Problems of one, three and five turns; the second kind makes trouble."""

    trouble: str = ""
    turn: int = 0
    seconds: float = 10.0
    memory_mb: int = 0
    workers: int = 1
    max_turns: int = 4

    def problems(self, n, generator):
        moods = (Mood(), Mood(self.trouble, self.turn), Mood())
        return [Problem(f"p{LENGTHS[i % 3]}>", {"most": LENGTHS[i % 3], "mood": moods[i % 3]}) for i in range(n)]

    def open(self, problem):
        problem.data["mood"].show(-1)
        return Count(problem.data["most"], problem.data["mood"])


class Odd(Episode):
    """Shows what reached it, and what it is asked for."""

    def __init__(self, world: OddWorld, problem: Problem) -> None:
        self.world, self.problem = world, problem
        self.state = "".join({f"{i}" for i in range(50)})  # in the order of a set of strings

    def act(self, action: str) -> Reply:
        if action == "number":
            return Reply("a>", NUMBER, False, score=NUMBER, parts={"n": NUMBER})
        if action == "child":
            child = subprocess.Popen(["sleep", "600"])
            return Reply(f"{child.pid}>", 0.0, False)
        if action == "hang":
            time.sleep(600)
        if action == "nested":
            return Reply(str(self.world.begin(self.problem).__class__.__name__) + ">", 0.0, False)
        return Reply(f"{self.world.settings()} {self.problem.data}>", 0.0, False)


class Half:
    """A number of another library."""

    def __float__(self) -> float:
        return 0.5


NUMBER = Half()


@dataclass(frozen=True)
class OddWorld(World):
    """Settings and problems that are not what JSON holds."""

    pair: tuple[int, ...] = (1, 2)
    table: dict | None = None

    seconds = 2.0
    workers = 1
    max_turns: ClassVar[int] = 3

    def open(self, problem):
        return Odd(self, problem)
