"""The worker process of a world: `python -m partita.tasks.worlds.host`, spoken to by `hosts`."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from partita.core.errors import UserError
from partita.core.task import Problem
from partita.tasks.worlds import base
from partita.tasks.worlds.stage import told


class Work:
    """The world, its open episodes, and the calls that can be made."""

    def __init__(self, target: str, module: str, settings: bytes, memory_mb: int) -> None:
        from partita.core.registry import load, part_class

        base.inside = True
        if memory_mb:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
        cls = part_class("task", target) if ".py:" in target else load(target)
        sys.modules.setdefault(module, sys.modules[cls.__module__])  # under its name there, for what was pickled
        self.world: Any = cls(**pickle.loads(settings))
        self.episodes: dict[int, base.Episode] = {}
        self.count = 0

    def problem(self, seed: int) -> Any:
        return asdict(self.world._problem(seed))

    def open(self, problem: Problem) -> Any:
        episode = self.world.open(problem)
        self.count += 1
        self.episodes[self.count] = episode
        return {"number": self.count, "observation": episode.observation, "state": episode.state}

    def act(self, number: int, action: str) -> Any:
        episode = self.episodes[number]
        reply = episode.act(action)
        return {
            "observation": reply.observation, "reward": float(reply.reward), "done": bool(reply.done),
            "valid": bool(reply.valid), "score": float(reply.score),
            "parts": {name: float(value) for name, value in reply.parts.items()}, "state": episode.state,
        }  # fmt: skip

    def close(self, number: int) -> Any:
        self.episodes.pop(number).close()
        return {}

    def script(self, problem: Problem, seed: int, flaw: str | None) -> Any:
        return {"actions": self.world._script(problem, random.Random(seed), flaw)}


def main() -> None:
    """Answer calls until the pipe closes. What the world prints goes nowhere: standard output is the answers'."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    calls = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGTERM, lambda *_: None)  # it asks a run to stop after its step, which needs us
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, we go before the run does
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    work: Work | None = None
    while True:
        try:
            op, data = pickle.load(calls)
        except EOFError:
            return
        try:
            given = pickle.loads(data)
            if work is None:
                work = Work(*given)
                found: dict[str, Any] = {"gave": {}}
            else:
                found = {"gave": getattr(work, op)(*given)}
            text = json.dumps(found)
        except BaseException as error:
            user = isinstance(error, UserError)
            text = json.dumps({"raised": str(error) if user else told(error), "user": user})
        answers.write(text.encode() + b"\n")


def _watch(parent: int) -> None:
    """End with the process that started us, though the world may hang, and take along what it started."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
