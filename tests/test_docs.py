"""The script behind the documentation reads everything that is committed."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_pages_are_made_of_what_is_there():
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    made = pages.tables(pages.RESULTS)
    assert all(f"## {path.stem}" in made for path in (ROOT / "benchmarks" / "results").glob("*.json"))
    assert "`objective`" in pages.slots() and "`lab`" in pages.tasks()
