"""Many jobs on a Ray cluster: each is a Ray task that works on its node's own disk and sends its folder back.

What crosses between driver and nodes is JSON text and archives of plain files; no shared file system is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import partita
from partita.core.errors import UserError
from partita.engines.parcel import keep, pack
from partita.lab.checkpoint import write_text
from partita.lab.jobs import Job, unfinished
from partita.lab.pool import LOOK, PATIENCE, cores, stops

RETRIES = 3  # how often a job goes on after its worker or its node was lost
ANSWER = 5.0  # seconds that a cluster has to answer
TOKEN = ".ray"  # in a job's folder: ties what nodes keep of an unfinished job to this folder
ADDRESS = re.compile(r"auto|(?P<client>ray://)?(?P<host>[^\s/]+):(?P<port>\d+)")


@dataclass(frozen=True)
class Ray:
    """Carries out jobs as tasks of a Ray cluster.

    address: None starts Ray here, with as many CPUs as this process may use; "auto" or "HOST:PORT" is a cluster that
    this machine is a node of, "ray://HOST:PORT" one that it is not. A process that has called `ray.init` already
    uses that connection.

    A job takes as many CPUs as it has threads, in a process of its own, and one GPU when its configuration says
    `device: cuda`; Ray shows no GPU to the others. A job whose worker is killed or whose node is lost goes on, on the
    same node from its last checkpoint, on another from its start, up to three times; to the same bits either way.
    Ctrl-C lets every run save itself and brings its checkpoints back, so that the same command goes on, here or on
    any node. Every node needs the same version of Partita (checked), and whatever files a configuration names
    (datasets, models, user parts "path/file.py:Class") under the same paths.
    """

    address: str | None = None

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise UserError('--engine ray: not installed; pip install "partita[ray]"')
        if self.address is not None and ADDRESS.fullmatch(self.address) is None:
            raise UserError(
                f"--address {self.address}: expected HOST:PORT, ray://HOST:PORT or auto; leave it out to start Ray here"
            )

    def run(self, jobs: Sequence[Job], watch: Callable[[Sequence[Job]], None]) -> None:
        """Carry out what is not done yet, in order as far as nodes are free; `watch` sees all about twice a second.

        Raises UserError when the cluster cannot be reached or has no node that is large enough, when a node has
        another version, or when a job fails; the other jobs then save themselves first.
        """
        watch(jobs)
        waiting = unfinished(jobs)
        if not waiting:
            return
        with connected(self.address, max(job.threads for job in waiting)) as ray:
            _fits(ray, waiting, self.address)
            running: dict[Any, tuple[Any, Job]] = {}
            tries: dict[Path, int] = {}
            with stops() as asked:
                try:
                    while waiting or running:
                        if asked:
                            raise KeyboardInterrupt
                        for job in waiting:
                            head, body = _submit(ray, job)
                            running[body] = (head, job)
                        waiting.clear()
                        ready, _ = ray.wait(list(running), timeout=LOOK)
                        for body in ready:
                            head, job = running.pop(body)
                            if not _take(job, *_received(ray, head, body, job), tries):
                                waiting.append(job)
                        watch(jobs)
                finally:
                    _stop(ray, running)


@contextmanager
def connected(address: str | None, threads: int) -> Iterator[Any]:
    """Ray, connected: to `address`, or (None) started here for jobs of so many threads and stopped afterwards."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # as ever, and said, so that Ray does not ask
    ray: Any = importlib.import_module("ray")
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        options |= {"num_cpus": max(cores(), threads), "include_dashboard": False}
    else:
        _answers(ray, address)
    try:
        ray.init(address=address or "local", **options)
    except (Exception, SystemExit) as error:  # where no cluster answers, Ray gives up by ending the process
        said = " ".join(str(error).split())[:300] or type(error).__name__
        if address is None:
            raise UserError(f"--engine ray: Ray could not be started here: {said}") from error
        raise UserError(
            f"--address {address}: no Ray cluster could be joined there: {said} (where it was started with tokens, "
            f"set RAY_AUTH_MODE=token here)"
        ) from error
    try:
        with _quiet():
            yield ray
    finally:
        ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block, what nodes tell of lost workers stays out of our output: Ray has a switch, not a setting."""
    inner: Any = importlib.import_module("ray._private.worker")
    before = getattr(inner, "_worker_logs_enabled", True)
    inner._worker_logs_enabled = False
    try:
        yield
    finally:
        inner._worker_logs_enabled = before


def _answers(ray: Any, address: str) -> None:
    """Make sure that a gRPC server listens at the address; Ray itself would try for minutes, then end the process."""
    import socket

    found = ADDRESS.fullmatch(address)
    if found is None or found["host"] is None or os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return
    hosts = [found["host"].strip("[]")]
    if hosts[0] in ("localhost", "127.0.0.1", "::1"):
        hosts.append(ray.util.get_node_ip_address())  # what Ray takes it for
    told = ""
    for host in hosts:
        try:
            with socket.create_connection((host, int(found["port"])), timeout=ANSWER) as line:
                line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")  # RFC 9113: 3.4, 6.5
                if line.recv(9)[3:4] == b"\4":  # a frame of settings
                    return
            told = told or "what answers there is not Ray"
        except (OSError, OverflowError) as error:
            told = told or str(getattr(error, "strerror", None) or error)
    usual = 10001 if found["client"] else 6379
    raise UserError(f"--address {address}: no Ray cluster answers there ({told}); is it started, on port {usual}?")


def _fits(ray: Any, jobs: Sequence[Job], address: str | None) -> None:
    """UserError for a job that no node could ever hold: it would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, flag in (("CPU", "--threads"), ("GPU", "--device cuda")):
        most = max((node.get(name, 0) for node in nodes), default=0)
        for job in jobs:
            wanted = job.threads if name == "CPU" else _gpus(job)
            if wanted > most:
                place = "this machine" if address is None else f"--address {address}: its largest node"
                raise UserError(
                    f"{place} has {most:g} {name}s, and {job.folder} takes {wanted}; change {flag}, or add a node"
                )


def _gpus(job: Job) -> int:
    return int(str(((job.config or {}).get("run") or {}).get("device", "")).startswith("cuda"))


def _submit(ray: Any, job: Job) -> tuple[Any, Any]:
    """Send the job out, with the checkpoints that it left here, and return where its answer will be."""
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "error.json").unlink(missing_ok=True)
        if not (job.folder / TOKEN).is_file():
            write_text(job.folder / TOKEN, uuid.uuid4().hex)
        token = (job.folder / TOKEN).read_text()
        begun = pack(job.folder) if any((job.folder / "run" / "checkpoints").glob("step_*")) else b""
    except OSError as error:
        raise UserError(f"{job.folder}: cannot be written: {error.strerror}; choose another folder") from error
    order = {"job": job.to_json(), "token": token, "version": partita.__version__, "cwd": os.getcwd()}
    task = ray.remote(
        num_cpus=job.threads, num_gpus=_gpus(job), num_returns=2, max_retries=RETRIES, max_calls=1,
        scheduling_strategy="SPREAD", name=f"partita {job.folder.parent.name}/{job.folder.name}",
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(job.threads)}},
    )(carry_out)  # fmt: skip
    head, body = task.remote(json.dumps(order), begun)
    return head, body


def carry_out(text: str, begun: bytes) -> tuple[str, bytes]:
    """On a node: do the job, or go on with it, and return how it ended and its folder, packed."""
    order = json.loads(text)
    if order["version"] != partita.__version__:
        import platform

        return json.dumps({"state": "version", "found": partita.__version__, "node": platform.node()}), b""
    from partita.engines.parcel import workplace
    from partita.lab.jobs import perform

    if os.path.isdir(order["cwd"]):
        os.chdir(order["cwd"])  # relative paths of a configuration mean what they mean at the driver
    home = order["job"]["folder"]
    with workplace(order) as work:
        if begun and not (work / "run").exists():
            keep(begun, work)
        state = "done"
        try:
            if perform(Job.from_json({**order["job"], "folder": str(work)})) is None:
                state = "interrupted"
        except UserError as error:
            state = "failed"
            write_text(work / "error.json", json.dumps({"error": str(error).replace(str(work), home)}))
        return json.dumps({"state": state}), pack(work, checkpoints=state != "done")


def _received(ray: Any, head: Any, body: Any, job: Job) -> tuple[dict[str, Any], bytes]:
    """What a task answered; UserError when it ended without an answer."""
    errors = ray.exceptions
    try:
        return json.loads(ray.get(head)), ray.get(body)
    except errors.RayTaskError as error:
        cause = str(error.cause if getattr(error, "cause", None) is not None else error).strip()
        if "failed to import" in cause or "No module named" in cause:
            raise UserError(
                f"{job.folder}: its node cannot import partita; install partita=={partita.__version__} on every node"
            ) from error
        raise UserError(f"{job.folder}: {cause.splitlines()[-1]}") from error
    except errors.RayError as error:
        lost = type(error).__name__
        raise UserError(
            f"{job.folder}: its worker or node was lost {RETRIES + 1} times without a result ({lost}; often want of "
            f"memory); run it alone, or on larger nodes"
        ) from error


def _take(job: Job, said: dict[str, Any], body: bytes, tries: dict[Path, int]) -> bool:
    """Put what came back into the job's folder, and say whether the job is done.

    It is not when its node told it to stop: it then goes on elsewhere, from the checkpoints that came back. UserError
    when it failed, or met another version.
    """
    if said["state"] == "version":
        raise UserError(
            f"node {said['node']} has partita {said['found']}, this is {partita.__version__}; "
            f"install partita=={partita.__version__} on every node"
        )
    try:
        keep(body, job.folder)
    except OSError as error:
        raise UserError(
            f"{job.folder}: cannot be written: {error.strerror}; free some space and run the same command again"
        ) from error
    if said["state"] == "failed":
        raise UserError(f"{job.folder}: {job.error()}")
    if said["state"] == "done":
        return True
    tries[job.folder] = tries.get(job.folder, 0) + 1
    if tries[job.folder] > RETRIES:
        raise UserError(f"{job.folder}: was stopped by its nodes {RETRIES + 1} times; run the same command again")
    return False


def _stop(ray: Any, running: dict[Any, tuple[Any, Job]]) -> None:
    """Ask tasks to save and end, keep what they saved, and kill those that do not end within half a minute."""
    left, until = list(running), time.monotonic() + PATIENCE
    try:
        for body in left:
            ray.cancel(body)
        while left and time.monotonic() < until:
            ready, left = ray.wait(left, timeout=LOOK)
            for body in ready:
                try:
                    keep(ray.get(body), running[body][1].folder)
                except (ray.exceptions.RayError, OSError):
                    continue  # it had not begun, or had nothing to save; its node may still hold a checkpoint
    finally:
        for body in left:
            ray.cancel(body, force=True)
