"""A folder of pages that takes the place of the one before it, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from partita.core.errors import UserError

MARK = ".partita-site"  # lists what a site is made of, so that nothing else is ever replaced


def replace(out: Path, files: Mapping[str, str]) -> None:
    """Make `out` the folder of `files` (path in it: text); a reader sees the former site or the new one, never half.

    UserError, with nothing written, where `out` holds anything that a former site did not write, or where its
    parent cannot be written.
    """
    out = out.resolve()
    _check(out)
    new, old = (out.with_name(f".{out.name}.{what}.{os.getpid()}") for what in ("new", "old"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        for name, text in {**files, MARK: "".join(f"{name}\n" for name in sorted(files))}.items():
            path = new / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text.encode("utf-8", "replace"))  # a lone surrogate becomes a question mark
        _swap(out, new, old)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}; choose another place") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _swap(out: Path, new: Path, old: Path) -> None:
    if out.exists():
        out.rename(old)
    try:
        new.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise


def _check(out: Path) -> None:
    """Refuse to replace what is no former site; an empty folder may be taken."""
    if not out.exists():
        return
    fix = "name a new folder, or move it away"
    if not out.is_dir():
        raise UserError(f"--out {out}: is a file; {fix}")
    found = {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir() or path.is_symlink()}
    if not found:
        return
    if MARK not in found:
        raise UserError(f"--out {out}: exists and is not a site of evidence; {fix}")
    known = set((out / MARK).read_text(encoding="utf-8", errors="replace").splitlines()) | {MARK}
    if odd := sorted(found - known):
        raise UserError(f"--out {out}: holds {odd[0]}, which the site did not write; {fix}")
