"""Folders that travel: packed into bytes on one machine, unpacked on another; and the node's own place to work in."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from partita.core.errors import UserError

PATIENCE = 60.0  # seconds to wait for another process that works on the same job, a lost one that is ending
FORGOTTEN = 14 * 24 * 3600.0  # seconds after which a node clears away what a job that never came back left


def pack(folder: Path, checkpoints: bool = True) -> bytes:
    """The plain files of a folder as a ZIP archive; hidden ones (locks, half-written files) stay behind."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if any(part.startswith(".") for part in inside.parts) or not path.is_file() or path.is_symlink():
                continue
            if checkpoints or "checkpoints" not in inside.parts:
                archive.write(path, inside.as_posix())
    return buffer.getvalue()


def unpack(data: bytes, folder: Path) -> None:
    """Undo `pack`; nothing is ever written outside the folder."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(folder)


def keep(data: bytes, folder: Path) -> None:
    """Put a job's packed folder in the place of what `folder` holds of it, `result.json` last, by renaming."""
    arriving = folder / ".arriving"
    shutil.rmtree(arriving, ignore_errors=True)
    unpack(data, arriving)
    for entry in sorted(arriving.iterdir(), key=lambda e: e.name == "result.json"):
        target = folder / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.replace(target)
    arriving.rmdir()


@contextmanager
def workplace(order: Mapping[str, Any]) -> Iterator[Path]:
    """A folder on this node for the job of an order (its "job", "token" and "version"), by its content.

    One process at a time. It goes once the block ends, and stays, with its checkpoints, when the process dies in it,
    for whoever takes the job up again on this node.
    """
    root = Path(tempfile.gettempdir()) / f"partita-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise UserError(f"{root}: belongs to another user; set TMPDIR on the node to a folder of your own")
    _sweep(root)
    content = json.dumps({k: order[k] for k in ("job", "token", "version")}, sort_keys=True)
    work = root / hashlib.sha256(content.encode()).hexdigest()[:32]
    lock = root / f"{work.name}.lock"
    with _alone(lock):
        work.mkdir(exist_ok=True)
        over = False
        try:
            yield work
            over = True
        finally:
            if over or not any(path.is_file() for path in work.rglob("*")):
                shutil.rmtree(work, ignore_errors=True)
                lock.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock file; UserError when another process holds it for longer than a dying one would."""
    until = time.monotonic() + PATIENCE
    while (lock := _locked(path)) is None:
        if time.monotonic() > until:
            raise UserError(f"{path}: another process is working on the same job; stop it, or wait for it")
        time.sleep(0.1)
    with lock:
        yield


def _locked(path: Path) -> IO[str] | None:
    """The lock file, open and locked; None while another process has it."""
    lock = open(path, "a")  # noqa: SIM115 - held for as long as the caller needs it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock.fileno()).st_ino == path.stat().st_ino:  # else its holder has removed it meanwhile
            return lock
    except OSError:
        pass
    lock.close()
    return None


def _sweep(root: Path) -> None:
    """Clear away what jobs left that were begun long ago and that no process works on."""
    for path in root.glob("*.lock"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > FORGOTTEN and (lock := _locked(path)) is not None:
                with lock:
                    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                    path.unlink(missing_ok=True)
