"""Jobs: done once, their results whole, their failures told."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
from pathlib import Path

import pool_jobs
import pytest

from partita.core.errors import UserError
from partita.lab.jobs import Job, function, numbers, perform, reference, unfinished
from partita.lab.run import CLOCK, read_rows


def call(folder: Path, name: str, **arguments) -> Job:
    return Job(folder, call=f"pool_jobs:{name}", arguments=arguments)


def test_a_job_is_done_once(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    job = call(tmp_path / "job", "killed", marks=str(marks), times=0)  # counts the files in `marks`
    assert job.result() is None and unfinished([job]) == [job]
    first = perform(job)
    assert first is not None and first["value"] == 0.0
    (marks / "one").touch()
    assert perform(job) == job.result() and job.result()["value"] == 0.0
    assert unfinished([job]) == []


def test_a_run_leaves_its_numbers_and_a_measure(tmp_path):
    config = pool_jobs.small().to_json()
    job = Job(tmp_path / "job", config, measure="pool_jobs:folder_length")
    found = perform(job)
    assert found is not None
    assert (found["value"], found["steps"], found["seed"]) == (3.0, 3, 1)
    assert found["after"]["metric"] == "return" and "samples" not in found["after"]
    assert found["seconds"] == read_rows(tmp_path / "job" / "run" / "metrics.jsonl")[-1]["seconds"]


def test_a_run_that_lost_its_last_steps_ends_in_the_same_result(tmp_path):
    whole, cut = (Job(tmp_path / name, pool_jobs.small().to_json()) for name in ("whole", "cut"))
    expected = perform(whole)
    shutil.copytree(whole.folder, cut.folder)
    (cut.folder / "result.json").unlink()
    shutil.rmtree(cut.folder / "run" / "checkpoints" / "step_00000003")
    with open(cut.folder / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "ret')
    found = perform(cut)
    assert found is not None and expected is not None
    assert found["after"] == expected["after"] and found["steps"] == expected["steps"]
    rows = [
        [{k: v for k, v in row.items() if k not in CLOCK} for row in read_rows(job.folder / "run" / "metrics.jsonl")]
        for job in (whole, cut)
    ]
    assert rows[0] == rows[1]


def test_a_failure_is_told_and_can_be_mended(tmp_path):
    job = call(tmp_path / "job", "wrong", seed=1)
    with pytest.raises(UserError, match="ZeroDivisionError"):
        perform(job)
    told = job.error()
    assert told is not None and "division" in told and "error.log" in told
    assert "Traceback" in (job.folder / "error.log").read_text()
    mended = call(tmp_path / "job", "square", seed=3)
    assert perform(mended) is not None
    assert mended.error() is None and mended.result()["value"] == 9.0


def test_a_run_still_held_by_a_dying_process_is_waited_for(tmp_path):
    job = Job(tmp_path / "job", pool_jobs.small().to_json())
    (job.folder / "run").mkdir(parents=True)
    lock = open(job.folder / "run" / ".lock", "a")  # noqa: SIM115 - let go by the timer
    fcntl.flock(lock, fcntl.LOCK_EX)
    timer = threading.Timer(0.4, lock.close)
    timer.start()
    assert perform(job) is not None
    timer.join()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "finite"), (float("inf"), "finite"), ("3", "expected a number"), (True, "expected a number"),
        ({"score": 1.0}, "holds `value`"), (None, "expected a number"),
    ],
)  # fmt: skip
def test_what_is_no_measurement_is_refused(value, says):
    with pytest.raises(UserError, match=says) as error:
        numbers(value, "mine:measure")
    assert str(error.value).startswith("mine:measure")


def test_numbers_pass_as_they_are():
    assert numbers(2, "f") == {"value": 2}
    assert numbers({"value": 2.5, "other": "x"}, "f") == {"value": 2.5, "other": "x"}


def test_functions_by_name():
    assert function(reference(pool_jobs.square)) is pool_jobs.square
    with pytest.raises(UserError, match="at the top of a module"):
        reference(lambda seed: seed)


def test_jobs_survive_as_plain_values(tmp_path):
    job = Job(tmp_path, {"steps": 3}, None, {"a": 1}, "m:f", 2)
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
