"""Folders that travel, and the places where nodes work on them."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from partita.core.errors import UserError
from partita.engines import parcel
from partita.engines.parcel import keep, pack, unpack, workplace


def fill(folder: Path, **files: str) -> Path:
    """A folder with these files; __ in a name is a folder's end, a leading H_ hides."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("H_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def files(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's folder for passing things."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"partita-{os.getuid()}"


def order(token: str = "a", **job: Any) -> dict[str, Any]:
    return {"job": job, "token": token, "version": "1"}


def die_in(its: dict[str, Any]) -> Path:
    """Leave the place of an order as a process does that dies in it."""
    with contextlib.suppress(RuntimeError), workplace(its) as work:
        (work / "half").touch()
        raise RuntimeError("killed")
    return work


def test_plain_files_travel_and_hidden_ones_stay(tmp_path: Path) -> None:
    held = fill(
        tmp_path / "a", result="1", run__metrics="2", run__checkpoints__step_1__state="3", run__H_lock="4",
        run__checkpoints__H_step_2__state="5",
    )  # fmt: skip
    unpack(pack(held), tmp_path / "b")
    assert files(tmp_path / "b") == {"result": "1", "run/metrics": "2", "run/checkpoints/step_1/state": "3"}
    unpack(pack(held, checkpoints=False), tmp_path / "c")
    assert files(tmp_path / "c") == {"result": "1", "run/metrics": "2"}


def test_nothing_is_written_outside(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../outside", "x")
        archive.writestr(f"{tmp_path}/absolute", "x")
    unpack(buffer.getvalue(), tmp_path / "in" / "here")
    assert not (tmp_path / "in" / "outside").exists() and not (tmp_path / "absolute").exists()


def test_what_arrives_replaces_what_was_there(tmp_path: Path) -> None:
    home = fill(tmp_path / "home", run__checkpoints__step_1="old", run__metrics="old", H_ray="token", notes="mine")
    keep(pack(fill(tmp_path / "sent", run__metrics="new", **{"result.json": "{}"})), home)
    assert files(home) == {"run/metrics": "new", "result.json": "{}", ".ray": "token", "notes": "mine"}


def test_the_result_arrives_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = fill(tmp_path / "sent", run__metrics="new", zebra="z", **{"result.json": "{}"})
    moved: list[str] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        moved.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    keep(pack(sent), tmp_path / "home")
    assert sorted(moved[:-1]) == ["run", "zebra"] and moved[-1] == "result.json"


def test_a_place_is_kept_for_whoever_takes_the_job_up_again(node: Path) -> None:
    work = die_in(order(seed=1))
    for other in (order(seed=2), order("b", seed=1), {**order(seed=1), "version": "2"}):
        with workplace(other) as elsewhere:
            assert list(elsewhere.iterdir()) == []
    with workplace(order(seed=1)) as again:
        assert again == work and (again / "half").exists()
    assert list(node.iterdir()) == []
    assert node.stat().st_mode & 0o077 == 0


def test_one_process_at_a_time(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[str] = []

    def other() -> None:
        with workplace(order()) as work:
            inside.append("other")
            assert work.is_dir()

    with workplace(order()):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.3)
        inside.append("first")
    thread.join()
    assert inside == ["first", "other"]
    monkeypatch.setattr(parcel, "PATIENCE", 0.1)
    with (
        workplace(order()),
        pytest.raises(UserError, match="another process is working on the same job"),
        workplace(order()),
    ):
        pass


def test_what_never_came_back_is_cleared_away(node: Path) -> None:
    _, work = (die_in(order(seed=seed)) for seed in (1, 2))
    old = time.time() - parcel.FORGOTTEN - 60
    os.utime(work.with_name(f"{work.name}.lock"), (old, old))
    with workplace(order(seed=3)):
        assert not work.exists()
    assert len([p for p in node.iterdir() if p.is_dir()]) == 1


def test_a_place_of_another_user_is_refused(node: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    node.symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="belongs to another user; set TMPDIR"), workplace(order()):
        pass


def test_a_lock_whose_file_was_removed_meanwhile_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.lock"

    def late(lock: Any, how: int) -> None:  # between opening and locking, the holder ends and another job begins
        path.unlink()
        path.touch()

    with monkeypatch.context() as patched:
        patched.setattr(parcel.fcntl, "flock", late)
        assert parcel._locked(path) is None
    lock = parcel._locked(path)
    assert lock is not None
    lock.close()
