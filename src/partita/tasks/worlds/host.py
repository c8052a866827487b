"""The worker process of a world whose code is not ours: `python -m partita.tasks.worlds.host`, spoken to by `hosts`."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from dataclasses import asdict
from typing import Any

from partita.core.errors import UserError
from partita.tasks.worlds import outside
from partita.tasks.worlds.stage import told


class Work:
    """The world, its open episodes, and the calls that can be made."""

    def __init__(self, target: str, settings: dict[str, Any], memory_mb: int) -> None:
        from partita.core.registry import load, part_class

        outside.inside = True
        if memory_mb:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
        cls = part_class("task", target) if ".py:" in target else load(target)
        self.world = cls(**settings)
        self.episodes: dict[int, Any] = {}
        self.count = 0

    def problem(self, seed: int) -> Any:
        return asdict(self.world._problem(seed))

    def open(self, problem: dict[str, Any]) -> Any:
        episode = self.world._open(outside.unpacked(problem))
        self.count += 1
        self.episodes[self.count] = episode
        return {"number": self.count, "observation": episode.observation, "state": episode.state}

    def act(self, given: list[Any]) -> Any:
        number, action = given
        episode = self.episodes[number]
        reply = episode.act(action)
        return {**asdict(reply), "state": episode.state}

    def close(self, given: list[int]) -> Any:
        self.episodes.pop(given[0]).close()
        return {}

    def script(self, given: list[Any]) -> Any:
        problem, seed, flaw = given
        return {"actions": self.world._script(outside.unpacked(problem), random.Random(seed), flaw)}


def main() -> None:
    """Answer calls until the pipe closes. What the world prints goes nowhere: standard output is the answers'."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    calls = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    work: Work | None = None
    for line in calls:
        call = json.loads(line)
        try:
            if work is None:
                work = Work(**call)
                found: dict[str, Any] = {"gave": {}}
            else:
                found = {"gave": getattr(work, call["op"])(call["given"])}
            text = json.dumps(found)
        except Exception as error:
            user = isinstance(error, UserError)
            text = json.dumps({"raised": str(error) if user else told(error), "user": user})
        answers.write(text.encode() + b"\n")


def _watch(parent: int) -> None:
    """End with the process that started us, though the world may hang."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
