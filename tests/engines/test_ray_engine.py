"""Jobs on a Ray cluster of two nodes: the same bits as here, whatever is lost on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from partita.core import registry
from partita.core.errors import UserError
from partita.lab.config import Config, Settings
from partita.lab.jobs import Job, perform
from partita.lab.run import CLOCK, read_rows
from partita.parts.rollout import Segments
from partita.policies.actor_critic import ActorCritic
from partita.tasks.control.classic import Cartpole

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

HERE = Path(__file__).parent
STEPS = 6

# A part that stops in the middle of the run, once: it writes its process id and waits for its end.
HANGS = """
import os, time
from dataclasses import dataclass
from pathlib import Path
from partita.parts.credit import LeaveOneOut

HERE = Path(__file__).parent

@dataclass(frozen=True)
class Hangs(LeaveOneOut):
    at: int = 4

    def __call__(self, *args, **kwargs):
        with open(HERE / "calls", "a") as file:
            file.write(".")
        if (HERE / "calls").stat().st_size == self.at and not (HERE / "pid").exists():
            (HERE / "half").write_text(str(os.getpid()))
            (HERE / "half").rename(HERE / "pid")
            until = time.monotonic() + 60
            while time.monotonic() < until and not (HERE / "go").exists():
                time.sleep(0.05)
        return super().__call__(*args, **kwargs)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_USAGE_STATS_ENABLED")}
    os.environ["PYTHONPATH"] = str(HERE)  # nodes must find the functions of this file
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.larger = cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def engine(cluster: Any) -> Any:
    from partita.engines.ray import Ray

    return Ray(cluster.address)


def nothing(jobs: Sequence[Job]) -> None:
    """Watches without a word."""


def training(name: str = "ppo", **changes: Any) -> dict[str, Any]:
    """The configuration of a run of a second."""
    if name == "ppo":
        changes = {"rollout": Segments(steps=32), "batch_size": 4, "minibatches": 2, "epochs": 1, **changes}
    else:
        changes = {"batch_size": 2, "group_size": 2, **changes}
    settings = Settings(seed=1, eval_size=6, save_every=1, threads=1)
    recipe = registry.recipe(name).but(steps=STEPS, **changes)
    return Config(name, recipe, Cartpole(max_steps=20), ActorCritic(hidden=(8,)), settings).to_json()


def left(job: Job) -> dict[str, Any]:
    """What a run leaves, without the time of day: metrics, evaluations, policy, result."""
    run = job.folder / "run"
    result = {k: v for k, v in (job.result() or {}).items() if k not in ("spent", "processor", "seconds")}
    return {
        "metrics": [{k: v for k, v in row.items() if k not in CLOCK} for row in read_rows(run / "metrics.jsonl")],
        "evaluations": (run / "evaluations.jsonl").read_bytes(),
        "policy": {p.name: p.read_bytes() for p in sorted((run / "policy").iterdir())},
        "config": (run / "config.json").read_bytes(),
        "result": result,
    }


def hanging(folder: Path) -> tuple[dict[str, Any], Path]:
    """A run with the part that stops in the middle, and the folder of that part."""
    folder.mkdir()
    (folder / "hangs.py").write_text(HANGS)
    part = registry.part_class("credit", f"{folder / 'hangs.py'}:Hangs")
    return training("grpo", credit=part()), folder


def expected(config: dict[str, Any], parts: Path, folder: Path) -> dict[str, Any]:
    """What the run with that part leaves when it is carried out here, with nothing in its way."""
    held = [p for p in (parts / "pid", parts / "calls") if p.exists()]
    kept = {p: p.read_bytes() for p in held}
    (parts / "pid").write_text("0")
    job = Job(folder, config)
    perform(job)
    for path, data in kept.items():
        path.write_bytes(data)
    return left(job)


def when_there(path: Path, act: Callable[[str], None]) -> Callable[[Sequence[Job]], None]:
    """A watch that acts once, as soon as the file is there."""
    done: list[bool] = []

    def watch(jobs: Sequence[Job]) -> None:
        if path.exists() and not done:
            done.append(True)
            act(path.read_text())

    return watch


# Called on the nodes ---------------------------------------------------------------------------------------------


def meet(folder: str, seed: int, count: int) -> dict[str, Any]:
    """Return where it runs, once so many jobs have begun."""
    import ray
    import torch

    Path(folder, f"here_{seed}").touch()
    until = time.monotonic() + 60
    while len(list(Path(folder).glob("here_*"))) < count:
        assert time.monotonic() < until
        time.sleep(0.05)
    return {
        "value": float(seed), "node": ray.get_runtime_context().get_node_id(), "process": os.getpid(),
        "omp": os.environ["OMP_NUM_THREADS"], "threads": torch.get_num_threads(),
    }  # fmt: skip


def fail(folder: str) -> float:
    """Raise, having left a mark."""
    with open(Path(folder) / "attempts", "a") as file:
        file.write(".")
    raise ValueError("a bad day")


# Tests -----------------------------------------------------------------------------------------------------------


def test_equals_what_is_done_here(cluster: Any, tmp_path: Path) -> None:
    jobs = [Job(tmp_path / "there" / name, training(name)) for name in ("ppo", "grpo")]
    seen: list[int] = []
    engine(cluster).run(jobs, lambda all_jobs: seen.append(sum(j.result() is not None for j in all_jobs)))
    assert seen[0] == 0 and seen[-1] == 2
    for job in jobs:
        here = replace(job, folder=tmp_path / "here" / job.folder.name)
        perform(here)
        assert left(job) == left(here)
        assert not (job.folder / "run" / "checkpoints").exists()


def test_jobs_run_on_both_nodes_in_processes_of_their_own(cluster: Any, tmp_path: Path) -> None:
    call = "test_ray_engine:meet"
    jobs = [  # three CPUs: three must run at a time, on both nodes, and the fourth where another has been
        Job(tmp_path / f"seed_{i}", call=call, arguments={"folder": str(tmp_path), "seed": i, "count": 3})
        for i in range(4)
    ]
    engine(cluster).run(jobs, nothing)
    found = [job.result() or {} for job in jobs]
    assert [r["value"] for r in found] == [0.0, 1.0, 2.0, 3.0]
    assert len({r["node"] for r in found}) == 2
    assert len({r["process"] for r in found}) == 4
    assert all(r["omp"] == "1" and r["threads"] == 1 for r in found)


@pytest.mark.parametrize(("number", "calls"), [(signal.SIGKILL, STEPS + 1), (signal.SIGTERM, STEPS)])
def test_a_worker_that_is_stopped_goes_on_from_its_checkpoint(
    cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], number: signal.Signals, calls: int
) -> None:
    config, parts = hanging(tmp_path / "parts")
    job = Job(tmp_path / "there", config)

    def stop(pid: str) -> None:
        os.kill(int(pid), number)
        (parts / "go").touch()

    engine(cluster).run([job], when_there(parts / "pid", stop))
    assert capfd.readouterr() == ("", "")
    # Killed in its fourth step, it takes that step again from the third checkpoint; asked to stop, it saves the fourth.
    assert (parts / "calls").stat().st_size == calls
    assert left(job) == expected(config, parts, tmp_path / "here")
    assert not (job.folder / "run" / "checkpoints").exists()


def test_an_interrupted_run_brings_its_checkpoint_home_and_goes_on(cluster: Any, tmp_path: Path) -> None:
    config, parts = hanging(tmp_path / "parts")
    job = Job(tmp_path / "there", config, threads=2)
    arguments = {"folder": str(tmp_path), "seed": 0, "count": 2}
    endless = Job(tmp_path / "endless", call="test_ray_engine:meet", arguments=arguments)
    waiting = Job(tmp_path / "waiting", training(), threads=2)

    def interrupt(pid: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        (parts / "go").touch()

    with pytest.raises(KeyboardInterrupt):
        engine(cluster).run([job, endless, waiting], when_there(parts / "pid", interrupt))
    assert [j.result() for j in (job, endless, waiting)] == [None, None, None]
    assert {p.name for p in (job.folder / "run" / "checkpoints").iterdir()} == {"step_00000003", "step_00000004"}
    engine(cluster).run([job], nothing)
    assert (parts / "calls").stat().st_size == STEPS
    assert left(job) == expected(config, parts, tmp_path / "here")


def test_a_lost_node_is_survived(cluster: Any, tmp_path: Path) -> None:
    config, parts = hanging(tmp_path / "parts")
    job = Job(tmp_path / "there", config, threads=2)  # only the larger node can hold it

    def lose(pid: str) -> None:
        lost, cluster.larger = cluster.larger, cluster.add_node(num_cpus=2)
        cluster.remove_node(lost, allow_graceful=False)

    engine(cluster).run([job], when_there(parts / "pid", lose))
    assert (parts / "calls").stat().st_size > STEPS
    assert left(job) == expected(config, parts, tmp_path / "here")


def test_a_failing_job_is_named_and_not_tried_again(cluster: Any, tmp_path: Path) -> None:
    done = Job(tmp_path / "done", call="test_ray_engine:fail", arguments={"folder": str(tmp_path)})
    done.folder.mkdir()
    (done.folder / "result.json").write_text(json.dumps({"value": 1.0}))
    bad = replace(done, folder=tmp_path / "bad")
    with pytest.raises(UserError) as told:
        engine(cluster).run([done, bad], nothing)
    assert str(told.value) == f"{bad.folder}: ValueError: a bad day (traceback in {bad.folder / 'error.log'})"
    assert "a bad day" in (bad.folder / "error.log").read_text()
    assert (tmp_path / "attempts").read_text() == "."
    assert done.result() == {"value": 1.0}


def test_another_version_on_a_node_is_refused(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from partita import __version__

    monkeypatch.setattr("partita.__version__", "99.0")
    job = Job(tmp_path / "job", training())
    with pytest.raises(UserError, match=f"has partita {__version__}, this is 99.0; install partita==99.0"):
        engine(cluster).run([job], nothing)
    assert job.result() is None and job.error() is None


def test_a_job_that_fits_no_node_is_refused(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"and .*large takes 64; change --threads"):
        engine(cluster).run([Job(tmp_path / "large", training(), threads=64)], nothing)
    config = training()
    config["run"]["device"] = "cuda"
    with pytest.raises(UserError, match=r"has 0 GPUs, and .*cuda takes 1; change --device"):
        engine(cluster).run([Job(tmp_path / "cuda", config)], nothing)


def test_starts_here_without_an_address(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from partita.engines.ray import Ray
from partita.lab.jobs import Job
job = Job(Path(sys.argv[1]), call="statistics:fmean", arguments={"data": [1.0, 2.0]}, threads=2)
Ray().run([job], lambda jobs: None)
assert job.result()["value"] == 1.5
import ray
assert not ray.is_initialized()
"""
    command = [sys.executable, "-c", program, str(tmp_path / "job")]
    ended = subprocess.run(
        command, env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=300
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_what_is_done_needs_no_cluster(tmp_path: Path) -> None:
    from partita.engines.ray import Ray

    job = Job(tmp_path / "job", training())
    job.folder.mkdir()
    (job.folder / "result.json").write_text(json.dumps({"value": 1.0}))
    seen: list[Job] = []
    Ray("127.0.0.1:9").run([job], seen.extend)
    assert seen == [job]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_answers(tmp_path: Path, scheme: str) -> None:
    from partita.engines.ray import Ray

    with pytest.raises(UserError, match=f"--address {scheme}127.0.0.1:9: no Ray cluster answers there"):
        Ray(f"{scheme}127.0.0.1:9").run([Job(tmp_path / "job", training())], nothing)


def test_an_address_where_something_else_answers(tmp_path: Path) -> None:
    import http.server
    import threading

    from partita.engines.ray import Ray

    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="what answers there is not Ray"):
            Ray(f"127.0.0.1:{server.server_port}").run([Job(tmp_path / "job", training())], nothing)
        server.shutdown()


@pytest.mark.parametrize("address", ["here", "host:", "http://host:80", "host:80:90 "])
def test_an_address_that_is_none(address: str) -> None:
    from partita.engines.ray import Ray

    with pytest.raises(UserError, match="expected HOST:PORT, ray://HOST:PORT or auto"):
        Ray(address)


def test_without_ray_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from partita.engines.ray import Ray

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "partita\[ray\]"'):
        Ray()
