"""A folder that takes the place of another: whole or not at all, and never of anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from partita.core.errors import UserError
from partita.lab.site.folder import MARK, replace

OLD = {"index.html": "old", "papers/a.html": "a"}
NEW = {"index.html": "new", "slots/b.html": "b"}


def held(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file() and p.name != MARK}


def test_a_site_replaces_the_former_one(tmp_path):
    out = tmp_path / "deep" / "site"
    replace(out, OLD)
    assert held(out) == OLD
    replace(out, NEW)
    assert held(out) == NEW
    assert [p.name for p in out.parent.iterdir()] == ["site"]


def test_an_empty_folder_may_be_taken(tmp_path):
    replace(tmp_path, NEW)
    assert held(tmp_path) == NEW


def test_what_is_no_former_site_is_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="exists and is not a site of evidence"):
        replace(tmp_path / "notes", NEW)
    with pytest.raises(UserError, match=r"mine\.txt: is a file"):
        replace(tmp_path / "notes" / "mine.txt", NEW)
    assert held(tmp_path) == {"notes/mine.txt": "keep"}


def test_a_site_that_holds_more_is_refused(tmp_path):
    out = tmp_path / "site"
    replace(out, OLD)
    (out / "papers" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match=r"holds papers/mine\.txt, which the site did not write"):
        replace(out, NEW)
    assert held(out) == OLD | {"papers/mine.txt": "keep"}


@pytest.mark.parametrize("method", ["write_bytes", "rename"])
def test_a_failure_leaves_the_former_site(tmp_path, monkeypatch, method):
    out = tmp_path / "site"
    replace(out, OLD)
    original, calls = getattr(Path, method), []

    def failing(self, *args):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return original(self, *args)

    monkeypatch.setattr(Path, method, failing)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        replace(out, NEW)
    monkeypatch.undo()
    assert held(out) == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["site"]


def test_a_lone_surrogate_does_not_stop_the_site(tmp_path):
    replace(tmp_path / "site", {"index.html": "a \ud83d b"})
    assert held(tmp_path / "site") == {"index.html": "a ? b"}
