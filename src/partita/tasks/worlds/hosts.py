"""Worker processes for worlds whose code is not ours, and what is said to them: a line of JSON each way."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from partita.core.errors import UserError
from partita.tasks.worlds.base import Broken
from partita.tasks.worlds.outside import Outside

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)  # variables that workers do not get
STARTING = 120.0  # seconds in which a process must have imported the world


class Renewed(Exception):
    """The process is another one than that which held the episode."""


class Host:
    """One worker process, started when it is first called and again after it was killed.

    born: how many processes there were before; an episode belongs to one of them. Calls come one at a time.
    """

    def __init__(self, world: Outside, target: str) -> None:
        self.world, self.target = world, target
        self.born = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def call(self, op: str, given: Any, born: int | None = None) -> Any:
        """What the worker answers. Raises Broken if it raised, hung or died, UserError where the user must act, and
        Renewed if `born` is a process that is gone."""
        with self._lock:
            if born is not None and born != self.born:
                raise Renewed
            if self._process is None:
                self._start()
            found = self._ask({"op": op, "given": given}, self.world.seconds)
        if "raised" in found:
            raise (UserError if found.get("user") else Broken)(found["raised"])
        return {**found["gave"], "born": self.born} if op == "open" else found["gave"]

    def _start(self) -> None:
        self._unread = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "partita.tasks.worlds.host"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=surroundings(),
        )  # fmt: skip
        settings = self.world.settings()
        found = self._ask({"target": self.target, "settings": settings, "memory_mb": self.world.memory_mb}, STARTING)
        if "raised" in found:
            self.end()
            raise UserError(f"task {self.world.part_name()}: its process could not start: {found['raised']}")

    def _ask(self, what: dict[str, Any], seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(what).encode() + b"\n")
            process.stdin.flush()
            line = self._line(seconds)
        except (BrokenPipeError, ConnectionError):
            line = b""
        if line:
            return json.loads(line)
        late = line is None
        self.end()
        raise Broken(f"no answer within {seconds:g} s" if late else f"its process died ({_ended(process.returncode)})")

    def _line(self, seconds: float) -> bytes | None:
        """The next line; empty if the process is gone, None if it took too long."""
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, end = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._unread:
            if not select.select([pipe], [], [], max(end - time.monotonic(), 0.0))[0]:
                return None
            data = os.read(pipe, 1 << 16)
            if not data:
                return b""
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def end(self) -> None:
        """Kill the process; the next call starts another."""
        process, self._process = self._process, None
        self.born += 1
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    try:
                        stream.close()
                    except BrokenPipeError:
                        continue


class Hosts:
    """The workers of one world."""

    def __init__(self, world: Outside, target: str) -> None:
        self._hosts = [Host(world, target) for _ in range(world.workers)]
        self._turn = itertools.count()

    def next(self) -> Host:
        """The workers in turn."""
        return self._hosts[next(self._turn) % len(self._hosts)]

    def each(self, op: str, given: Iterable[Any]) -> list[Any]:
        """The worker's answer to each, in order. Raises UserError for the first that broke."""
        with ThreadPoolExecutor(len(self._hosts)) as pool:
            return list(pool.map(lambda one: self._sound(op, one), given))

    def _sound(self, op: str, given: Any) -> Any:
        host = self.next()
        try:
            return host.call(op, given)
        except Broken as error:
            raise UserError(f"task {host.world.part_name()}: {op} {given} failed: {error}") from error

    def end(self) -> None:
        """Kill every process."""
        for host in self._hosts:
            host.end()


_known: dict[str, Hosts] = {}
_guard = threading.Lock()


def hosts(world: Outside) -> Hosts:
    """The workers of a world with these settings, the same for the life of our process."""
    cls = type(world)
    target = cls.reference or f"{cls.__module__}:{cls.__qualname__}"
    if target.startswith("__main__:"):
        raise UserError(
            f"task {cls.__name__}: a worker cannot import it from a script; define it in a module of its own"
        )
    try:
        key = json.dumps([target, world.settings()], sort_keys=True)
    except TypeError as error:
        raise UserError(
            f"task {world.part_name()}: settings must be numbers, text, lists or tables: {error}"
        ) from error
    with _guard:
        if key not in _known:
            _known[key] = Hosts(world, target)
        return _known[key]


@atexit.register
def _end_all() -> None:
    for each in _known.values():
        each.end()


def surroundings() -> dict[str, str]:
    """The environment of a worker: ours, where it finds our modules, without what looks like a secret."""
    kept = {name: value for name, value in os.environ.items() if not SECRET.search(name)}
    return {**kept, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def _ended(code: int | None) -> str:
    return "?" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
