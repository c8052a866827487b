"""Rows of data from a JSONL file or a Hugging Face dataset, checked while they are read."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from partita.core.errors import UserError, nearest

Row = Mapping[str, Any]


def load_rows(path: str, split: str = "train", subset: str = "") -> tuple[Row, ...]:
    """All rows of a JSONL file, or of a split of a dataset on the hub (which needs the package `datasets`).

    Raises UserError, in one line, on a missing or empty file, a line that is not a JSON object (with its number),
    a missing package, and whatever the hub refuses. The rows are kept for the next call.
    """
    if not path:
        raise UserError("path: no data given; name a .jsonl file or a dataset of the hub, such as openai/gsm8k")
    file = Path(path).expanduser()
    if file.is_file():
        info = file.stat()
        return _from_file(str(file), info.st_mtime_ns, info.st_size)
    if file.is_dir():
        raise UserError(f"path: {path} is a folder; name a .jsonl file in it")
    if file.suffix in (".jsonl", ".json", ".txt", ".csv", ".parquet") or path.startswith(("/", ".", "~")):
        raise UserError(f"path: {path}: no such file{_similar(file)}")
    return _from_hub(path, split, subset)


def need_column(rows: Sequence[Row], column: str, field: str, path: str) -> None:
    """Raise UserError, with the nearest names, unless every row has the column."""
    for number, row in enumerate(rows, 1):
        if column not in row:
            raise UserError(f"{field}: row {number} of {path} has no column `{column}`; {nearest(column, row)}")


def prompt_of(row: Row, number: int, column: str, template: str, path: str) -> str:
    """The prompt of a row, put into the template in the place of {prompt}."""
    value = row[column]
    if not isinstance(value, str):
        raise UserError(
            f"prompt_column: `{column}` of row {number} of {path} is not text "
            f"but {type(value).__name__}: {str(value)[:60]!r}"
        )
    if not value:
        raise UserError(f"prompt_column: `{column}` of row {number} of {path} is empty")
    return template.replace("{prompt}", value)


def check_template(template: str) -> None:
    """Raise UserError unless the template has a place for the prompt."""
    if "{prompt}" not in template:
        raise UserError(f"template: {template!r} has no {{prompt}} in it; write for example 'Q: {{prompt}} A:'")


def _similar(file: Path) -> str:
    try:
        names = [entry.name for entry in file.parent.iterdir() if entry.is_file()]
    except OSError:
        return f", and no folder {file.parent}"
    return f"; {nearest(file.name, names)}" if names else ""


@functools.lru_cache(maxsize=8)
def _from_file(path: str, changed: int, size: int) -> tuple[Row, ...]:
    rows: list[Row] = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(
                        f"{path}: line {number} is not JSON: {error}; write one object on each line"
                    ) from None
                if not isinstance(row, dict):
                    raise UserError(f"{path}: line {number} is {type(row).__name__}, not an object; write {{...}}")
                rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    if not rows:
        raise UserError(f"{path}: there are no rows in it; write one JSON object on each line")
    return tuple(rows)


@functools.lru_cache(maxsize=8)
def _from_hub(name: str, split: str, subset: str) -> tuple[Row, ...]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f"path: {name} is not a file, and a dataset of the hub needs `pip install datasets`") from None
    try:
        loaded = load_dataset(name, subset or None, split=split)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"path: the dataset {name}, split {split}, cannot be loaded: {reason[:200]}") from None
    rows = tuple(dict(row) for row in loaded)
    if not rows:
        raise UserError(f"path: the dataset {name} has no rows in its split {split}")
    return rows
