"""Many jobs on this machine: a process for every job, forked from one that has loaded what jobs need."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from partita.core.errors import UserError
from partita.lab.jobs import Job, perform, unfinished

RETRIES = 2  # how often a job goes on after its process was killed
LOOK = 0.5  # seconds between two looks at the progress
PATIENCE = 30.0  # seconds that interrupted runs have to save themselves
# What every job would load for itself, a second or more each: done once, before the fork.
LOADED = (
    "partita.lab.jobs", "partita.lab.train", "partita.loops.on_policy", "partita.tasks.offline.task", "scipy.special",
)  # fmt: skip
LANGUAGE = (
    "partita.policies.language", "transformers.modeling_utils", "transformers.generation.utils",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
)  # fmt: skip


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Pool:
    """Carries out jobs in `workers` processes (None: as many as the cores allow).

    Every job has a process of its own, so that what it does depends on nothing but the job. One that is killed goes
    on from its last checkpoint, up to twice. Ctrl-C lets every run save itself first; a second Ctrl-C does not. No
    process outlives this one.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--jobs: expected 1 or more, got {self.workers}")

    def run(self, jobs: Sequence[Job], watch: Callable[[Sequence[Job]], None]) -> None:
        """Carry out what is not done yet, in order; `watch` sees all jobs about twice a second.

        Raises UserError that names the job when one fails, and KeyboardInterrupt when it is told to stop; whatever
        runs then saves itself first.
        """
        waiting = unfinished(jobs)
        watch(jobs)
        if not waiting:
            return
        threads = max(job.threads for job in waiting)
        places = self.workers or max(1, cores() // threads)
        language = any((job.config or {}).get("policy", {}).get("part") == "language" for job in waiting)
        context = server(language, threads)
        running: list[tuple[Any, Job]] = []
        tries: dict[Path, int] = {}
        with stops() as asked:
            try:
                while waiting or running:
                    if asked:
                        raise KeyboardInterrupt
                    while waiting and len(running) < places:
                        job = waiting.pop(0)
                        (job.folder / "error.json").unlink(missing_ok=True)
                        process = context.Process(target=work, args=(job.to_json(),))
                        with _nobody():
                            process.start()
                        running.append((process, job))
                    wait([process.sentinel for process, _ in running], timeout=LOOK)
                    for process, job in [pair for pair in running if not pair[0].is_alive()]:
                        process.join()
                        running.remove((process, job))
                        if not _done(job, process.exitcode, tries):
                            waiting.insert(0, job)
                    watch(jobs)
            finally:
                _stop([process for process, _ in running])


def _done(job: Job, code: int | None, tries: dict[Path, int]) -> bool:
    """Whether a job whose process has ended is done; False where it should be tried again."""
    if job.result() is not None:
        return True
    if (told := job.error()) is not None:
        raise UserError(f"{job.folder}: {told}")
    tries[job.folder] = tries.get(job.folder, 0) + 1
    if tries[job.folder] > RETRIES:
        raise UserError(
            f"{job.folder}: its process ended {RETRIES + 1} times without a result (exit code {code}; -9 is often want "
            f"of memory); use fewer --jobs, or see {job.folder / 'output.log'}"
        )
    return False


def server(language: bool, threads: int = 1) -> Any:
    """The context whose processes are forked from a server that has loaded what jobs need; begins to load at once.

    Ctrl-C on a terminal reaches all its processes: there it is blocked, for good, so that only we act on it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LOADED, *(LANGUAGE if language else ())])
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is loaded
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _nobody():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return context


@contextlib.contextmanager
def _nobody() -> Iterator[None]:
    """Within the block, processes are started without the program that we are: a script need not expect it."""
    held = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = held


@contextlib.contextmanager
def stops() -> Iterator[list[int]]:
    """Within the block, Ctrl-C and SIGTERM are noted in the list; a second one raises KeyboardInterrupt."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # whoever owns that one handles signals
        yield asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(processes: Sequence[Any]) -> None:
    """Ask the processes to save and stop; those that do not in time, or before a second Ctrl-C, are killed."""
    try:
        for process in processes:
            process.terminate()
        until = time.monotonic() + PATIENCE
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def work(data: dict[str, Any]) -> None:
    """A worker process: do one job; end at once when whoever started it is gone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    job = Job.from_json(data)
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / "output.log"
    with open(path, "a") as output:  # what it prints would break the progress of all
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    threading.Thread(target=_follow, daemon=True).start()
    try:
        perform(job)
    except UserError:
        sys.exit(2)  # the reason stands in the job's folder
    finally:
        sys.stdout.flush()
        if not path.stat().st_size:
            path.unlink()


def _follow() -> None:
    """End this process when the one that asked for it is gone, or the server between the two."""
    parent = multiprocessing.parent_process()
    server = os.getppid()
    while parent is not None and not wait([parent.sentinel], timeout=1.0) and os.getppid() == server:
        pass
    if parent is not None:
        os._exit(1)
