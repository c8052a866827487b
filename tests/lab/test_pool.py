"""Pools of processes: same results in any number and order, and nothing lost or left behind by a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pool_jobs
import pytest

from partita.core.errors import UserError
from partita.lab.compare import understood
from partita.lab.jobs import Job
from partita.lab.pool import RETRIES, Pool
from partita.lab.run import CLOCK, read_rows

HERE = Path(__file__).resolve().parent


def calls(root: Path, name: str, count: int, **arguments) -> list[Job]:
    return [
        Job(root / f"seed_{i}", call=f"pool_jobs:{name}", arguments=arguments | ({"seed": i} if not arguments else {}))
        for i in range(count)
    ]


def quiet(jobs) -> None:
    pass


def waited_for(what, seconds: float = 60.0):
    """Polls until `what` gives something."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and was not collected does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_every_job_has_a_process_of_its_own_and_is_watched(tmp_path):
    jobs = calls(tmp_path, "square", 4)
    seen: list[int] = []
    Pool(2).run(jobs, lambda held: seen.append(sum(job.result() is not None for job in held)))
    results = [job.result() for job in jobs]
    assert [r["value"] for r in results] == [0.0, 1.0, 4.0, 9.0]
    assert len({r["process"] for r in results}) == 4 and os.getpid() not in {r["process"] for r in results}
    assert seen[0] == 0 and seen[-1] == 4 and seen == sorted(seen)
    before = [(job.folder / "result.json").stat().st_mtime_ns for job in jobs]
    Pool(2).run(jobs, quiet)
    assert [(job.folder / "result.json").stat().st_mtime_ns for job in jobs] == before


def runs(root: Path) -> list[Job]:
    out = []
    for seed in (3, 4):
        config = pool_jobs.small()
        config = replace(config, settings=replace(config.settings, seed=seed))
        out.append(Job(root / f"seed_{seed}", config.to_json()))
    return out


def told(job: Job) -> list[dict]:
    rows = read_rows(job.folder / "run" / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows] + [job.result()["after"]]


def test_runs_do_not_depend_on_how_many_run_or_in_which_order(tmp_path):
    together, alone = runs(tmp_path / "together"), runs(tmp_path / "alone")
    Pool(2).run(together, quiet)
    Pool(1).run(alone[::-1], quiet)
    assert [told(job) for job in together] == [told(job) for job in alone]
    assert told(together[0]) != told(together[1])


def test_a_killed_worker_is_started_again_but_not_forever(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    jobs = calls(tmp_path / "twice", "killed", 1, marks=str(marks), times=RETRIES)
    Pool(1).run(jobs, quiet)
    assert jobs[0].result()["value"] == float(RETRIES)
    jobs = calls(tmp_path / "always", "killed", 1, marks=str(marks), times=99)
    with pytest.raises(UserError, match=f"seed_0: its process ended {RETRIES + 1} times .*-9"):
        Pool(1).run(jobs, quiet)
    assert len(list(marks.iterdir())) == 2 * RETRIES + 1


def test_a_failing_job_names_itself_and_may_be_run_again(tmp_path):
    jobs = [*calls(tmp_path / "good", "square", 1), *calls(tmp_path / "bad", "wrong", 1)]
    with pytest.raises(UserError, match=r"bad/seed_0: ZeroDivisionError"):
        Pool(1).run(jobs, quiet)
    assert jobs[0].result() is not None and jobs[1].result() is None
    mended = calls(tmp_path / "bad", "square", 1)
    Pool(1).run(mended, quiet)
    assert mended[0].error() is None


def test_what_a_job_prints_is_kept_beside_it(tmp_path, capfd):
    jobs = [Job(tmp_path / "loud", call="pool_jobs:chatty"), *calls(tmp_path / "silent", "square", 1)]
    Pool(2).run(jobs, quiet)
    assert capfd.readouterr().out == ""
    assert (jobs[0].folder / "output.log").read_text() == "words of a job\n"
    assert not (jobs[1].folder / "output.log").exists()


def test_no_worker_outlives_whoever_started_it(tmp_path):
    mark = tmp_path / "process"
    script = tmp_path / "script.py"  # a plain one, that does nothing only if it is not run itself
    script.write_text(
        "from pathlib import Path\nfrom partita.lab.jobs import Job\nfrom partita.lab.pool import Pool\n"
        f"job = Job(Path({str(tmp_path / 'job')!r}), call='pool_jobs:sleeper', arguments={{'path': {str(mark)!r}}})\n"
        "Pool(1).run([job], lambda jobs: None)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(HERE)})
    worker = int(waited_for(lambda: mark.exists() and mark.read_text()))
    server = int(Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[1])
    assert alive(worker) and alive(server)
    parent.kill()
    parent.wait()
    try:
        waited_for(lambda: not alive(worker) and not alive(server), 20)
    finally:
        for process in (worker, server):
            if alive(process):
                os.kill(process, signal.SIGKILL)


def test_an_interrupt_lets_runs_save_themselves_and_the_rest_follows(tmp_path):
    words = "ppo mine=ppo --task cartpole --seeds 1 --steps 60 --batch-size 4 --rollout.steps 16 --eval-size 4 "
    words += "--save-every 1000 --epochs 1 --minibatches 1 --jobs 1 --out "
    out = tmp_path / "stopped"
    command = [sys.executable, "-m", "partita", "compare", *words.split(), str(out)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    metrics = out / "ppo" / "seed_0" / "run" / "metrics.jsonl"
    waited_for(lambda: metrics.exists() and metrics.stat().st_size > 0)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everyone in the foreground gets it
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(error.strip().splitlines()) == 1
    assert "of 2 runs are finished; the same command goes on" in error
    saved = [path for arm in ("ppo", "mine") for path in out.glob(f"{arm}/seed_0/run/checkpoints/step_*")]
    assert saved  # --save-every is beyond the run: it was saved because it was told to stop
    whole = tmp_path / "whole"
    for folder in (out, whole):
        understood([*words.replace("--jobs 1", "").split(), str(folder)]).run(Pool(1))
    for arm in ("ppo", "mine"):
        a, b = (Job(folder / arm / "seed_0") for folder in (out, whole))
        assert told(a) == told(b)
        assert len(told(a)) == 61


def test_how_many_processes():
    with pytest.raises(UserError, match="--jobs: expected 1 or more, got 0"):
        Pool(0)
